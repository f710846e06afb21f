"""Representative data in, ranges out, precision written into the ONNX model.

A leaf: it knows arrays and ONNX files, and nothing of the engines or of the pipeline. What it needs from outside is
handed in: a runner is a plain callable from a batch to the values of the watched tensors; see the example in
docs/ranges.md.
"""
