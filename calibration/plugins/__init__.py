"""Plugins of TensorRT's that operators of ONNX itself can stand for: found in a user's file, and written out."""
