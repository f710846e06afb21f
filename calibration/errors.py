"""What can go wrong in calibration, by who has to act."""


class DataError(ValueError):
    """The data does not fit the model or the plan. Whoever wrote the plan, or made the data, acts."""


class ModelError(ValueError):
    """The ONNX model cannot be read or rewritten. The message names the node or tensor."""
