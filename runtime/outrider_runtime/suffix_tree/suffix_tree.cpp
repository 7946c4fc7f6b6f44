// The tree of in_python.py, compiled: the same nodes, counts and doubles, twenty times faster, and
// unknown to Python's collector of garbage, which would walk a million nodes while rounds wait.

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

namespace {

using Token = std::uint32_t;
using Text = std::vector<Token>;

constexpr double kMinPathProbability = 0.1;
constexpr std::int64_t kDoubt = 2;
constexpr int kFewChildren = 8;  // so many are searched one by one

// The end of an edge. The edge's tokens are a stretch of the last text that went along it.
struct Node {
  const Text* text = nullptr;
  std::int64_t start = 0;
  std::int64_t end = 0;    // of a leaf it may lie ahead: the leaf grows with its text
  std::int64_t count = 0;  // suffixes that pass or end here
  Token first = 0;         // token of the edge
  std::int32_t num_children = 0;
  Node* best = nullptr;      // child of the highest count; null: not known
  Node* children = nullptr;  // newest first
  Node* newer = nullptr;
  Node* older = nullptr;
  std::unique_ptr<std::unordered_map<Token, Node*>> by_token;  // of many children

  std::int64_t length() const {
    return std::min<std::int64_t>(end, std::ssize(*text)) - start;
  }

  Token at(std::int64_t offset) const { return (*text)[start + offset]; }

  Node* child(Token token) const {
    if (by_token) {
      const auto found = by_token->find(token);
      return found == by_token->end() ? nullptr : found->second;
    }
    Node* child = children;
    while (child && child->first != token) child = child->older;
    return child;
  }

  // The child that all suffixes go on to, if there is one.
  Node* only_child() const {
    return num_children == 1 && children->count == count ? children : nullptr;
  }

  void add(Node* child) {
    child->newer = nullptr;
    child->older = children;
    if (children) children->newer = child;
    children = child;
    ++num_children;
    if (by_token) {
      by_token->emplace(child->first, child);
    } else if (num_children > kFewChildren) {
      by_token = std::make_unique<std::unordered_map<Token, Node*>>();
      for (Node* each = children; each; each = each->older) by_token->emplace(each->first, each);
    }
  }

  void remove(Node* child) {
    (child->newer ? child->newer->older : children) = child->older;
    if (child->older) child->older->newer = child->newer;
    --num_children;
    if (by_token) by_token->erase(child->first);
  }

  // Puts another node, whose edge begins alike, into a child's place.
  void replace(Node* old, Node* other) {
    other->newer = old->newer;
    other->older = old->older;
    (other->newer ? other->newer->older : children) = other;
    if (other->older) other->older->newer = other;
    if (by_token) (*by_token)[other->first] = other;
    if (best == old) best = other;
  }
};

// A place in the tree: a node and how many tokens of its edge lead there.
struct Locus {
  Node* node = nullptr;  // null: nowhere
  std::int64_t offset = 0;

  explicit operator bool() const { return node != nullptr; }
};

struct Step {
  Token token;
  double share;
  Locus behind;
};

struct Path {
  std::vector<Token> tokens;
  std::vector<double> probabilities;
  double score = 0.0;
  std::int64_t match_size = 0;
};

class SuffixTree {
 public:
  SuffixTree(std::int64_t max_tokens, std::int64_t max_depth)
      : max_tokens_(max_tokens), max_depth_(max_depth), open_(std::make_unique<Text>()) {
    root_.text = &nothing_;
  }

  std::int64_t size() const { return root_.count; }
  std::int64_t num_nodes() const { return std::ssize(nodes_) - num_free_; }
  std::int64_t open_match() const { return std::ssize(*open_) - unsettled_; }

  void extend(const Token* tokens, std::int64_t size) {
    for (std::int64_t i = 0; i < size; ++i) append(tokens[i]);
  }

  void close() {
    while (unsettled_ < std::ssize(*open_)) settle_next();
    if (!open_->empty()) closed_.push_back(std::move(open_));
    open_ = std::make_unique<Text>();
    unsettled_ = 0;
    locus_ = {};
    while (size() > max_tokens_) evict_suffix();
  }

  std::int64_t count(const Token* tokens, std::int64_t size) {
    const Locus found = locate(tokens, size);
    return found ? found.node->count : 0;
  }

