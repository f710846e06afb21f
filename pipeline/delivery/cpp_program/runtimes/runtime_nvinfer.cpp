// The engine in TensorRT 8.5 and later, or in TensorRT for RTX, on GPU 0.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "cuda_memory.hpp"
#include "model.hpp"
#include "nvinfer_library.hpp"
#include "signature.hpp"

namespace trtforge {
namespace {

using nvinfer1::Dims;
using nvinfer1::OptProfileSelector;

Shape shape_from(const Dims& dims) { return Shape(dims.d, dims.d + std::max(dims.nbDims, 0)); }

Dims dims_from(const Shape& shape) {
  Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  if (shape.size() > static_cast<std::size_t>(Dims::MAX_DIMS)) {
    throw Error(kUsage, "a shape of " + std::to_string(shape.size()) + " dimensions is too long; give another");
  }
  for (std::size_t i = 0; i < shape.size(); ++i) {
    dims.d[i] = static_cast<std::remove_reference_t<decltype(dims.d[0])>>(shape[i]);
  }
  return dims;
}

// The shapes that an optimization profile takes, of each input.
struct Range {
  Shape min, opt, max;
  bool holds(const Shape& shape) const {
    bool fits = shape.size() == min.size();
    for (std::size_t i = 0; fits && i < shape.size(); ++i) fits = min[i] <= shape[i] && shape[i] <= max[i];
    return fits;
  }
};
using Profile = std::vector<Range>;

// One input or output: its memory on both sides, for the largest shapes, and how much of it the present shape uses.
struct Port {
  TensorSpec spec;
  DeviceMemory device;
  PinnedMemory host;
  Shape shape;
  std::size_t num_bytes = 0;
};

}  // namespace

class Model::Runtime {
 public:
  Runtime(const std::string& engine, const ModelOptions& options)
      : path_(engine), with_graph_(options.cuda_graph && engine_config().cuda_graph) {
    const std::vector<std::uint8_t> plan = checked_engine(engine, engine_config());
    int num_devices = 0;
    check_cuda(cudaGetDeviceCount(&num_devices), "the GPU", kUnavailable);
    check_cuda(cudaSetDevice(0), "the GPU", kUnavailable);
    load(plan);
    stream_ = new_stream();
    read_ports();
    read_profiles();
    take_memory();
  }

  ~Runtime() {
    if (stream_) cudaStreamSynchronize(stream_.get());
  }

  std::vector<Tensor> infer(const std::vector<Tensor>& inputs) {
    check_inputs(inputs);
    std::vector<Shape> shapes;
    for (const Tensor& tensor : inputs) shapes.push_back(tensor.shape);
    if (shapes != shapes_) set_shapes(shapes);
    if (with_graph_ && num_runs_ == 1) capture();
    queue(inputs);
    ++num_runs_;
    check_cuda(cudaStreamSynchronize(stream_.get()), path_ + ": execution failed");
    std::vector<Tensor> tensors;
    for (const Port& port : outputs_) {
      tensors.emplace_back(port.spec.type, port.shape);
      if (port.num_bytes != 0) std::memcpy(tensors.back().bytes.data(), port.host.get(), port.num_bytes);
    }
    return tensors;
  }

  const std::vector<std::string>& notes() const { return notes_; }

 private:
  void load(const std::vector<std::uint8_t>& plan) {
    load_plugins(path_, engine_config().plugins);
    runtime_.reset(nvinfer1::createInferRuntime(logger()));
    if (!runtime_) {
      throw Error(kUnavailable, "TensorRT: has no runtime here (" + logger().why() + "); see its GPU and driver");
    }
    if (engine_config().version_compatible) {
#ifdef LOADS_LIBRARIES
      runtime_->setEngineHostCodeAllowed(true);
#endif
    }
    if (engine_config().dla_core >= 0) {  // An engine does not know its core.
      if (engine_config().dla_core >= runtime_->getNbDLACores()) {
        throw Error(kUnavailable,
                    path_ + ": was built for a DLA core that this machine does not have; build it again here");
      }
      runtime_->setDLACore(engine_config().dla_core);
    }
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine_) throw Error(kRefused, path_ + ": is refused (" + logger().why() + "); build it again on this device");
    context_.reset(new_context());
    if (!context_) {
      throw Error(kUnavailable, path_ + ": has no room to run (" + logger().why() + "); free some of the GPU's memory");
    }
  }

