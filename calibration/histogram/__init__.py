"""Tensor values to exact histograms, and histograms to a threshold by each method; nothing of scales or Q/DQ."""
