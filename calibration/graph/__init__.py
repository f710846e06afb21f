"""ONNX graphs read and edited, with or without weights; nothing of quantization."""
