"""The network that a run begins with: in FP32 and as it came quantized, and whether its export answers as it does.

How a quantized model is read is in ``calibration/quantized``; what is made of FP32, in the stages.
"""
