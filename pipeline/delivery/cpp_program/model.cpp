// What a model does whatever its runtime is.
#include "model.hpp"

#include <algorithm>
#include <utility>

namespace trtforge {

std::vector<Tensor> Model::preprocess(std::vector<Tensor> samples) const {
  const EngineConfig& config = engine_config();
  for (std::size_t i = 0; i < std::min(samples.size(), config.inputs.size()); ++i) {
    const std::string& name = config.inputs[i].name;
    const auto end = config.preprocessed.end();
    if (std::find(config.preprocessed.begin(), end, name) == end) continue;
    samples[i] = preprocessed(std::move(samples[i]), config.preprocess, "input '" + name + "'");
  }
  return samples;
}

void check_inputs(const std::vector<Tensor>& inputs) {
  const std::vector<TensorSpec>& specs = engine_config().inputs;
  if (inputs.size() != specs.size()) {
    throw Error(kUsage, "the engine takes " + std::to_string(specs.size()) + " inputs, " +
                            std::to_string(inputs.size()) + " are given; give one of each name");
  }
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const Tensor& tensor = inputs[i];
    const TensorSpec& spec = specs[i];
    bool fits = tensor.type == spec.type && tensor.shape.size() == spec.shape.size();
    for (std::size_t k = 0; fits && k < spec.shape.size(); ++k) {
      fits = spec.shape[k] == kDynamic || spec.shape[k] == tensor.shape[k];
    }
    if (!fits) {
      throw Error(kUsage, "input '" + spec.name + "' is " + name_of(tensor.type) + " " + text_of(tensor.shape) +
                              ", the engine takes " + name_of(spec.type) + " " + text_of(spec.shape) + "; convert it");
    }
  }
}

}  // namespace trtforge
