// A model's forward that was compiled ahead of time, run without the interpreter's lock.
//
// What torch offers for this in Python keeps the lock while the model computes; then nothing is sent
// or received meanwhile, and no draft arrives. Methods of a class like this one are called without.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <string>
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

 private:
  torch::inductor::AOTIModelPackageLoader loader_;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(outrider, library) {
  library.class_<Step>("Step")
      .def(torch::init<const std::string&>())
      .def("weights", &Step::weights)
      .def("bind", &Step::bind)
      .def("run", &Step::run);
}
