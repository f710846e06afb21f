#include "preprocess.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

namespace trtforge {
namespace {

template <typename T>
constexpr bool is_half = std::is_same_v<T, Half>;

template <typename T>
double double_from(T value) {
  if constexpr (is_half<T>) {
    return float_from(value);
  } else {
    return static_cast<double>(value);
  }
}

// numpy.full of the fill in the samples' type, which cuts what stands behind the point.
template <typename T>
T fill_of(double fill, const std::string& where) {
  if constexpr (is_half<T>) {
    return half_from(fill);
  } else if constexpr (std::is_integral_v<T>) {
    if (fill <= static_cast<double>(std::numeric_limits<T>::lowest()) - 1 ||
        fill >= static_cast<double>(std::numeric_limits<T>::max()) + 1) {
      throw Error(kUsage, where + ": its type does not hold the fill " + std::to_string(fill) + "; convert it");
    }
    return static_cast<T>(fill);
  } else {
    return static_cast<T>(fill);
  }
}

// Copies a picture into another, `top` and `left` pixels from where that begins; both may be negative.
void put(const Tensor& from, Tensor& to, std::int64_t top, std::int64_t left) {
  const std::int64_t pixel = to.shape[3] * static_cast<std::int64_t>(size_of(to.type));
  const std::int64_t height = std::min(from.shape[1], to.shape[1]), width = std::min(from.shape[2], to.shape[2]);
  const std::int64_t from_top = std::max<std::int64_t>(-top, 0), from_left = std::max<std::int64_t>(-left, 0);
  const std::int64_t to_top = std::max<std::int64_t>(top, 0), to_left = std::max<std::int64_t>(left, 0);
  if (to.bytes.empty() || width == 0) return;
  for (std::int64_t n = 0; n < to.shape[0]; ++n) {
    for (std::int64_t y = 0; y < height; ++y) {
      const std::int64_t source = ((n * from.shape[1] + from_top + y) * from.shape[2] + from_left) * pixel;
      const std::int64_t target = ((n * to.shape[1] + to_top + y) * to.shape[2] + to_left) * pixel;
      std::memcpy(to.bytes.data() + target, from.bytes.data() + source, static_cast<std::size_t>(width * pixel));
    }
  }
}

Tensor letterboxed(const Tensor& samples, const Preprocess& steps, const std::string& where) {
  const double height = static_cast<double>(samples.shape[1]), width = static_cast<double>(samples.shape[2]);
  const double ratio = std::min(static_cast<double>(steps.resize[0]) / std::max(height, 1.0),
                                static_cast<double>(steps.resize[1]) / std::max(width, 1.0));
  const std::int64_t inside_height = std::max<std::int64_t>(std::llrint(height * ratio), 1);
  const std::int64_t inside_width = std::max<std::int64_t>(std::llrint(width * ratio), 1);
  const Tensor inside = resized(samples, inside_height, inside_width, steps.interpolation, where);
  Tensor framed(samples.type, {samples.shape[0], steps.resize[0], steps.resize[1], samples.shape[3]});
  visit_type(framed.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    std::fill_n(framed.data<T>(), num_items(framed.shape), fill_of<T>(steps.fill, where));
  });
  put(inside, framed, (steps.resize[0] - inside_height) / 2, (steps.resize[1] - inside_width) / 2);
  return framed;
}

Tensor resized_as_told(Tensor samples, const Preprocess& steps, const std::string& where) {
  if (steps.resize.empty()) return samples;
  if (steps.letterbox) return letterboxed(samples, steps, where);
  if (steps.resize.size() == 2) return resized(samples, steps.resize[0], steps.resize[1], steps.interpolation, where);
  const std::int64_t shorter = std::max<std::int64_t>(std::min(samples.shape[1], samples.shape[2]), 1);
  return resized(samples, samples.shape[1] * steps.resize[0] / shorter, samples.shape[2] * steps.resize[0] / shorter,
                 steps.interpolation, where);
}

Tensor cropped(Tensor samples, const Preprocess& steps, const std::string& where) {
  if (steps.crop.empty()) return samples;
  const std::int64_t height = steps.crop[0], width = steps.crop[1];
  if (height > samples.shape[1] || width > samples.shape[2]) {
    throw Error(kUsage, where + ": is " + text_of(samples.shape) + " before the crop, at least " +
                            std::to_string(height) + "x" + std::to_string(width) +
                            " is expected; give a larger picture");
  }
  Tensor result(samples.type, {samples.shape[0], height, width, samples.shape[3]});
  put(samples, result, -((samples.shape[1] - height) / 2), -((samples.shape[2] - width) / 2));
  return result;
}

// ITU-R BT.601 luma of RGB; integers are rounded to the nearest.
template <typename T>
T luma(const T* pixel) {
  const double sum = double_from(pixel[0]) * 0.299 + double_from(pixel[1]) * 0.587 + double_from(pixel[2]) * 0.114;
  if constexpr (is_half<T>) {
    return half_from(sum);
  } else if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(std::nearbyint(sum));
  } else {
    return static_cast<T>(sum);
  }
}

