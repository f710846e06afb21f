"""What stands behind LiteRT: what a `.tflite` file says of itself, and how its precisions are written; no runtime.

The packages themselves are imported in two files: the runtime and the format's schema in `engines/backends/litert.py`,
from where they are handed in, and the quantizer in `quantizer.py` here.
"""