  nvinfer1::IExecutionContext* new_context() {
#ifdef TRT_MAJOR_RTX  // It captures by itself, for it knows when its kernels are settled.
    const auto strategy =
        with_graph_ ? nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE : nvinfer1::CudaGraphStrategy::kDISABLED;
    with_graph_ = false;
    const std::unique_ptr<nvinfer1::IRuntimeConfig> config(engine_->createRuntimeConfig());
    if (!config || !config->setCudaGraphStrategy(strategy)) return nullptr;
    return engine_->createExecutionContext(config.get());
#else
    return engine_->createExecutionContext();
#endif
  }

  void read_ports() {
    for (const TensorSpec& spec : engine_config().inputs) inputs_.push_back(port_of(spec));
    for (const TensorSpec& spec : engine_config().outputs) outputs_.push_back(port_of(spec));
  }

  Port port_of(const TensorSpec& spec) const {
    const char* name = spec.name.c_str();
    if (engine_->getTensorLocation(name) != nvinfer1::TensorLocation::kDEVICE) {
      throw Error(kRefused, path_ + ": '" + spec.name + "' lies in host memory; make it a constant of the model");
    }
    if (engine_->getTensorFormat(name) != nvinfer1::TensorFormat::kLINEAR) {
      throw Error(kRefused, path_ + ": '" + spec.name + "' is not laid out line by line; build without formats of it");
    }
    Port port;
    port.spec = spec;
    return port;
  }

  void read_profiles() {
    for (std::int32_t index = 0; index < engine_->getNbOptimizationProfiles(); ++index) {
      Profile profile;
      for (const Port& port : inputs_) {
        const char* name = port.spec.name.c_str();
        const Shape& shape = port.spec.shape;
        if (std::find(shape.begin(), shape.end(), kDynamic) == shape.end()) {
          profile.push_back({shape, shape, shape});
        } else {
          profile.push_back({shape_from(engine_->getProfileShape(name, index, OptProfileSelector::kMIN)),
                             shape_from(engine_->getProfileShape(name, index, OptProfileSelector::kOPT)),
                             shape_from(engine_->getProfileShape(name, index, OptProfileSelector::kMAX))});
        }
      }
      profiles_.push_back(std::move(profile));
    }
  }

  // Once, for the largest shapes of any profile.
  void take_memory() {
    for (std::size_t index = 0; index < profiles_.size(); ++index) {
      std::vector<Shape> largest;
      for (const Range& range : profiles_[index]) largest.push_back(range.max);
      tell_shapes(index, largest);
      for (Port* port : ports()) port->num_bytes = std::max(port->num_bytes, bytes_of(*port));
    }
    for (Port* port : ports()) {
      port->device = device_memory(std::max<std::size_t>(port->num_bytes, 1));
      port->host = pinned_memory(std::max<std::size_t>(port->num_bytes, 1));
    }
    tell_addresses();
  }

  std::vector<Port*> ports() {
    std::vector<Port*> all;
    for (Port& port : inputs_) all.push_back(&port);
    for (Port& port : outputs_) all.push_back(&port);
    return all;
  }

  Shape present_shape(const Port& port) const {
    Shape shape = shape_from(context_->getTensorShape(port.spec.name.c_str()));
    if (std::find(shape.begin(), shape.end(), kDynamic) != shape.end()) {
      throw Error(kRefused, path_ + ": the shape of output '" + port.spec.name + "', " + text_of(shape) +
                                ", depends on the data; cut the model before that node");
    }
    return shape;
  }

  std::size_t bytes_of(const Port& port) const { return num_items(present_shape(port)) * size_of(port.spec.type); }

  void tell_addresses() {
    for (Port* port : ports()) {
      if (port->device && !context_->setTensorAddress(port->spec.name.c_str(), port->device.get())) {
        throw Error(kRefused,
                    path_ + ": '" + port->spec.name + "' is refused (" + logger().why() + "); build it again");
      }
    }
  }

