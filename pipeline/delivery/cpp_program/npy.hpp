// Files of arrays: numpy's .npy, and raw values.
#pragma once

#include <string>

#include "tensor.hpp"

namespace trtforge {

std::vector<std::uint8_t> read_file(const std::string& path);
Tensor read_npy(const std::string& path);
void write_npy(const std::string& path, const Tensor& tensor);
// Values without a header. One dimension may be kDynamic: it follows from the file's size.
Tensor read_raw(const std::string& path, Type type, Shape shape);

}  // namespace trtforge
