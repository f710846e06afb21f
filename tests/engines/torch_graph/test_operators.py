"""onnx's own tests of each operator that can be trained through, in torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from calibration.graph.editing import named
from engines.errors import EngineError
from engines.torch_graph.library import load_torch
from engines.torch_graph.network import OPERATORS, UNTRAINED, TorchNetwork

TYPES = ("bool", "float32", "float64", "int32", "int64", "uint8", "int8")
FIRST_OPSET = 13
"""As ``quantize`` takes."""

CANNOT = {
    "ArgMax": ("select_last_index",),
    "ArgMin": ("select_last_index",),
    "AveragePool": ("dilations", "ceil_mode with count_include_pad"),
    "BatchNormalization": ("training mode",),
    "ConvTranspose": ("an output beyond what the kernels reach",),
    "Dropout": ("its further outputs",),
    "FlexAttention": ("cannot be trained through",),
    "MaxPool": ("its further outputs", "to type uint8_t"),
    "ReduceMax": ("non-zero size",),
    "ReduceMin": ("non-zero size",),
    "Resize": ("antialias, or a policy", "tf_crop_and_resize", "half_pixel_symmetric", "mode 'cubic'"),
    "ScatterND": ("reduction 'm",),
}
"""What is refused, by operator, and in which words."""
LEAST_TESTS = 420


def onnx_tests() -> Iterator[Any]:
    """Those of which every operator is ours, in an opset that we take, and whose data is tensors of numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        tests = load_model_tests(kind="node")
    for test in tests:
        model, data_sets = test.model, test.data_sets
        if model is None or data_sets is None:
            continue
        opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        operators = {node.op_type for node in model.graph.node if not node.domain}
        arrays = [array for part in data_sets[0] for array in part]
        plain = all(isinstance(array, np.ndarray) and array.dtype.name in TYPES for array in arrays)
        if opset >= FIRST_OPSET and operators <= {*OPERATORS, *UNTRAINED, "Constant"} and plain and not model.functions:
            yield test.name, model, data_sets[0]


def test_the_operators_compute_what_onnx_says_or_are_refused() -> None:
    torch = load_torch()
    num_ran, unexpected = 0, []
    ran: set[str] = set()
    for name_of_test, model, (inputs, expected) in onnx_tests():
        try:
            network = TorchNetwork(named(model))
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Of torch, about an even kernel with the padding "same".
                answers = network({name: torch.tensor(array) for name, array in zip(network.inputs, inputs)})
        except EngineError as error:
            operator = model.graph.node[0].op_type
            if not any(words in str(error) for words in CANNOT.get(operator, ())):
                unexpected.append(f"{name_of_test}: {error}")
            continue
        for name, array in zip(network.outputs, expected):
            assert (answers[name].numpy().shape, answers[name].numpy().dtype) == (array.shape, array.dtype), (
                name_of_test
            )
            np.testing.assert_allclose(answers[name].numpy(), array, rtol=2e-3, atol=1e-5, err_msg=name_of_test)
        num_ran += 1
        ran.update(node.op_type for node in model.graph.node)
    assert unexpected == []
    assert num_ran >= LEAST_TESTS
    assert set(OPERATORS) - ran <= {"CumSum", "Xor"}  # Their tests are of types that torch computes otherwise.
