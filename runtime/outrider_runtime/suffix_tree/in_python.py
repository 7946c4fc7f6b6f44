"""The suffix tree where there is no compiler, and what the compiled one is compared with.

A compressed trie of every window of `max_depth` tokens, with the number of its occurrences at each
node. Texts are appended token by token and forgotten oldest first, a suffix for each that comes
once the tree is full.

Only one text is open at a time. Its newest suffixes occurred before, else they would be counted: as
long as the text goes on like something held, they need no node of their own. So a token costs about
two walks from the root, whatever the length of the texts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from outrider_runtime.suffix_tree.speculation import MAX_DEPTH, NOTHING, Speculation

_MIN_PATH_PROBABILITY = 0.1
"""A path ends before it becomes less probable than this."""

_DOUBT = 2
"""Of texts that agreed for `n` tokens so many in `n + 2` agree in the next one, too: about what is
seen in code and prose, and the rule of succession for a run without an exception, with a prior that
expects one."""


class _Node:
    """The end of an edge. The edge's tokens are a stretch of the last text that went along it."""

    __slots__ = ("best", "children", "count", "end", "start", "tokens")

    def __init__(self, tokens: list[int], start: int, end: int, count: int) -> None:
        self.tokens = tokens
        self.start = start
        self.end = end  # of a leaf it may lie ahead: the leaf grows with its text
        self.count = count  # suffixes that pass or end here
        self.children: dict[int, _Node] | None = None
        self.best: _Node | None = None  # child of the highest count; None: not known

    @property
    def length(self) -> int:
        """Tokens of the edge."""
        return min(self.end, len(self.tokens)) - self.start

    def only_child(self) -> _Node | None:
        """The child that all suffixes go on to, if there is one."""
        if self.children is None or len(self.children) != 1:
            return None
        (child,) = self.children.values()
        return child if child.count == self.count else None


_Locus = tuple[_Node, int]
"""A place in the tree: a node and how many tokens of its edge lead there."""


