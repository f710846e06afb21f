# What TensorRT and TensorRT for RTX have in common: one header, one library, CUDA's runtime.
set(RUNTIME_SOURCE nvinfer_library.cpp runtime_nvinfer.cpp)

function(find_nvinfer NAME)
  find_path(TENSORRT_INCLUDE NvInfer.h HINTS ${TENSORRT_ROOT} PATH_SUFFIXES include DOC "Folder of NvInfer.h")
  find_library(TENSORRT_LIBRARY NAMES ${NAME} lib${NAME}.so.1 HINTS ${TENSORRT_ROOT} PATH_SUFFIXES lib lib64
    DOC "lib${NAME}.so")
  if(NOT TENSORRT_INCLUDE OR NOT TENSORRT_LIBRARY)
    message(FATAL_ERROR "TensorRT: NvInfer.h or lib${NAME}.so is not here; install libnvinfer-dev, or name the folder "
      "of TensorRT with -D TENSORRT_ROOT=...")
  endif()
  # Not by FindCUDAToolkit, which came with CMake 3.17: Ubuntu 20.04 of JetPack 5 has 3.16.
  set(CUDA_HINTS ${CUDA_ROOT} $ENV{CUDA_HOME} /usr/local/cuda)
  find_path(CUDART_INCLUDE cuda_runtime_api.h HINTS ${CUDA_HINTS} PATH_SUFFIXES include
    DOC "Folder of cuda_runtime_api.h")
  find_library(CUDART_LIBRARY NAMES cudart HINTS ${CUDA_HINTS} PATH_SUFFIXES lib64 lib DOC "libcudart.so")
  if(NOT CUDART_INCLUDE OR NOT CUDART_LIBRARY)
    message(FATAL_ERROR "CUDA: cuda_runtime_api.h or libcudart.so is not here; name its folder with -D CUDA_ROOT=...")
  endif()
  add_library(runtime INTERFACE)
  target_include_directories(runtime SYSTEM INTERFACE ${TENSORRT_INCLUDE} ${CUDART_INCLUDE})
  target_link_libraries(runtime INTERFACE ${TENSORRT_LIBRARY} ${CUDART_LIBRARY} ${CMAKE_DL_LIBS})
endfunction()
