// A device of ordinary memory, and an engine that doubles: what the delivered program asks of both is written, line by
// line, into the file that STAND_IN_LOG names. The plan is a text:
//   stand-in NAME_IN NAME_OUT NUM_DIMS, and for each optimization profile a line with its min, opt and max sizes.
// The output has the input's shape and twice its values (float32). STAND_IN_FAULT names something that fails.
#include <NvInfer.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

void tell(const std::string& line) {
  if (const char* path = std::getenv("STAND_IN_LOG")) std::ofstream(path, std::ios::app) << line << '\n';
}

bool has_fault(const char* name) {
  const char* fault = std::getenv("STAND_IN_FAULT");
  return fault != nullptr && std::string(fault) == name;
}

struct Plan {
  std::string input, output;
  std::vector<std::vector<Dims>> profiles;
};

struct Work {
  const float* from = nullptr;
  float* to = nullptr;
  std::size_t number = 0;
  void run() const {
    for (std::size_t i = 0; i < number; ++i) to[i] = 2 * from[i];
  }
};
Work captured;
bool is_capturing = false;

class Context final : public IExecutionContext {
 public:
  explicit Context(const Plan& plan) : plan_(plan) {}
  bool setOptimizationProfileAsync(std::int32_t index, cudaStream_t) noexcept override {
    tell("profile " + std::to_string(index));
    profile_ = index;
    work_ = {};  // Addresses have to be set again, which is the harder case.
    return true;
  }
  std::int32_t getOptimizationProfile() const noexcept override { return profile_; }
  bool setInputShape(const char* name, const Dims& dims) noexcept override {
    std::string line = std::string("shape ") + name;
    const std::vector<Dims>& ranges = plan_.profiles[static_cast<std::size_t>(profile_)];
    work_.number = 1;
    for (std::int32_t i = 0; i < dims.nbDims; ++i) {
      line += " " + std::to_string(dims.d[i]);
      if (dims.d[i] < ranges[0].d[i] || dims.d[i] > ranges[2].d[i]) return false;
      work_.number *= static_cast<std::size_t>(dims.d[i]);
    }
    tell(line);
    shape_ = dims;
    return plan_.input == name;
  }
  Dims getTensorShape(const char*) const noexcept override { return shape_; }
  bool setTensorAddress(const char* name, void* data) noexcept override {
    if (plan_.input == name) work_.from = static_cast<float*>(data);
    if (plan_.output == name) work_.to = static_cast<float*>(data);
    return plan_.input == name || plan_.output == name;
  }
  bool enqueueV3(cudaStream_t) noexcept override {
    if (work_.from == nullptr || work_.to == nullptr || has_fault("enqueue")) return false;
    tell(is_capturing ? "captured" : "enqueued");
    if (is_capturing) {
      captured = work_;
    } else {
      work_.run();
    }
    return true;
  }

 private:
  const Plan& plan_;
  std::int32_t profile_ = 0;
  Dims shape_{};
  Work work_;
};

#ifdef TRT_MAJOR_RTX
class Config final : public IRuntimeConfig {
 public:
  bool setCudaGraphStrategy(CudaGraphStrategy strategy) noexcept override {
    tell("graph strategy " + std::to_string(static_cast<int>(strategy)));
    return true;
  }
};
#endif

class Engine final : public ICudaEngine {
 public:
  explicit Engine(Plan plan) : plan_(std::move(plan)) {}
  IExecutionContext* createExecutionContext() noexcept override { return new Context(plan_); }
#ifdef TRT_MAJOR_RTX
  IRuntimeConfig* createRuntimeConfig() noexcept override { return new Config(); }
  IExecutionContext* createExecutionContext(IRuntimeConfig*) noexcept override { return new Context(plan_); }
#endif
  TensorLocation getTensorLocation(const char*) const noexcept override {
    return has_fault("location") ? TensorLocation::kHOST : TensorLocation::kDEVICE;
  }
  TensorFormat getTensorFormat(const char*) const noexcept override { return TensorFormat::kLINEAR; }
  std::int32_t getNbOptimizationProfiles() const noexcept override {
    return static_cast<std::int32_t>(plan_.profiles.size());
  }
  Dims getProfileShape(const char*, std::int32_t index, OptProfileSelector select) const noexcept override {
    return plan_.profiles[static_cast<std::size_t>(index)][static_cast<std::size_t>(select)];
  }

 private:
  Plan plan_;
};

class Runtime final : public IRuntime {
 public:
  explicit Runtime(ILogger* logger) : logger_(logger) {}
  ICudaEngine* deserializeCudaEngine(const void* data, std::size_t size) noexcept override {
    std::istringstream stream(std::string(static_cast<const char*>(data), size));
    std::string tag;
    Plan plan;
    std::int32_t num_dims = 0;
    if (!(stream >> tag >> plan.input >> plan.output >> num_dims) || tag != "stand-in") {
      logger_->log(ILogger::Severity::kERROR, "the magic tag\ndoes not match");
      return nullptr;
    }
    for (Dims dims{}; stream;) {
      std::vector<Dims> ranges;
      for (int which = 0; which < 3; ++which) {
        dims.nbDims = num_dims;
        for (std::int32_t i = 0; i < num_dims; ++i) stream >> dims.d[i];
        ranges.push_back(dims);
      }
      if (stream) plan.profiles.push_back(ranges);
    }
    return new Engine(plan);
  }
  void setEngineHostCodeAllowed(bool allowed) noexcept override { tell(allowed ? "host code" : "no host code"); }
  std::int32_t getNbDLACores() const noexcept override { return 2; }
  void setDLACore(std::int32_t core) noexcept override { tell("core " + std::to_string(core)); }

 private:
  ILogger* logger_;
};

std::int32_t num_creators = 1;

class Registry final : public IPluginRegistry {
 public:
  IPluginCreatorInterface* const* getAllCreators(std::int32_t* number) const noexcept override {
    *number = num_creators;
    return nullptr;
  }
  PluginLibraryHandle loadLibrary(const char*) noexcept override {
    tell("asked a library for its plugins");
    return nullptr;
  }
};

}  // namespace

extern "C" {
// What a library of plugins calls as it is loaded.
void stand_in_register() { ++num_creators; }

IPluginRegistry* getPluginRegistry() noexcept {
  static Registry registry;
  return &registry;
}
void* createInferRuntime_INTERNAL(void* logger, std::int32_t) noexcept {
  return new Runtime(static_cast<ILogger*>(logger));
}

const char* cudaGetErrorString(cudaError_t error) { return error == cudaErrorNoDevice ? "no GPU" : "an error"; }
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorNoDevice ? "cudaErrorNoDevice" : "cudaErrorStreamCaptureUnsupported";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return has_fault("device") ? cudaErrorNoDevice : cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  *stream = static_cast<cudaStream_t>(std::malloc(1));
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  std::free(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  if (has_fault("capture")) return cudaErrorStreamCaptureUnsupported;
  is_capturing = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  is_capturing = false;
  *graph = reinterpret_cast<cudaGraph_t>(new Work(captured));
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = reinterpret_cast<cudaGraphExec_t>(new Work(*reinterpret_cast<Work*>(graph)));
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  tell("launched");
  reinterpret_cast<Work*>(exec)->run();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Work*>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete reinterpret_cast<Work*>(exec);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, std::size_t size) {
  *memory = std::malloc(size);
  return has_fault("memory") ? cudaErrorNoDevice : cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, std::size_t size) { return cudaMalloc(memory, size); }
cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, size);
  return cudaSuccess;
}
}
