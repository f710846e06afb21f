#include "nvinfer_library.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <set>

#include "signature.hpp"
#ifdef HAS_NVINFER_PLUGIN
#include <NvInferPlugin.h>
#endif

namespace trtforge {
namespace {

std::int32_t num_plugins() {
  std::int32_t number = 0;
#ifdef HAS_ALL_CREATORS
  getPluginRegistry()->getAllCreators(&number);
#else
  getPluginRegistry()->getPluginCreatorList(&number);
#endif
  return number;
}

// A library registers its plugins as it is loaded, or TensorRT asks it for them. It stays: the registry points into it.
void load_library(const std::string& path) {
  const std::int32_t before = num_plugins();
  if (dlopen(path.c_str(), RTLD_NOW) == nullptr) {
    throw Error(kUnavailable, path + ": cannot be loaded (" + std::string(dlerror()) + "); link what it misses");
  }
#ifdef LOADS_LIBRARIES
  if (num_plugins() == before) getPluginRegistry()->loadLibrary(path.c_str());
#endif
  if (num_plugins() == before) {
    throw Error(kUnavailable,
                path + ": gives this TensorRT no plugins (" + logger().why() + "); compile it for this version");
  }
}

}  // namespace

void Logger::log(Severity severity, const char* words) noexcept {
  if (severity > Severity::kWARNING || (severity == Severity::kWARNING && has_error_)) return;
  try {
    last_ = words;
    std::replace(last_.begin(), last_.end(), '\n', ' ');
    has_error_ = severity != Severity::kWARNING;
  } catch (...) {  // No memory for it.
  }
}

std::string Logger::why() const { return last_.empty() ? "the library gives no reason" : last_; }

Logger& logger() {
  static Logger instance;
  return instance;
}

void load_plugins(const std::string& engine, const std::vector<NamedDigest>& libraries) {
  static std::set<std::string> loaded;
  for (const NamedDigest& library : libraries) {
    const std::string path = checked_neighbour(engine, library);
    if (loaded.count(library.sha256) != 0) continue;
    load_library(path);
    loaded.insert(library.sha256);
  }
#ifdef HAS_NVINFER_PLUGIN
  initLibNvInferPlugins(&logger(), "");
#endif
}

}  // namespace trtforge
