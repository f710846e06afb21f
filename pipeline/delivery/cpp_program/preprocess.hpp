// What a plan's [data.preprocess] does to samples before the network sees them, to the bit.
#pragma once

#include <string>
#include <vector>

#include "resize.hpp"
#include "tensor.hpp"

namespace trtforge {

enum class Channels { kKeep, kRgb, kBgr, kGray };

// The order is fixed: resize, crop, channels, x scale, - mean, / std, layout, type.
struct Preprocess {
  std::vector<std::int64_t> resize;  // the shorter side; or height and width
  bool letterbox = false;
  double fill = 0;                 // of letterbox
  std::vector<std::int64_t> crop;  // height and width, from the centre
  Interpolation interpolation = Interpolation::kBilinear;
  Channels channels = Channels::kKeep;
  float scale = 1;
  std::vector<float> mean;  // one, or one for each channel
  std::vector<float> std;
  bool is_nchw = false;
  bool casts = false;
  Type type = Type::kFloat32;  // of what comes out, where it casts
};

// Samples (N, H, W, C), or of any shape where no step needs pictures. `where` is what sentences name.
Tensor preprocessed(Tensor samples, const Preprocess& steps, const std::string& where);

}  // namespace trtforge