Tensor with_channels(Tensor samples, Channels channels, const std::string& where) {
  if (channels == Channels::kKeep) return samples;
  const std::int64_t number = samples.shape[3];
  if (number != 1 && number != 3) {
    throw Error(kUsage, where + ": has " + std::to_string(number) + " channels " + text_of(samples.shape) +
                            ", 1 (gray) or 3 (RGB) on the last axis are expected; convert it");
  }
  const bool is_gray = channels == Channels::kGray;
  if ((is_gray && number == 1) || (channels == Channels::kRgb && number == 3)) return samples;
  Shape shape = samples.shape;
  shape[3] = is_gray ? 1 : 3;
  Tensor result(samples.type, shape);
  const std::size_t num_pixels = num_items({shape[0], shape[1], shape[2]});
  visit_type(samples.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const T* from = samples.data<T>();
    T* to = result.data<T>();
    for (std::size_t i = 0; i < num_pixels; ++i, from += number, to += shape[3]) {
      if (is_gray) {
        to[0] = luma(from);
      } else {  // BGR of RGB, or three of one
        for (std::int64_t c = 0; c < 3; ++c) to[c] = from[number == 1 ? 0 : 2 - c];
      }
    }
  });
  return result;
}

void check_number(const char* name, const std::vector<float>& values, std::int64_t channels, const std::string& where) {
  if (values.size() > 1 && static_cast<std::int64_t>(values.size()) != channels) {
    throw Error(kUsage, where + ": has " + std::to_string(channels) + " channels on the last axis, " + name + " has " +
                            std::to_string(values.size()) + " numbers; give samples with as many channels");
  }
}

Tensor normalized(Tensor samples, const Preprocess& steps, const std::string& where) {
  if (steps.scale == 1.0f && steps.mean.empty() && steps.std.empty()) return samples;
  const std::int64_t channels = samples.shape.size() > 1 ? samples.shape.back() : 1;
  check_number("mean", steps.mean, channels, where);
  check_number("std", steps.std, channels, where);
  Tensor result(Type::kFloat32, samples.shape);
  const std::size_t number = num_items(samples.shape);
  visit_type(samples.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const T* from = samples.data<T>();
    float* to = result.data<float>();
    for (std::size_t i = 0; i < number; ++i) {
      const std::size_t c = i % static_cast<std::size_t>(channels);
      if constexpr (is_half<T>) {
        to[i] = float_from(from[i]) * steps.scale;
      } else {
        to[i] = static_cast<float>(from[i]) * steps.scale;
      }
      if (!steps.mean.empty()) to[i] -= steps.mean[steps.mean.size() > 1 ? c : 0];
      if (!steps.std.empty()) to[i] /= steps.std[steps.std.size() > 1 ? c : 0];
    }
  });
  return result;
}

