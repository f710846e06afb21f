#include "npy.hpp"

#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <system_error>
#include <utility>

namespace trtforge {
namespace {

constexpr char kMagic[] = "\x93NUMPY";
constexpr std::size_t kMagicSize = 6;
constexpr std::size_t kAlignment = 64;

struct Code {
  const char* code;
  Type type;
};
constexpr Code kCodes[] = {
    {"|b1", Type::kBool},   {"|u1", Type::kUint8},   {"<u2", Type::kUint16},  {"<u4", Type::kUint32},
    {"<u8", Type::kUint64}, {"|i1", Type::kInt8},    {"<i2", Type::kInt16},   {"<i4", Type::kInt32},
    {"<i8", Type::kInt64},  {"<f2", Type::kFloat16}, {"<f4", Type::kFloat32}, {"<f8", Type::kFloat64},
};

// What stands after `'key':` in the header, which numpy writes as a Python dictionary.
std::string value_of(const std::string& header, const std::string& key, const std::string& path) {
  const std::size_t at = header.find("'" + key + "'");
  const std::size_t colon = at == std::string::npos ? at : header.find(':', at);
  const std::size_t begin = colon == std::string::npos ? colon : header.find_first_not_of(' ', colon + 1);
  if (begin == std::string::npos) {
    throw Error(kUsage, path + ": its header has no " + key + "; save it with numpy.save");
  }
  const std::size_t end = header.find(header[begin] == '(' ? ')' : ',', begin);
  return header.substr(begin, end == std::string::npos ? end : end - begin);
}

Shape shape_from(const std::string& text, const std::string& path) {
  Shape shape;
  std::size_t at = 1;
  while (at < text.size()) {
    if (std::isdigit(static_cast<unsigned char>(text[at])) == 0) {
      ++at;
      continue;
    }
    std::int64_t size = 0;
    for (; at < text.size() && std::isdigit(static_cast<unsigned char>(text[at])) != 0; ++at) {
      if (__builtin_mul_overflow(size, 10, &size) || __builtin_add_overflow(size, text[at] - '0', &size)) {
        throw Error(kUsage, path + ": its shape is " + text + ") and cannot be held; save it again");
      }
    }
    shape.push_back(size);
  }
  return shape;
}

}  // namespace

std::vector<std::uint8_t> read_file(const std::string& path) {
  std::error_code none;  // Of a folder the stream only says that it cannot be read, and errno is that of before.
  if (std::filesystem::is_directory(path, none)) throw Error(kUsage, path + ": is a folder; name a file");
  std::ifstream stream(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = stream ? static_cast<std::streamoff>(stream.tellg()) : -1;
  if (size < 0 || size == std::numeric_limits<std::streamoff>::max()) {
    throw Error(kUsage, path + ": cannot be read (" + std::strerror(errno) + "); name a file");
  }
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(size));
  stream.seekg(0);
  if (size > 0 && !stream.read(reinterpret_cast<char*>(bytes.data()), size)) {
    throw Error(kUsage, path + ": cannot be read (" + std::strerror(errno) + "); name a file");
  }
  return bytes;
}

Tensor read_npy(const std::string& path) {
  const std::vector<std::uint8_t> bytes = read_file(path);
  if (bytes.size() < kMagicSize + 6 || std::memcmp(bytes.data(), kMagic, kMagicSize) != 0) {
    throw Error(kUsage, path + ": is no .npy file; save it with numpy.save, or name it FILE.bin:TYPE:SHAPE");
  }
  const bool is_short = bytes[kMagicSize] == 1;  // version 1.0 has a length of two bytes, later ones have four
  const std::size_t start = kMagicSize + (is_short ? 4 : 6);
  std::size_t length = 0;
  for (std::size_t i = start; i-- > kMagicSize + 2;) length = length << 8 | bytes[i];
  if (length > bytes.size() - start) throw Error(kUsage, path + ": is cut short; copy it again");
  const std::string header(reinterpret_cast<const char*>(bytes.data()) + start, length);
  if (value_of(header, "fortran_order", path).substr(0, 5) != "False") {
    throw Error(kUsage, path + ": is in Fortran order; save numpy.ascontiguousarray of it");
  }
  const std::string code = value_of(header, "descr", path);
  for (const Code& entry : kCodes) {
    if (code != "'" + std::string(entry.code) + "'") continue;
    Tensor tensor(entry.type, shape_from(value_of(header, "shape", path), path));
    if (tensor.bytes.size() != bytes.size() - start - length) {
      throw Error(kUsage, path + ": does not hold the " + std::to_string(tensor.bytes.size()) +
                              " bytes of values that its header says; copy it again");
    }
    if (!tensor.bytes.empty()) std::memcpy(tensor.bytes.data(), bytes.data() + start + length, tensor.bytes.size());
    return tensor;
  }
  throw Error(kUsage, path + ": holds values of the type " + code + ", little-endian numbers are expected; convert it");
}

void write_npy(const std::string& path, const Tensor& tensor) {
  std::string code;
  for (const Code& entry : kCodes) {
    if (entry.type == tensor.type) code = entry.code;
  }
  std::string shape;
  for (std::int64_t size : tensor.shape) shape += std::to_string(size) + ",";
  std::string header = "{'descr': '" + code + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  const std::size_t before = kMagicSize + 4;
  header.resize((before + header.size() + kAlignment) / kAlignment * kAlignment - before, ' ');
  header.back() = '\n';
  std::ofstream stream(path, std::ios::binary);
  stream.write(kMagic, kMagicSize).write("\x01\x00", 2);
  stream.put(static_cast<char>(header.size() & 0xff)).put(static_cast<char>(header.size() >> 8));
  stream << header;
  stream.write(reinterpret_cast<const char*>(tensor.bytes.data()), static_cast<std::streamsize>(tensor.bytes.size()));
  stream.close();
  if (!stream) throw Error(kUsage, path + ": cannot be written (" + std::strerror(errno) + "); name another folder");
}

Tensor read_raw(const std::string& path, Type type, Shape shape) {
  std::vector<std::uint8_t> bytes = read_file(path);
  std::size_t unknown = shape.size();
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] != kDynamic) continue;
    if (unknown != shape.size()) {
      throw Error(kUsage, path + ": more than one size of " + text_of(shape) + " is open; name FILE.bin:TYPE:SHAPE");
    }
    unknown = i;
  }
  if (unknown != shape.size()) {
    shape[unknown] = 1;
    const std::size_t each = num_items(shape) * size_of(type);
    if (each != 0) shape[unknown] = static_cast<std::int64_t>(bytes.size() / each);
  }
  const std::size_t expected = num_items(shape) * size_of(type);
  if (expected != bytes.size()) {
    throw Error(kUsage, path + ": has " + std::to_string(bytes.size()) + " bytes, " + std::to_string(expected) +
                            " are expected for " + name_of(type) + " " + text_of(shape) +
                            "; correct the file or SHAPE");
  }
  Tensor tensor;
  tensor.type = type;
  tensor.shape = std::move(shape);
  tensor.bytes = std::move(bytes);
  return tensor;
}

}  // namespace trtforge
