#include "tensor.hpp"

#include <cmath>
#include <utility>

namespace trtforge {
namespace {

struct TypeName {
  Type type;
  const char* name;
  std::size_t size;
};
constexpr TypeName kTypes[] = {
    {Type::kBool, "bool", 1},       {Type::kUint8, "uint8", 1},     {Type::kUint16, "uint16", 2},
    {Type::kUint32, "uint32", 4},   {Type::kUint64, "uint64", 8},   {Type::kInt8, "int8", 1},
    {Type::kInt16, "int16", 2},     {Type::kInt32, "int32", 4},     {Type::kInt64, "int64", 8},
    {Type::kFloat16, "float16", 2}, {Type::kFloat32, "float32", 4}, {Type::kFloat64, "float64", 8},
};
constexpr int kHalfDigits = 10;          // of the fraction of a half
constexpr int kHalfLeastExponent = -14;  // of a normal half
constexpr double kHalfEnd = 65520.0;     // from here on it rounds to infinity

const TypeName& entry_of(Type type) { return kTypes[static_cast<std::size_t>(type)]; }

}  // namespace

std::size_t size_of(Type type) { return entry_of(type).size; }

const char* name_of(Type type) { return entry_of(type).name; }

Type type_of(const std::string& name) {
  for (const TypeName& entry : kTypes) {
    if (name == entry.name) return entry.type;
  }
  throw Error(kUsage, "'" + name + "' is no type; name one of numpy's, such as uint8 or float32");
}

std::size_t num_items(const Shape& shape) {
  std::size_t number = 1;
  for (std::int64_t size : shape) {
    std::size_t product = 0;
    if (size < 0 || __builtin_mul_overflow(number, static_cast<std::size_t>(size), &product) ||
        product > PTRDIFF_MAX / sizeof(double)) {
      throw Error(kUsage, "a tensor of the shape " + text_of(shape) + " cannot be held; correct its shape");
    }
    number = product;
  }
  return number;
}

std::string text_of(const Shape& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i != 0 ? ", " : "") + (shape[i] == kDynamic ? std::string("?") : std::to_string(shape[i]));
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

Tensor::Tensor(Type of, Shape sizes) : type(of), shape(std::move(sizes)), bytes(num_items(shape) * size_of(of)) {}

float float_from(Half half) {
  const int exponent = (half.bits >> kHalfDigits) & 0x1f;
  const float fraction = static_cast<float>(half.bits & 0x3ff);
  float magnitude = 0;
  if (exponent == 0x1f) {
    magnitude = fraction != 0 ? NAN : INFINITY;
  } else if (exponent == 0) {
    magnitude = std::ldexp(fraction, kHalfLeastExponent - kHalfDigits);
  } else {
    magnitude = std::ldexp(fraction + 1024, exponent - 15 - kHalfDigits);
  }
  return (half.bits & 0x8000) != 0 ? -magnitude : magnitude;
}

Half half_from(double value) {
  const unsigned sign = std::signbit(value) ? 0x8000u : 0u;
  const double magnitude = std::fabs(value);
  if (std::isnan(value)) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= kHalfEnd) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
  int exponent = magnitude == 0 ? kHalfLeastExponent : std::ilogb(magnitude);
  if (exponent < kHalfLeastExponent) exponent = kHalfLeastExponent;
  // In units of the last place; 1024 and more is a normal number, whose leading 1 adds itself to the exponent.
  const auto units = static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, kHalfDigits - exponent)));
  return {static_cast<std::uint16_t>(sign | ((static_cast<unsigned>(exponent + 14) << kHalfDigits) + units))};
}

}  // namespace trtforge
