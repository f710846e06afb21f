"""Networks that other tools quantized: by ONNX Runtime's own quantizer, which is installed with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.numpy_helper import from_array

Array = npt.NDArray[np.float32]

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,16,16] x) => (float[N,5] y)
{
  a = Conv <pads = [1,1,1,1]> (x, w1, b1)      r = Relu (a)
  p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r)
  b = Conv <pads = [1,1,1,1]> (p, w2, b2)      s = Add (b, p)
  l = LeakyRelu (s)                            g = Sigmoid (l)
  m = Mul (g, s)                               c = Concat <axis = 1> (m, p)
  q = AveragePool <kernel_shape = [2,2], strides = [2,2]> (c)
  h = GlobalAveragePool (q)                    f = Flatten (h)
  d = Gemm <transB = 1> (f, w3, b3)            t = Relu (d)
  u = MatMul (t, w4)                           y = Add (u, b4)
}
"""
"""Every operator that ONNX Runtime's quantizer writes as one on integers, a Relu that it leaves out among them."""
SHAPES = {
    "w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (10, 16), "b3": (10,), "w4": (10, 5),
    "b4": (5,),
}  # fmt: skip
SYMMETRIC: Mapping[str, Any] = {"ActivationSymmetric": True}
"""Of quantize_static: zero points 0 for data."""


def float_network() -> onnx.ModelProto:
    """In FP32, with drawn weights."""
    random = np.random.default_rng(1)
    model = onnx.parser.parse_model(NETWORK)
    arrays = {name: random.normal(scale=0.3, size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    model.graph.initializer.extend(from_array(array, name) for name, array in arrays.items())
    return model


def drawn(num_samples: int, seed: int) -> Array:
    """Data for it."""
    return np.random.default_rng(seed).normal(size=(num_samples, 3, 16, 16)).astype(np.float32)


def quantized_by_onnxruntime(model: onnx.ModelProto, path: Path, feed: Mapping[str, Array], **how: Any) -> Path:
    """Write ``path``: quantize_static of the model, calibrated on ``feed``; ``how``: its options."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter([feed])

        def get_next(self) -> Mapping[str, Array] | None:
            return next(self._feeds, None)

    source = path.with_suffix(".float.onnx")
    onnx.save(model, source)
    named = {key: getattr(quantization.QuantType, value) for key, value in how.items() if key.endswith("_type")}
    if "quant_format" in how:
        named["quant_format"] = getattr(quantization.QuantFormat, how["quant_format"])
    quantization.quantize_static(source, path, Reader(), **(how | named))
    source.unlink()
    return path


def answers(model: onnx.ModelProto, x: Array, *, in_integers: bool = True) -> Array:
    """What ONNX Runtime answers: by its integer kernels, or computing Q/DQ nodes as they are written."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    if not in_integers:
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(output)


def sqnr_db(reference: Array, other: Array) -> float:
    """Signal to the noise of a difference."""
    noise = np.square(reference.astype(np.float64) - other).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(noise, 1e-300)))
