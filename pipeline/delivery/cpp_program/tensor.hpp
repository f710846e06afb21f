// Arrays as the program passes them on, and its errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace trtforge {

enum Status { kUsage = 2, kUnavailable = 3, kRefused = 4 };

// One sentence, and the status that the program ends with.
class Error : public std::runtime_error {
 public:
  Error(Status status, const std::string& sentence) : std::runtime_error(sentence), status_(status) {}
  Status status() const { return status_; }

 private:
  Status status_;
};

enum class Type {
  kBool,
  kUint8,
  kUint16,
  kUint32,
  kUint64,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kFloat16,
  kFloat32,
  kFloat64
};

// A half-precision float, by its bits: all that is done with one is to convert it.
struct Half {
  std::uint16_t bits = 0;
};
float float_from(Half half);
Half half_from(double value);  // to the nearest, ties to even

std::size_t size_of(Type type);  // bytes
const char* name_of(Type type);  // as numpy has it
Type type_of(const std::string& name);

using Shape = std::vector<std::int64_t>;
constexpr std::int64_t kDynamic = -1;
std::size_t num_items(const Shape& shape);
std::string text_of(const Shape& shape);

// In C order, without gaps.
struct Tensor {
  Type type = Type::kFloat32;
  Shape shape;
  std::vector<std::uint8_t> bytes;

  Tensor() = default;
  Tensor(Type of, Shape sizes);  // zeros

  template <typename T>
  T* data() {
    return reinterpret_cast<T*>(bytes.data());
  }
  template <typename T>
  const T* data() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
};

// Calls `visitor` with a null pointer to the C++ type of `type`.
template <typename Visitor>
void visit_type(Type type, Visitor&& visitor) {
  switch (type) {
    case Type::kBool: return visitor(static_cast<bool*>(nullptr));
    case Type::kUint8: return visitor(static_cast<std::uint8_t*>(nullptr));
    case Type::kUint16: return visitor(static_cast<std::uint16_t*>(nullptr));
    case Type::kUint32: return visitor(static_cast<std::uint32_t*>(nullptr));
    case Type::kUint64: return visitor(static_cast<std::uint64_t*>(nullptr));
    case Type::kInt8: return visitor(static_cast<std::int8_t*>(nullptr));
    case Type::kInt16: return visitor(static_cast<std::int16_t*>(nullptr));
    case Type::kInt32: return visitor(static_cast<std::int32_t*>(nullptr));
    case Type::kInt64: return visitor(static_cast<std::int64_t*>(nullptr));
    case Type::kFloat16: return visitor(static_cast<Half*>(nullptr));
    case Type::kFloat32: return visitor(static_cast<float*>(nullptr));
    case Type::kFloat64: return visitor(static_cast<double*>(nullptr));
  }
}

}  // namespace trtforge
