// The engine in ONNX Runtime, on the CPU, as trtforge runs it.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <cstdlib>
#include <cstring>

#include "model.hpp"
#include "signature.hpp"

namespace trtforge {
namespace {

struct ElementType {
  Type type;
  ONNXTensorElementDataType element;
};
constexpr ElementType kElements[] = {
    {Type::kBool, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL},     {Type::kUint8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
    {Type::kUint16, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16}, {Type::kUint32, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32},
    {Type::kUint64, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64}, {Type::kInt8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8},
    {Type::kInt16, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16},   {Type::kInt32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},
    {Type::kInt64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},   {Type::kFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
    {Type::kFloat32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}, {Type::kFloat64, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE},
};

ONNXTensorElementDataType element_of(Type type) { return kElements[static_cast<std::size_t>(type)].element; }

Type type_from(ONNXTensorElementDataType element, const std::string& name) {
  for (const ElementType& entry : kElements) {
    if (entry.element == element) return entry.type;
  }
  throw Error(kRefused, "output '" + name + "' is of a type that this program has no name for; cast it in the model");
}

// The library may be older than the headers.
void init_library() {
  const OrtApi* api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    throw Error(kUnavailable, std::string("ONNX Runtime: version ") + OrtGetApiBase()->GetVersionString() +
                                  " is older than the headers that this program was compiled with (API version " +
                                  std::to_string(ORT_API_VERSION) + "); install a newer one");
  }
  Ort::InitApi(api);
}

std::string words_of(const Ort::Exception& error) {
  std::string words = error.what();
  for (char& letter : words) {
    if (letter == '\n' || letter == '\r') letter = ' ';
  }
  return words;
}

Ort::Env quiet_env() {
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // From 1.29 on it would leave an id below the home folder.
  init_library();
  return Ort::Env(ORT_LOGGING_LEVEL_FATAL, "trtforge");  // Errors come back as exceptions.
}

Ort::SessionOptions session_options(int num_threads) {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(num_threads).SetInterOpNumThreads(1).SetExecutionMode(ORT_SEQUENTIAL);
  options.AddConfigEntry("session.force_spinning_stop", "1");
  return options;
}

}  // namespace

class Model::Runtime {
 public:
  Runtime(const std::string& engine, const ModelOptions& options)
      : bytes_(checked_engine(engine, engine_config())), env_(quiet_env()) {
    try {
      const Ort::SessionOptions settings = session_options(options.num_threads);
      if (engine_config().weights.empty()) {
        session_ = Ort::Session(env_, bytes_.data(), bytes_.size(), settings);
      } else {  // Files of weights are looked for beside the model's.
        session_ = Ort::Session(env_, engine.c_str(), settings);
      }
    } catch (const Ort::Exception& error) {
      throw Error(kRefused, engine + ": ONNX Runtime refuses the model (" + words_of(error) + "); update it");
    }
    bytes_.clear();
    bytes_.shrink_to_fit();
    for (const TensorSpec& spec : engine_config().inputs) input_names_.push_back(spec.name.c_str());
    for (const TensorSpec& spec : engine_config().outputs) output_names_.push_back(spec.name.c_str());
  }

  std::vector<Tensor> infer(const std::vector<Tensor>& inputs) {
    check_inputs(inputs);
    std::vector<Ort::Value> values;
    for (const Tensor& tensor : inputs) {  // Their memory is used as it is; ONNX Runtime only reads it.
      values.push_back(Ort::Value::CreateTensor(memory_, const_cast<std::uint8_t*>(tensor.bytes.data()),
                                                tensor.bytes.size(), tensor.shape.data(), tensor.shape.size(),
                                                element_of(tensor.type)));
    }
    try {
      return tensors_from(session_.Run(Ort::RunOptions{nullptr}, input_names_.data(), values.data(), values.size(),
                                       output_names_.data(), output_names_.size()));
    } catch (const Ort::Exception& error) {
      throw Error(kRefused, "ONNX Runtime: execution failed (" + words_of(error) + "); change the inputs");
    }
  }

  const std::vector<std::string>& notes() const { return notes_; }

 private:
  std::vector<Tensor> tensors_from(const std::vector<Ort::Value>& values) const {
    std::vector<Tensor> tensors;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (!values[i].IsTensor()) {
        throw Error(kRefused, std::string("output '") + output_names_[i] + "' is no tensor; change the model");
      }
      const Ort::TensorTypeAndShapeInfo info = values[i].GetTensorTypeAndShapeInfo();
      Tensor tensor(type_from(info.GetElementType(), output_names_[i]), info.GetShape());
      if (!tensor.bytes.empty()) std::memcpy(tensor.bytes.data(), values[i].GetTensorRawData(), tensor.bytes.size());
      tensors.push_back(std::move(tensor));
    }
    return tensors;
  }

  std::vector<std::uint8_t> bytes_;
  Ort::Env env_;
  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  Ort::Session session_{nullptr};
  std::vector<const char*> input_names_, output_names_;
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
