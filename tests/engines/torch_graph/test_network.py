"""A network in torch computes what onnx does, also where onnx's own evaluator stands in for an operator."""

from __future__ import annotations

import numpy as np
import onnx.parser
from onnx.reference import ReferenceEvaluator

from engines.torch_graph.library import load_torch
from engines.torch_graph.network import TorchNetwork
from tests.calibration.graph.nets import with_arrays

LSTM = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[6, N, 4] x) => (float[N, 3] y)
{
    first, last = LSTM <hidden_size = 5> (x, w, r)
    zero = Constant <value_ints = [0]> ()
    s = Squeeze (last, zero)
    y = MatMul (s, head)
}
"""


def test_an_operator_that_is_evaluated_may_leave_out_outputs() -> None:
    random = np.random.default_rng(0)
    shapes = {"w": (1, 20, 4), "r": (1, 20, 5), "head": (5, 3)}
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    model = with_arrays(onnx.parser.parse_model(LSTM), arrays)
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    model.graph.node[0].output[0] = ""
    x = random.normal(size=(6, 2, 4)).astype(np.float32)
    ours = TorchNetwork(model)({"x": load_torch().tensor(x)})["y"].detach().numpy()
    (theirs,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-5, atol=1e-6)
