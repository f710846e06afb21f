// The engine, loaded: tensors in, tensors out.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine_config.hpp"

namespace trtforge {

struct ModelOptions {
  int num_threads = 0;     // of a runtime on the CPU; 0: one for each core
  bool cuda_graph = true;  // of one on the GPU: whether queries of the same shapes are handed over as a graph
};

// One query at a time; two threads need two models.
class Model {
 public:
  // The engine's file is compared with what this program was written for before the runtime sees it.
  explicit Model(const std::string& engine, const ModelOptions& options = {});
  ~Model();
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;

  // In the order of engine_config().inputs: samples as the plan has them stored, as the engine takes them.
  std::vector<Tensor> preprocess(std::vector<Tensor> samples) const;

  // In the order of engine_config().inputs and .outputs.
  std::vector<Tensor> infer(const std::vector<Tensor>& inputs);

  const std::vector<std::string>& notes() const;  // what happened that a user should know, in sentences

 private:
  class Runtime;
  std::unique_ptr<Runtime> runtime_;
};

// That the tensors are of the types and shapes of the engine's inputs.
void check_inputs(const std::vector<Tensor>& inputs);

}  // namespace trtforge
