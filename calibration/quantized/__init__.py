"""Models that came quantized: read, brought to where another library wants its Q/DQ, and without their rounding.

Nothing here finds a scale, but for asymmetric tensors that the user wants symmetric. What is quantized here of a float
model is in ``calibration/precision``.
"""
