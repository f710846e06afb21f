# ONNX Runtime: a release with include/ and lib/ (-D ONNXRUNTIME_ROOT=...), Debian's libonnxruntime-dev, or headers and
# a library of at least their version (-D ONNXRUNTIME_INCLUDE=... -D ONNXRUNTIME_LIBRARY=...).
set(RUNTIME_SOURCE runtime_onnxruntime.cpp)
find_path(ONNXRUNTIME_INCLUDE onnxruntime_cxx_api.h
  HINTS ${ONNXRUNTIME_ROOT} PATH_SUFFIXES include include/onnxruntime onnxruntime onnxruntime/core/session
  DOC "Folder of onnxruntime_cxx_api.h")
find_library(ONNXRUNTIME_LIBRARY NAMES onnxruntime libonnxruntime.so.1 HINTS ${ONNXRUNTIME_ROOT} PATH_SUFFIXES lib lib64
  DOC "libonnxruntime.so")
if(NOT ONNXRUNTIME_INCLUDE OR NOT ONNXRUNTIME_LIBRARY)
  message(FATAL_ERROR "ONNX Runtime: onnxruntime_cxx_api.h or libonnxruntime.so is not here; "
    "name the folder of a release with -D ONNXRUNTIME_ROOT=...")
endif()
add_library(runtime INTERFACE)
target_include_directories(runtime SYSTEM INTERFACE ${ONNXRUNTIME_INCLUDE})
target_link_libraries(runtime INTERFACE ${ONNXRUNTIME_LIBRARY})
