// A model's forward that was compiled ahead of time, run without the interpreter's lock.
//
// What torch offers for this in Python keeps the lock while the model computes; then nothing is sent
// or received meanwhile, and no draft arrives. Methods of a class like this one are called without.

#include <ATen/ops/arange.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/max.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace {

class Step : public torch::CustomClassHolder {
 public:
  explicit Step(const std::string& package) : loader_(package) {}

  std::vector<std::string> weights() { return loader_.get_constant_fqns(); }

  // Weights by name, all of them. They are read where they lie and must stay there.
  void bind(const c10::Dict<std::string, at::Tensor>& weights) {
    std::unordered_map<std::string, at::Tensor> found;
    for (const auto& entry : weights) found.emplace(entry.key(), entry.value());
    loader_.load_constants(found, /*use_inactive=*/false, /*check_full_update=*/true,
                           /*user_managed=*/true);
  }

  at::Tensor run(const std::vector<at::Tensor>& inputs) { return loader_.run(inputs).at(0); }

  // A forward, and then further ones of the token that each sequence's row scored highest, without
  // a word to the interpreter. `inputs` want the logits of the last row of each sequence; `places`
  // [steps - 1, 4, sequences] says of each further row its position, its slot, its sequence and its
  // place there. Of each step the tokens, int64, their scores, and given `least` [sequences] their
  // log-probabilities; [steps, sequences]. Then it ends as soon as each sequence has had a token of
  // less.
  std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>> run_greedily(
      std::vector<at::Tensor> inputs, const at::Tensor& places,
      const std::optional<at::Tensor>& least) {
    const int64_t later = places.size(0), sequences = places.size(2);
    std::vector<at::Tensor> tokens, scores, log_probs;
    const auto every = at::arange(sequences, places.options());
    auto ended = at::zeros({sequences}, at::kBool);
    for (int64_t step = 0;; step++) {
      const auto logits = run(inputs)[0];
      const auto [score, token] = at::max(logits, -1);
      tokens.push_back(token);
      scores.push_back(score);
      if (least) {
        log_probs.push_back(score.sub(at::logsumexp(logits, -1)));
        ended.logical_or_(log_probs.back().lt(*least));
      }
      if (step == later || ended.all().item<bool>()) break;
      const auto where = places[step];
      inputs[0] = token.unsqueeze(0);
      inputs[1] = where[0].unsqueeze(0);
      inputs[2] = where[1];
      inputs[3] = where.slice(0, 2);
      inputs[5] = every;
    }
    return {at::stack(tokens), at::stack(scores),
            least ? std::optional(at::stack(log_probs)) : std::nullopt};
  }

 private:
  torch::inductor::AOTIModelPackageLoader loader_;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(outrider, library) {
  library.class_<Step>("Step")
      .def(torch::init<const std::string&>())
      .def("weights", &Step::weights)
      .def("bind", &Step::bind)
      .def("run", &Step::run)
      .def("run_greedily", &Step::run_greedily);
}
