# TensorRT 8.5 and later: as Debian packages and JetPack install it, or a tar file's folder (-D TENSORRT_ROOT=...).
include(nvinfer.cmake)
find_nvinfer(nvinfer)
# Plugins that come with TensorRT, as EfficientNMS.
find_library(TENSORRT_PLUGIN_LIBRARY NAMES nvinfer_plugin HINTS ${TENSORRT_ROOT} PATH_SUFFIXES lib lib64)
find_path(TENSORRT_PLUGIN_INCLUDE NvInferPlugin.h HINTS ${TENSORRT_ROOT} PATH_SUFFIXES include)
if(TENSORRT_PLUGIN_LIBRARY AND TENSORRT_PLUGIN_INCLUDE)
  target_include_directories(runtime SYSTEM INTERFACE ${TENSORRT_PLUGIN_INCLUDE})
  target_link_libraries(runtime INTERFACE ${TENSORRT_PLUGIN_LIBRARY})
  target_compile_definitions(runtime INTERFACE HAS_NVINFER_PLUGIN)
endif()
