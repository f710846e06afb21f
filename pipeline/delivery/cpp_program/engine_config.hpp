// What the program knows of its engine; the values stand in engine_config.cpp, which `trtforge deliver` writes.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "preprocess.hpp"
#include "tensor.hpp"

namespace trtforge {

struct TensorSpec {
  std::string name;
  Type type;
  Shape shape;  // kDynamic where it may vary
};

struct NamedDigest {
  std::string name;    // of a file beside the engine
  std::string sha256;  // hexadecimal
};

struct EngineConfig {
  std::string name;    // of the baseline
  std::string engine;  // name of its file
  std::string sha256;
  std::vector<NamedDigest> weights;  // files of weights beside an ONNX file
  std::vector<NamedDigest> plugins;  // libraries that are loaded before the engine
  std::vector<std::array<std::uint8_t, 32>>
      trusted_keys;  // of Ed25519; where there are any, one of them must have signed
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  Preprocess preprocess;
  std::vector<std::string> preprocessed;  // names of the inputs that it is done to
  std::int32_t dla_core = -1;             // -1: the GPU
  bool cuda_graph = true;
  bool version_compatible = false;  // the engine brings the runtime of the version that built it
};

const EngineConfig& engine_config();

}  // namespace trtforge
