// After Pillow's src/libImaging/Resample.c: a row at a time, then a column at a time, with what is between rounded to
// the type of the picture; weights of 8-bit pictures are integers of 22 binary digits. And Geometry.c for kNearest.
#include "resize.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace trtforge {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kHammingBase = 0.54f, kHammingPart = 0.46f;  // as floats: so it stands there
constexpr int kPrecisionBits = 32 - 8 - 2;

struct Filter {
  double (*weight)(double);
  double support;
};

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double bilinear(double x) {
  x = std::fabs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

double hamming(double x) {
  x = std::fabs(x);
  if (x == 0.0) return 1.0;
  if (x >= 1.0) return 0.0;
  x *= kPi;
  return std::sin(x) / x * (kHammingBase + kHammingPart * std::cos(x));
}

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= kPi;
  return std::sin(x) / x;
}

double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

Filter filter_of(Interpolation interpolation) {
  switch (interpolation) {
    case Interpolation::kArea: return {box, 0.5};
    case Interpolation::kHamming: return {hamming, 1.0};
    case Interpolation::kBicubic: return {bicubic, 2.0};
    case Interpolation::kLanczos: return {lanczos, 3.0};
    default: return {bilinear, 1.0};
  }
}

// Of one pixel that is made: where the pixels begin that it is made of, and what each counts.
struct Taps {
  std::int64_t first = 0;
  std::vector<double> weights;
  std::vector<std::int32_t> fixed;  // the same in units of 2^-22, for 8 bits
};

std::vector<Taps> taps_of(std::int64_t from, std::int64_t to, const Filter& filter) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double filter_scale = std::max(scale, 1.0);
  const double support = filter.support * filter_scale;
  std::vector<Taps> all(static_cast<std::size_t>(to));
  for (std::size_t i = 0; i < all.size(); ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale;
    const auto low = static_cast<std::int64_t>(center - support + 0.5);
    const auto high = static_cast<std::int64_t>(center + support + 0.5);
    const std::int64_t first = std::max<std::int64_t>(low, 0);
    const std::int64_t number = std::min(high, from) - first;
    Taps& taps = all[i];
    taps.first = first;
    double sum = 0.0;
    for (std::int64_t k = 0; k < number; ++k) {
      const double weight = filter.weight((static_cast<double>(k + first) - center + 0.5) * (1.0 / filter_scale));
      taps.weights.push_back(weight);
      sum += weight;
    }
    for (double& weight : taps.weights) {
      if (sum != 0.0) weight /= sum;
      const double units = weight * (1 << kPrecisionBits);
      taps.fixed.push_back(static_cast<std::int32_t>(weight < 0 ? -0.5 + units : 0.5 + units));
    }
  }
  return all;
}

// The sums that a line is made of, as they begin, what is added, and the values of them.
void begin(std::vector<std::int32_t>& sums) { std::fill(sums.begin(), sums.end(), 1 << (kPrecisionBits - 1)); }
void begin(std::vector<double>& sums) { std::fill(sums.begin(), sums.end(), 0.0); }

std::int32_t weight_of(const Taps& taps, std::size_t index, std::int32_t) { return taps.fixed[index]; }
double weight_of(const Taps& taps, std::size_t index, double) { return taps.weights[index]; }

std::uint8_t rounded(std::int32_t sum) { return static_cast<std::uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255)); }
float rounded(double sum) { return static_cast<float>(sum); }

// Which value each is taken from, where nothing is mixed: Pillow walks by adding.
std::vector<std::int64_t> nearest(std::int64_t from, std::int64_t to) {
  const double step = static_cast<double>(from) / static_cast<double>(to);
  std::vector<std::int64_t> sources;
  double at = step * 0.5;
  for (std::int64_t i = 0; i < to; ++i, at += step) {
    sources.push_back(std::min(static_cast<std::int64_t>(at), from - 1));
  }
  return sources;
}

// From (outer, from, inner) to (outer, to, inner).
template <typename T>
std::vector<T> along(const std::vector<T>& values, std::int64_t from, std::int64_t to, std::int64_t inner,
                     Interpolation interpolation) {
  using Sum = std::conditional_t<std::is_same_v<T, std::uint8_t>, std::int32_t, double>;
  if (from == to) return values;
  const bool is_nearest = interpolation == Interpolation::kNearest;
  const std::vector<std::int64_t> sources = is_nearest ? nearest(from, to) : std::vector<std::int64_t>();
  const std::vector<Taps> taps = is_nearest ? std::vector<Taps>() : taps_of(from, to, filter_of(interpolation));
  const std::int64_t outer = static_cast<std::int64_t>(values.size()) / (from * inner);
  const auto line_size = static_cast<std::size_t>(inner);
  std::vector<T> result(static_cast<std::size_t>(outer * to) * line_size);
  std::vector<Sum> sums(line_size);
  T* target = result.data();
  for (std::int64_t o = 0; o < outer; ++o) {
    const T* plane = values.data() + o * from * inner;
    for (std::size_t i = 0; i < static_cast<std::size_t>(to); ++i, target += inner) {
      if (is_nearest) {
        std::copy_n(plane + sources[i] * inner, inner, target);
        continue;
      }
      begin(sums);
      const T* line = plane + taps[i].first * inner;
      for (std::size_t tap = 0; tap < taps[i].weights.size(); ++tap, line += inner) {
        const Sum weight = weight_of(taps[i], tap, Sum());
        for (std::size_t k = 0; k < line_size; ++k) sums[k] += static_cast<Sum>(line[k]) * weight;
      }
      for (std::size_t k = 0; k < line_size; ++k) target[k] = rounded(sums[k]);
    }
  }
  return result;
}

template <typename T>
std::vector<T> resized_values(const std::vector<T>& values, const Shape& shape, std::int64_t height, std::int64_t width,
                              Interpolation interpolation) {
  const std::vector<T> rows = along(values, shape[2], width, shape[3], interpolation);
  return along(rows, shape[1], height, width * shape[3], interpolation);
}

}  // namespace

Tensor resized(const Tensor& pictures, std::int64_t height, std::int64_t width, Interpolation interpolation,
               const std::string& where) {
  const Shape& shape = pictures.shape;
  if (shape[1] == 0 || shape[2] == 0) {
    throw Error(kUsage, where + ": is " + text_of(shape) + ", which has no pixels to resize; give another");
  }
  if (shape[1] == height && shape[2] == width) return pictures;
  Tensor result(pictures.type, {shape[0], height, width, shape[3]});
  if (pictures.bytes.empty()) return result;
  if (pictures.type == Type::kUint8) {
    result.bytes = resized_values(pictures.bytes, shape, height, width, interpolation);
  } else if (pictures.type == Type::kFloat32) {
    const float* first = pictures.data<float>();
    const std::vector<float> values(first, first + num_items(shape));
    const std::vector<float> made = resized_values(values, shape, height, width, interpolation);
    std::copy(made.begin(), made.end(), result.data<float>());
  } else if (pictures.type == Type::kUint16) {
    const std::uint16_t* first = pictures.data<std::uint16_t>();
    const std::vector<float> values(first, first + num_items(shape));
    const std::vector<float> made = resized_values(values, shape, height, width, interpolation);
    std::transform(made.begin(), made.end(), result.data<std::uint16_t>(), [](float value) {
      return static_cast<std::uint16_t>(std::clamp(std::nearbyint(value), 0.0f, 65535.0f));
    });
  } else {
    throw Error(kUsage,
                where + ": is " + name_of(pictures.type) + ", resize takes uint8, uint16 or float32; convert it");
  }
  return result;
}

}  // namespace trtforge