class PythonSuffixTree:
    """Windows of recent texts, with counts."""

    def __init__(self, *, max_tokens: int, max_depth: int = MAX_DEPTH) -> None:
        """Start empty.

        Args:
            max_tokens: Suffixes, that is tokens, held at most. Half of it is the longest text: what
                is longer is cut.
            max_depth: Longest window, in tokens.

        Raises:
            ValueError: `max_depth` is less than 2 or `max_tokens` less than twice as much.
        """
        if max_depth < 2 or max_tokens < 2 * max_depth:
            raise ValueError(f"a depth of {max_depth} does not fit {max_tokens} tokens")
        self._max_tokens = max_tokens
        self._max_depth = max_depth
        self._root = _Node([], 0, 0, 0)
        self._root.children = {}
        self._closed: deque[list[int]] = deque()
        self._num_evicted = 0  # suffixes of the oldest closed text that are forgotten
        self._open: list[int] = []
        self._unsettled = 0  # first suffix of the open text that is not counted
        self._locus: _Locus | None = None  # of that suffix, while nothing moved

    def __len__(self) -> int:
        """Suffixes held; at most `max_tokens`, and at most two nodes for each."""
        return self._root.count

    @property
    def num_nodes(self) -> int:
        """Nodes below the root. Walks the whole tree."""
        pending, found = [self._root], -1
        while pending:
            found += 1
            pending += (pending.pop().children or {}).values()
        return found

    @property
    def open_match(self) -> int:
        """Tokens at the end of the open text that occurred before, at most `max_depth` - 1."""
        return len(self._open) - self._unsettled

    def extend(self, token_ids: Iterable[int]) -> None:
        """Append to the open text."""
        for token_id in token_ids:
            self._open.append(token_id)
            known = self._locus is not None
            self._locus = self._onward(self._locus, token_id)
            if known and self._locus is None:
                self._settle_next()  # nothing held goes on like that
            self._settle_what_is_new()
            while len(self) > self._max_tokens:
                self._evict_suffix()
                self._settle_what_is_new()
            if 2 * len(self._open) >= self._max_tokens:
                self.close()

    def close(self) -> None:
        """End the open text; the next token begins another."""
        while self._unsettled < len(self._open):
            self._settle_next()
        if self._open:
            self._closed.append(self._open)
        self._open = []
        self._unsettled = 0
        self._locus = None
        while len(self) > self._max_tokens:
            self._evict_suffix()

    def count(self, token_ids: Sequence[int]) -> int:
        """Counted suffixes that begin with these tokens, at most `max_depth` of them."""
        locus = self._locate(list(token_ids))
        return locus[0].count if locus else 0

    def longest_match(self, context: Sequence[int]) -> int:
        """How many tokens at the end of a context are held somewhere, at most `max_depth` - 1."""
        # Whatever is held, its own ends are held as well.
        context = list(context[1 - self._max_depth :])
        low, high = 0, len(context)
        while low < high:
            middle = (low + high + 1) // 2
            if self._locate(context[-middle:]) is None:
                high = middle - 1
            else:
                low = middle
        return low

    def speculate(
        self, context: Sequence[int], num_tokens: int, *, match_size: int | None = None
    ) -> Speculation:
        """The continuation of the highest score, over several sizes of matched context.

        Args:
            context: The last tokens of a text.
            num_tokens: Most tokens wanted.
            match_size: How many of the context's last tokens are held; None to find out. For the
                end of the open text it is `open_match`.
        """
        size = self.longest_match(context) if match_size is None else match_size
        best = NOTHING
        # Longer contexts are surer, but seen less often and sooner at an end: a few sizes will do.
        while size and best.score < _highest_score(size, num_tokens):
            found = self._follow(list(context[-size:]), num_tokens)
            if found.score > best.score:
                best = found
            size //= 2
        return best

    def _follow(self, context: list[int], limit: int) -> Speculation:
        """The most frequent path below a context."""
        locus = self._locate(context)
        path: list[int] = []
        probabilities: list[float] = []
        probable, score = 1.0, 0.0
        while locus is not None and len(path) < limit:
            step = self._most_frequent(locus)
            if step is None:
                # The window or the text ends here; the same context may be met further on.
                size = min(len(context), self._max_depth // 2)
                again = self._locate([*context, *path][-size:]) if path else None
                step = None if again is None else self._most_frequent(again)
                if step is None:
                    break
            token_id, share, locus = step
            agreed = len(context) + len(path)
            probability = share * agreed / (agreed + _DOUBT)
            probable *= probability
            if probable < _MIN_PATH_PROBABILITY:
                break
            path.append(token_id)
            probabilities.append(probability)
            score += probable
        return Speculation(path, probabilities, score, len(context)) if path else NOTHING

    def _most_frequent(self, locus: _Locus) -> tuple[int, float, _Locus] | None:
        """The most frequent next token, its share, and the place behind it."""
        node, offset = locus
        if offset < node.length:
            return node.tokens[node.start + offset], 1.0, (node, offset + 1)
        child = node.best
        if child is None and node.children:
            # Of equals the newest, which was inserted last.
            child = node.best = max(reversed(node.children.values()), key=_count)
        if child is None:
            return None
        return child.tokens[child.start], child.count / node.count, (child, 1)

    def _locate(self, token_ids: list[int]) -> _Locus | None:
        """The place of these tokens; None when they are not held."""
        node, position, stop = self._root, 0, len(token_ids)
        offset = 0
        while position < stop:
            child = node.children and node.children.get(token_ids[position])
            if not child:
                return None
            start = child.start
            offset = min(child.length, stop - position)
            if offset > 1:
                label = child.tokens[start : start + offset]
                if label != token_ids[position : position + offset]:
                    return None
            node = child
            position += offset
        return node, offset

    def _onward(self, locus: _Locus | None, token_id: int) -> _Locus | None:
        """The place one token behind another; None when it is not held, or not known."""
        if locus is None:
            return None
        node, offset = locus
        if offset < node.length:
            return (node, offset + 1) if node.tokens[node.start + offset] == token_id else None
        child = node.children and node.children.get(token_id)
        return (child, 1) if child else None

    def _settle_what_is_new(self) -> None:
        """Count the suffixes of the open text that occurred nowhere else, or are of full depth."""
        while self.open_match >= self._max_depth or (
            self.open_match and self._locus is None and not self._relocate()
        ):
            self._settle_next()

    def _relocate(self) -> bool:
        self._locus = self._locate(self._open[self._unsettled :])
        return self._locus is not None

    def _settle_next(self) -> None:
        """Count the open text's next suffix along its path, with a new leaf where it differs."""
        tokens, position = self._open, self._unsettled
        deepest = position + self._max_depth
        stop = min(deepest, len(tokens))
        self._unsettled += 1
        self._locus = None
        node = self._root
        node.count += 1
        while position < stop:
            children = node.children
            if children is None:
                children = node.children = {}
            child = children.get(tokens[position])
            if child is None:
                child = children[tokens[position]] = _Node(tokens, position, deepest, 1)
                if len(children) == 1 or (node.best is not None and node.best.count == 1):
                    node.best = child
                return
            length = child.length
            agreed = _common(child, tokens, position, min(length, stop - position))
            if agreed < length:
                child = self._split(node, child, agreed)
            child.count += 1
            # The newest text is the last to be forgotten: an edge never outlives its tokens.
            child.tokens, child.start, child.end = tokens, position, position + agreed
            if node.best is not None and child.count >= node.best.count:
                node.best = child
            node = child
            position += agreed

    def _split(self, parent: _Node, child: _Node, length: int) -> _Node:
        """Put a node into an edge; returns it."""
        upper = _Node(child.tokens, child.start, child.start + length, child.count)
        child.start += length
        upper.children = {child.tokens[child.start]: child}
        upper.best = child
        _replace_child(parent, child, upper)
        return upper

    def _evict_suffix(self) -> None:
        """Forget the oldest suffix held; its text is closed."""
        tokens = self._closed[0]
        position = self._num_evicted
        stop = min(position + self._max_depth, len(tokens))
        self._locus = None
        parent, node = self._root, self._root
        node.count -= 1
        while position < stop:
            assert node.children is not None
            child = node.children[tokens[position]]
            child.count -= 1
            if node.best is child:
                node.best = None
            if child.count == 0:  # nobody else passed: nothing below is left either
                del node.children[tokens[position]]
                break
            position += child.length
            parent, node = node, child
        if node is not self._root and (child_left := node.only_child()) is not None:
            child_left.start -= node.length
            _replace_child(parent, node, child_left)
        self._num_evicted += 1
        if self._num_evicted == len(tokens):
            self._closed.popleft()
            self._num_evicted = 0


def _highest_score(match_size: int, num_tokens: int) -> float:
    """Score of a path that everything counted follows: the doubt alone is left, and telescopes."""
    return match_size * num_tokens / (match_size + num_tokens + 1)


def _count(node: _Node) -> int:
    return node.count


def _common(child: _Node, tokens: list[int], position: int, length: int) -> int:
    """How many of the first `length` tokens of an edge are those of a text from a position on."""
    label, start = child.tokens, child.start
    if label[start : start + length] == tokens[position : position + length]:
        return length
    agreed = 1  # the first token led here
    while label[start + agreed] == tokens[position + agreed]:
        agreed += 1
    return agreed


def _replace_child(parent: _Node, old: _Node, new: _Node) -> None:
    assert parent.children is not None
    parent.children[new.tokens[new.start]] = new
    if parent.best is old:
        parent.best = new
