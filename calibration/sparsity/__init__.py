"""Weights at zero: which weights of a product are pruned, and which patterns of zeros hardware can use."""
