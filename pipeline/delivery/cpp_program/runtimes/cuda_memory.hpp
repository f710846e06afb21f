// CUDA's objects, given back when they go.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <utility>

#include "tensor.hpp"

namespace trtforge {

inline void check_cuda(cudaError_t status, const std::string& what, Status kind = kRefused) {
  if (status != cudaSuccess) {
    throw Error(kind, what + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) +
                          "); see what else runs on the GPU, and its driver");
  }
}

// A handle of `T`, released by `release`; it moves and is not copied.
template <typename T, cudaError_t (*release)(T)>
class CudaHandle {
 public:
  CudaHandle() = default;
  explicit CudaHandle(T handle) : handle_(handle) {}
  CudaHandle(CudaHandle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  CudaHandle& operator=(CudaHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~CudaHandle() {
    if (handle_ != nullptr) release(handle_);
  }
  T get() const { return handle_; }
  T* address() { return &handle_; }
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  T handle_ = nullptr;
};

using Stream = CudaHandle<cudaStream_t, cudaStreamDestroy>;
using Graph = CudaHandle<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = CudaHandle<cudaGraphExec_t, cudaGraphExecDestroy>;
using DeviceMemory = CudaHandle<void*, cudaFree>;
using PinnedMemory = CudaHandle<void*, cudaFreeHost>;

inline Stream new_stream() {
  Stream stream;
  check_cuda(cudaStreamCreateWithFlags(stream.address(), cudaStreamNonBlocking), "a stream of CUDA", kUnavailable);
  return stream;
}

inline DeviceMemory device_memory(std::size_t bytes) {
  DeviceMemory memory;
  check_cuda(cudaMalloc(memory.address(), bytes), std::to_string(bytes) + " bytes of the GPU's memory", kUnavailable);
  return memory;
}

inline PinnedMemory pinned_memory(std::size_t bytes) {
  PinnedMemory memory;
  check_cuda(cudaMallocHost(memory.address(), bytes), std::to_string(bytes) + " bytes of page-locked memory",
             kUnavailable);
  return memory;
}

}  // namespace trtforge
