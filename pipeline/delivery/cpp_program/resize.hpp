// Pictures of another size, as Pillow makes them, to the bit.
#pragma once

#include <string>

#include "tensor.hpp"

namespace trtforge {

enum class Interpolation { kNearest, kBilinear, kBicubic, kArea, kHamming, kLanczos };

// Pictures (N, H, W, C) of uint8, uint16 or float32.
Tensor resized(const Tensor& pictures, std::int64_t height, std::int64_t width, Interpolation interpolation,
               const std::string& where);

}  // namespace trtforge
