"""Building and running engines of TensorRT and TensorRT for RTX; not which of the two libraries is imported."""
