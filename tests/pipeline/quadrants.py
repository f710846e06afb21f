"""A network that says which quarter of a picture is the brightest."""

from __future__ import annotations

QUADRANTS = """
<ir_version: 8, opset_import: ["" : 17]>
quadrants (float[N, 1, 8, 8] image) => (float[N, 4] scores) <float level = {100}, int64[2] flat = {0, 4}>
{
    bright = Sub (image, level)
    lit = Relu (bright)
    means = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (lit)
    scores = Reshape (means, flat)
}
"""
"""Which quarter of the picture is the brightest; below 100 everything is dark, and class 0 it is."""
