// TensorRT's library, or that of TensorRT for RTX: its words, and its plugins.
#pragma once

#include <NvInfer.h>

#include <string>

#include "engine_config.hpp"

// TensorRT for RTX has the functions of TensorRT 10 and later, and a version of its own.
#if defined(TRT_MAJOR_RTX) || NV_TENSORRT_MAJOR >= 10
#define HAS_ALL_CREATORS
#endif
#if defined(HAS_ALL_CREATORS) || (NV_TENSORRT_MAJOR == 8 && NV_TENSORRT_MINOR >= 6)
#define LOADS_LIBRARIES  // of plugins, and runtimes of other versions that engines bring
#endif

namespace trtforge {

// Keeps what the library last said of an error, or warned of before there was one, for the sentence that says what it
// means: 8.5 only warns that there is no driver.
class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* words) noexcept override;
  std::string why() const;

 private:
  std::string last_;
  bool has_error_ = false;
};

// All engines of a program share it.
Logger& logger();

// The plugins of the libraries beside the engine, each once in a process, and those that come with TensorRT.
void load_plugins(const std::string& engine, const std::vector<NamedDigest>& libraries);

}  // namespace trtforge
