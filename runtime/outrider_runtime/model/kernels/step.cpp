// A model's forward that was compiled ahead of time, run without the interpreter's lock.
//
// What torch offers for this in Python keeps the lock while the model computes; then nothing is sent
// or received meanwhile, and no draft arrives. Methods of a class like this one are called without.

#include <ATen/ops/arange.h>
#include <ATen/ops/max.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/custom_class.h>
#include <torch/library.h>

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
  // place there. Of each step the tokens, int64, and their scores; [steps, sequences].
  std::tuple<at::Tensor, at::Tensor> run_greedily(std::vector<at::Tensor> inputs,
                                                  const at::Tensor& places) {
    const int64_t later = places.size(0), sequences = places.size(2);
    std::vector<at::Tensor> tokens, scores;
    const auto every = at::arange(sequences, places.options());
    for (int64_t step = 0;; step++) {
      const auto [score, token] = at::max(run(inputs)[0], -1);
      tokens.push_back(token);
      scores.push_back(score);
      if (step == later) return {at::stack(tokens), at::stack(scores)};
      const auto where = places[step];
      inputs[0] = token.unsqueeze(0);
      inputs[1] = where[0].unsqueeze(0);
      inputs[2] = where[1];
      inputs[3] = where.slice(0, 2);
      inputs[5] = every;
    }
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
