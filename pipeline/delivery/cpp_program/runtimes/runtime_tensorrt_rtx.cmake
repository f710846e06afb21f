# TensorRT for RTX: the folder of its archive (-D TENSORRT_ROOT=...).
include(nvinfer.cmake)
find_nvinfer(tensorrt_rtx)
