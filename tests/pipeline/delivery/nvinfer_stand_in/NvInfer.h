// The few names of TensorRT's C++ API that the delivered program uses, as 10 has them, for machines without TensorRT.
// With TRT_MAJOR_RTX those of TensorRT for RTX. What they do: stand_in.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_MINOR 3

namespace nvinfer1 {

enum class TensorLocation : std::int32_t { kDEVICE = 0, kHOST = 1 };
enum class TensorFormat : std::int32_t { kLINEAR = 0, kCHW2 = 1 };
enum class OptProfileSelector : std::int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };

struct Dims {
  static constexpr std::int32_t MAX_DIMS{8};
  std::int32_t nbDims;
  std::int64_t d[MAX_DIMS];
};

class ILogger {
 public:
  enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
  virtual void log(Severity severity, const char* words) noexcept = 0;
  virtual ~ILogger() = default;
};

#ifdef TRT_MAJOR_RTX
enum class CudaGraphStrategy : std::int32_t { kDISABLED = 0, kWHOLE_GRAPH_CAPTURE = 1 };
class IRuntimeConfig {
 public:
  virtual ~IRuntimeConfig() noexcept = default;
  virtual bool setCudaGraphStrategy(CudaGraphStrategy strategy) noexcept = 0;
};
#endif

class IExecutionContext {
 public:
  virtual ~IExecutionContext() noexcept = default;
  virtual bool setOptimizationProfileAsync(std::int32_t index, cudaStream_t stream) noexcept = 0;
  virtual std::int32_t getOptimizationProfile() const noexcept = 0;
  virtual bool setInputShape(const char* name, const Dims& dims) noexcept = 0;
  virtual Dims getTensorShape(const char* name) const noexcept = 0;
  virtual bool setTensorAddress(const char* name, void* data) noexcept = 0;
  virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
};

class ICudaEngine {
 public:
  virtual ~ICudaEngine() noexcept = default;
  virtual IExecutionContext* createExecutionContext() noexcept = 0;
#ifdef TRT_MAJOR_RTX
  virtual IRuntimeConfig* createRuntimeConfig() noexcept = 0;
  virtual IExecutionContext* createExecutionContext(IRuntimeConfig* config) noexcept = 0;
#endif
  virtual TensorLocation getTensorLocation(const char* name) const noexcept = 0;
  virtual TensorFormat getTensorFormat(const char* name) const noexcept = 0;
  virtual std::int32_t getNbOptimizationProfiles() const noexcept = 0;
  virtual Dims getProfileShape(const char* name, std::int32_t index, OptProfileSelector select) const noexcept = 0;
};

class IRuntime {
 public:
  virtual ~IRuntime() noexcept = default;
  virtual ICudaEngine* deserializeCudaEngine(const void* plan, std::size_t size) noexcept = 0;
  virtual void setEngineHostCodeAllowed(bool allowed) noexcept = 0;
  virtual std::int32_t getNbDLACores() const noexcept = 0;
  virtual void setDLACore(std::int32_t core) noexcept = 0;
};

class IPluginCreatorInterface;
class IPluginRegistry {
 public:
  using PluginLibraryHandle = void*;
  virtual IPluginCreatorInterface* const* getAllCreators(std::int32_t* number) const noexcept = 0;
  virtual PluginLibraryHandle loadLibrary(const char* path) noexcept = 0;

 protected:
  virtual ~IPluginRegistry() noexcept = default;
};

}  // namespace nvinfer1

extern "C" nvinfer1::IPluginRegistry* getPluginRegistry() noexcept;
extern "C" void* createInferRuntime_INTERNAL(void* logger, std::int32_t version) noexcept;

namespace nvinfer1 {
inline IRuntime* createInferRuntime(ILogger& logger) noexcept {
  return static_cast<IRuntime*>(
      createInferRuntime_INTERNAL(&logger, NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100));
}
}  // namespace nvinfer1