  std::int64_t longest_match(const Token* context, std::int64_t size) {
    // Whatever is held, its own ends are held as well.
    const Token* end = context + size;
    std::int64_t low = 0, high = std::min(size, max_depth_ - 1);
    while (low < high) {
      const std::int64_t middle = (low + high + 1) / 2;
      if (locate(end - middle, middle)) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }

  Path speculate(const Token* context, std::int64_t size, std::int64_t num_tokens,
                 std::int64_t match_size) {
    const Token* end = context + size;
    if (match_size < 0) match_size = longest_match(context, size);
    Path best;
    // Longer contexts are surer, but seen less often and sooner at an end: a few sizes will do.
    while (match_size && best.score < highest_score(match_size, num_tokens)) {
      const std::int64_t matched = std::min(match_size, size);
      Path found = follow(end - matched, matched, num_tokens);
      if (found.score > best.score) best = std::move(found);
      match_size /= 2;
    }
    return best;
  }

 private:
  // Score of a path that everything counted follows: the doubt alone is left, and telescopes.
  static double highest_score(std::int64_t match_size, std::int64_t num_tokens) {
    return static_cast<double>(match_size * num_tokens) /
           static_cast<double>(match_size + num_tokens + 1);
  }

  void append(Token token) {
    open_->push_back(token);
    const bool known = static_cast<bool>(locus_);
    locus_ = onward(locus_, token);
    if (known && !locus_) settle_next();  // nothing held goes on like that
    settle_what_is_new();
    while (size() > max_tokens_) {
      evict_suffix();
      settle_what_is_new();
    }
    if (2 * std::ssize(*open_) >= max_tokens_) close();
  }

  // The most frequent path below a context.
  Path follow(const Token* context, std::int64_t size, std::int64_t limit) {
    Path path;
    Text walked(context, context + size);  // and what the path adds
    double probable = 1.0;
    for (Locus locus = locate(context, size); locus && std::ssize(path.tokens) < limit;) {
      Step step;
      if (!most_frequent(locus, step)) {
        // The window or the text ends here; the same context may be met further on.
        if (path.tokens.empty()) break;
        const std::int64_t again = std::min({size, max_depth_ / 2, std::ssize(walked)});
        locus = locate(walked.data() + walked.size() - again, again);
        if (!locus || !most_frequent(locus, step)) break;
      }
      locus = step.behind;
      const std::int64_t agreed = std::ssize(walked);
      const double probability =
          step.share * static_cast<double>(agreed) / static_cast<double>(agreed + kDoubt);
      probable *= probability;
      if (probable < kMinPathProbability) break;
      path.tokens.push_back(step.token);
      path.probabilities.push_back(probability);
      path.score += probable;
      walked.push_back(step.token);
    }
    if (!path.tokens.empty()) path.match_size = size;
    return path;
  }

  // The most frequent next token, its share, and the place behind it; false where nothing follows.
  static bool most_frequent(const Locus& locus, Step& step) {
    Node* node = locus.node;
    if (locus.offset < node->length()) {
      step = {node->at(locus.offset), 1.0, {node, locus.offset + 1}};
      return true;
    }
    if (!node->best) {
      // Of equals the newest.
      for (Node* each = node->children; each; each = each->older) {
        if (!node->best || each->count > node->best->count) node->best = each;
      }
    }
    Node* child = node->best;
    if (!child) return false;
    const double share = static_cast<double>(child->count) / static_cast<double>(node->count);
    step = {child->first, share, {child, 1}};
    return true;
  }

  // The place of these tokens; nowhere when they are not held.
  Locus locate(const Token* tokens, std::int64_t size) {
    Locus place{&root_, 0};
    std::int64_t position = 0;
    while (position < size) {
      Node* child = place.node->child(tokens[position]);
      if (!child) return {};
      place = {child, std::min(child->length(), size - position)};
      const Token* label = child->text->data() + child->start;
      if (!std::equal(label, label + place.offset, tokens + position)) return {};
      position += place.offset;
    }
    return place;
  }

  // The place one token behind another; nowhere when it is not held, or not known.
  static Locus onward(const Locus& locus, Token token) {
    if (!locus) return {};
    if (locus.offset < locus.node->length()) {
      return locus.node->at(locus.offset) == token ? Locus{locus.node, locus.offset + 1} : Locus{};
    }
    Node* child = locus.node->child(token);
    return child ? Locus{child, 1} : Locus{};
  }

  // Counts the suffixes of the open text that occurred nowhere else, or are of full depth.
  void settle_what_is_new() {
    while (open_match() >= max_depth_ || (open_match() && !locus_ && !relocate())) settle_next();
  }

  bool relocate() {
    locus_ = locate(open_->data() + unsettled_, open_match());
    return static_cast<bool>(locus_);
  }

  // Counts the open text's next suffix along its path, with a new leaf where it differs.
  void settle_next() {
    const Text& text = *open_;
    std::int64_t position = unsettled_;
    const std::int64_t deepest = position + max_depth_;
    const std::int64_t stop = std::min(deepest, std::ssize(text));
    ++unsettled_;
    locus_ = {};
    Node* node = &root_;
    ++node->count;
    while (position < stop) {
      Node* child = node->child(text[position]);
      if (!child) {
        child = new_node(text, position, deepest, 1);
        node->add(child);
        if (node->num_children == 1 || (node->best && node->best->count == 1)) node->best = child;
        return;
      }
      const std::int64_t length = child->length();
      const std::int64_t agreed = common(*child, text, position, std::min(length, stop - position));
      if (agreed < length) child = split(node, child, agreed);
      ++child->count;
      // The newest text is the last to be forgotten: an edge never outlives its tokens.
      child->text = &text;
      child->start = position;
      child->end = position + agreed;
      if (node->best && child->count >= node->best->count) node->best = child;
      node = child;
      position += agreed;
    }
  }

  // How many of an edge's first tokens are those of a text from a position on.
  static std::int64_t common(const Node& child, const Text& text, std::int64_t position,
                             std::int64_t length) {
    const Token* label = child.text->data() + child.start;
    return std::mismatch(label, label + length, text.data() + position).first - label;
  }

  // Puts a node into an edge; returns it.
  Node* split(Node* parent, Node* child, std::int64_t length) {
    Node* upper = new_node(*child->text, child->start, child->start + length, child->count);
    parent->replace(child, upper);
    child->start += length;
    child->first = child->at(0);
    upper->add(child);
    upper->best = child;
    return upper;
  }

  // Forgets the oldest suffix held; its text is closed.
  void evict_suffix() {
    const Text& text = *closed_.front();
    std::int64_t position = num_evicted_;
    const std::int64_t stop = std::min(position + max_depth_, std::ssize(text));
    locus_ = {};
    Node* parent = &root_;
    Node* node = &root_;
    --node->count;
    while (position < stop) {
      Node* child = node->child(text[position]);
      --child->count;
      if (node->best == child) node->best = nullptr;
      if (child->count == 0) {  // nobody else passed: whatever is below goes with it
        node->remove(child);
        release_all(child);
        break;
      }
      position += child->length();
      parent = node;
      node = child;
    }
    Node* left = node == &root_ ? nullptr : node->only_child();
    if (left) {
      left->start -= node->length();
      left->first = left->at(0);
      parent->replace(node, left);
      release(node);
    }
    ++num_evicted_;
    if (num_evicted_ == std::ssize(text)) {
      closed_.pop_front();
      num_evicted_ = 0;
    }
  }

  Node* new_node(const Text& text, std::int64_t start, std::int64_t end, std::int64_t count) {
    Node* node = free_;
    if (node) {
      free_ = node->older;
      --num_free_;
    } else {
      node = &nodes_.emplace_back();
    }
    *node = Node{};
    node->text = &text;
    node->start = start;
    node->end = end;
    node->count = count;
    node->first = text[start];
    return node;
  }

  void release(Node* node) {
    node->by_token.reset();
    node->older = free_;
    free_ = node;
    ++num_free_;
  }

  void release_all(Node* node) {
    std::vector<Node*> pending{node};
    while (!pending.empty()) {
      Node* next = pending.back();
      pending.pop_back();
      for (Node* each = next->children; each; each = each->older) pending.push_back(each);
      release(next);
    }
  }

  const std::int64_t max_tokens_;
  const std::int64_t max_depth_;
  const Text nothing_;
  std::deque<Node> nodes_;  // they stay where they are
  Node* free_ = nullptr;    // nodes to use again, one behind another
  std::int64_t num_free_ = 0;
  Node root_;
  std::deque<std::unique_ptr<Text>> closed_;
  std::int64_t num_evicted_ = 0;  // suffixes of the oldest closed text that are forgotten
  std::unique_ptr<Text> open_;
  std::int64_t unsettled_ = 0;  // first suffix of the open text that is not counted
  Locus locus_;                 // of that suffix, while nothing moved
};

}  // namespace

// Called from native.py alone.
extern "C" {

SuffixTree* suffix_tree_new(std::int64_t max_tokens, std::int64_t max_depth) {
  return new SuffixTree(max_tokens, max_depth);
}

void suffix_tree_delete(SuffixTree* tree) { delete tree; }

std::int64_t suffix_tree_size(SuffixTree* tree) { return tree->size(); }

std::int64_t suffix_tree_num_nodes(SuffixTree* tree) { return tree->num_nodes(); }

std::int64_t suffix_tree_open_match(SuffixTree* tree) { return tree->open_match(); }

void suffix_tree_extend(SuffixTree* tree, const Token* tokens, std::int64_t size) {
  tree->extend(tokens, size);
}

void suffix_tree_close(SuffixTree* tree) { tree->close(); }

std::int64_t suffix_tree_count(SuffixTree* tree, const Token* tokens, std::int64_t size) {
  return tree->count(tokens, size);
}

std::int64_t suffix_tree_longest_match(SuffixTree* tree, const Token* context,
                                       std::int64_t size) {
  return tree->longest_match(context, size);
}

// Returns the length of the path. `tokens` and `probabilities` hold `num_tokens` each;
// `match_size` is -1 where it is not known, and what was matched afterwards.
std::int64_t suffix_tree_speculate(SuffixTree* tree, const Token* context, std::int64_t size,
                                   std::int64_t num_tokens, std::int64_t* match_size,
                                   Token* tokens, double* probabilities, double* score) {
  const Path path = tree->speculate(context, size, num_tokens, *match_size);
  std::copy(path.tokens.begin(), path.tokens.end(), tokens);
  std::copy(path.probabilities.begin(), path.probabilities.end(), probabilities);
  *match_size = path.match_size;
  *score = path.score;
  return std::ssize(path.tokens);
}

}  // extern "C"