Tensor transposed(Tensor samples) {
  const Shape& shape = samples.shape;
  Tensor result(samples.type, {shape[0], shape[3], shape[1], shape[2]});
  const std::size_t size = size_of(samples.type), channels = static_cast<std::size_t>(shape[3]);
  const std::size_t plane = num_items({shape[1], shape[2]}), pictures = static_cast<std::size_t>(shape[0]);
  for (std::size_t n = 0; n < pictures; ++n) {
    for (std::size_t c = 0; c < channels; ++c) {
      std::uint8_t* to = result.bytes.data() + (n * channels + c) * plane * size;
      const std::uint8_t* from = samples.bytes.data() + (n * plane * channels + c) * size;
      for (std::size_t i = 0; i < plane; ++i) std::memcpy(to + i * size, from + i * channels * size, size);
    }
  }
  return result;
}

// Whether an integer type holds a number, rounded where it is a float.
template <typename To, typename From>
bool holds(From value) {
  using Limits = std::numeric_limits<To>;
  if constexpr (std::is_floating_point_v<From>) {
    return value >= static_cast<From>(Limits::lowest()) && value < std::ldexp(static_cast<From>(1), Limits::digits);
  } else if (static_cast<long double>(value) < 0) {
    return std::is_signed_v<To> && static_cast<std::int64_t>(value) >= static_cast<std::int64_t>(Limits::lowest());
  } else {
    return static_cast<std::uint64_t>(value) <= static_cast<std::uint64_t>(Limits::max());
  }
}

template <typename To, typename From>
To converted(From value, const std::string& where) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (is_half<From>) {
    return converted<To>(float_from(value), where);
  } else if constexpr (is_half<To>) {
    return half_from(static_cast<double>(value));
  } else if constexpr (std::is_floating_point_v<To>) {
    return static_cast<To>(value);
  } else {
    From rounded = value;
    if constexpr (std::is_floating_point_v<From>) rounded = std::nearbyint(value);
    if (!holds<To>(rounded)) {
      throw Error(kUsage, where + ": has the value " + std::to_string(value) +
                              " after preprocessing, which its type does not hold; give other samples");
    }
    return static_cast<To>(rounded);
  }
}

Tensor converted_as_told(Tensor samples, const Preprocess& steps, const std::string& where) {
  if (!steps.casts || samples.type == steps.type) return samples;
  Tensor result(steps.type, samples.shape);
  const std::size_t number = num_items(samples.shape);
  visit_type(samples.type, [&](auto* from_null) {
    visit_type(steps.type, [&](auto* to_null) {
      using From = std::remove_pointer_t<decltype(from_null)>;
      using To = std::remove_pointer_t<decltype(to_null)>;
      const From* from = samples.data<From>();
      To* to = result.data<To>();
      for (std::size_t i = 0; i < number; ++i) to[i] = converted<To>(from[i], where);
    });
  });
  return result;
}

}  // namespace

Tensor preprocessed(Tensor samples, const Preprocess& steps, const std::string& where) {
  const bool takes_pictures =
      !steps.resize.empty() || !steps.crop.empty() || steps.channels != Channels::kKeep || steps.is_nchw;
  if (takes_pictures && samples.shape.size() != 4) {
    throw Error(kUsage, where + ": is " + name_of(samples.type) + " " + text_of(samples.shape) +
                            ", pictures (N, H, W, C) are expected; add the missing axis");
  }
  samples = resized_as_told(std::move(samples), steps, where);
  samples = cropped(std::move(samples), steps, where);
  samples = with_channels(std::move(samples), steps.channels, where);
  samples = normalized(std::move(samples), steps, where);
  if (steps.is_nchw) samples = transposed(std::move(samples));
  return converted_as_told(std::move(samples), steps, where);
}

}  // namespace trtforge