  void tell_shapes(std::size_t index, const std::vector<Shape>& shapes) {
    if (static_cast<std::int32_t>(index) != context_->getOptimizationProfile()) {
      if (!context_->setOptimizationProfileAsync(static_cast<std::int32_t>(index), stream_.get())) {
        throw Error(kRefused, path_ + ": optimization profile " + std::to_string(index) + " cannot be used (" +
                                  logger().why() + "); build it again");
      }
      check_cuda(cudaStreamSynchronize(stream_.get()), path_ + ": its profile cannot be used");
      tell_addresses();
    }
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      const std::string& name = inputs_[i].spec.name;
      if (!context_->setInputShape(name.c_str(), dims_from(shapes[i]))) {
        throw Error(kUsage, path_ + ": input '" + name + "' is refused in shape " + text_of(shapes[i]) + " (" +
                                logger().why() + "); give another, or build with another shape range");
      }
    }
  }

  // Of those that hold the shapes: the one whose usual shapes they are, else the narrowest.
  std::size_t profile_for(const std::vector<Shape>& shapes) const {
    std::size_t best = profiles_.size(), least = 0;
    for (std::size_t index = 0; index < profiles_.size(); ++index) {
      bool holds = true, is_usual = true;
      std::size_t room = 0;
      for (std::size_t i = 0; i < shapes.size(); ++i) {
        const Range& range = profiles_[index][i];
        holds = holds && range.holds(shapes[i]);
        is_usual = is_usual && range.opt == shapes[i];
        room += num_items(range.max);
      }
      if (!holds) continue;
      if (is_usual) return index;
      if (best == profiles_.size() || room < least) best = index, least = room;
    }
    if (best == profiles_.size()) throw Error(kUsage, outside(shapes));
    return best;
  }

  std::string outside(const std::vector<Shape>& shapes) const {
    std::string text = path_ + ": no optimization profile holds";
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      text += " '" + inputs_[i].spec.name + "' in shape " + text_of(shapes[i]) + " (they go";
      for (const Profile& profile : profiles_) {
        text += " from " + text_of(profile[i].min) + " to " + text_of(profile[i].max);
      }
      text += ")";
    }
    return text + "; change the batch, or build with another shape range";
  }

  void set_shapes(const std::vector<Shape>& shapes) {
    const std::size_t profile = profile_for(shapes);
    shapes_.clear();
    graph_ = GraphExec();
    tell_shapes(profile, shapes);
    for (Port* port : ports()) {
      port->shape = present_shape(*port);
      port->num_bytes = bytes_of(*port);
    }
    shapes_ = shapes;
    num_runs_ = 0;
  }

  // After one run in these shapes, as TensorRT asks for: the first may still set something up.
  void capture() {
    cudaGraph_t captured = nullptr;
    cudaError_t status = cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal);
    const bool is_queued = status == cudaSuccess && context_->enqueueV3(stream_.get());
    if (status == cudaSuccess) status = cudaStreamEndCapture(stream_.get(), &captured);
    const Graph graph(captured);
    if (is_queued && status == cudaSuccess && graph) {
      status = cudaGraphInstantiateWithFlags(graph_.address(), graph.get(), 0);
      if (status == cudaSuccess) return;
    }
    graph_ = GraphExec();
    with_graph_ = false;
    cudaGetLastError();  // Told here, and not again by the next call.
    notes_.push_back(std::string("CUDA graph: not captured (") + cudaGetErrorName(status) + "; " + logger().why() +
                     "); queries are run kernel by kernel.");
  }

  void queue(const std::vector<Tensor>& inputs) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const Port& port = inputs_[i];
      if (port.num_bytes == 0) continue;
      std::memcpy(port.host.get(), inputs[i].bytes.data(), port.num_bytes);
      check_cuda(
          cudaMemcpyAsync(port.device.get(), port.host.get(), port.num_bytes, cudaMemcpyHostToDevice, stream_.get()),
          path_ + ": copying to the GPU failed");
    }
    if (graph_) {
      check_cuda(cudaGraphLaunch(graph_.get(), stream_.get()), path_ + ": execution failed");
    } else if (!context_->enqueueV3(stream_.get())) {
      throw Error(kRefused, path_ + ": execution failed (" + logger().why() + "); build it again on this device");
    }
    for (const Port& port : outputs_) {
      if (port.num_bytes == 0) continue;
      check_cuda(
          cudaMemcpyAsync(port.host.get(), port.device.get(), port.num_bytes, cudaMemcpyDeviceToHost, stream_.get()),
          path_ + ": copying from the GPU failed");
    }
  }

  // In this order: what is declared first goes last.
  std::string path_;
  bool with_graph_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  Stream stream_;
  std::vector<Port> inputs_, outputs_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  GraphExec graph_;
  std::vector<Profile> profiles_;
  std::vector<Shape> shapes_;
  int num_runs_ = 0;
  std::vector<std::string> notes_;
};

Model::Model(const std::string& engine, const ModelOptions& options)
    : runtime_(std::make_unique<Runtime>(engine, options)) {}
Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
std::vector<Tensor> Model::infer(const std::vector<Tensor>& inputs) { return runtime_->infer(inputs); }
const std::vector<std::string>& Model::notes() const { return runtime_->notes(); }

}  // namespace trtforge
