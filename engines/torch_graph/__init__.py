"""ONNX models in torch: its operators, the network, the rounding of INT8 in training."""
