"""What the parsers of generations read, by names of their APIs that tell the generations apart.

That 8.6, 10.3 and 11.4 are told so is shown on their real bindings, in ``../nvinfer/test_generations.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from engines.errors import Unavailable
from engines.onnx_model import facts
from engines.support.parser_limits import largest_opset, refuse_model

SaveModel = Callable[[str], Path]


def module(version: str, flags: tuple[str, ...], parser: tuple[str, ...]) -> SimpleNamespace:
    return SimpleNamespace(
        __name__="tensorrt",
        __version__=version,
        NetworkDefinitionCreationFlag=SimpleNamespace(**dict.fromkeys(flags, 0)),
        OnnxParser=SimpleNamespace(**dict.fromkeys(parser, 0)),
    )


OF_8_5 = module("8.5.2", ("EXPLICIT_BATCH",), ("parse",))
OF_10_0 = module("10.0.1", ("EXPLICIT_BATCH", "STRONGLY_TYPED"), ("parse",))
OF_10_3 = module("10.3.0", ("EXPLICIT_BATCH", "STRONGLY_TYPED"), ("parse", "supports_model_v2"))


def test_opsets_of_generations() -> None:
    assert [largest_opset(each) for each in (OF_8_5, OF_10_0, OF_10_3)] == [17, 20, 0]


@pytest.mark.parametrize(("trt", "opset"), [(OF_8_5, 17), (OF_10_0, 20), (OF_10_3, 21)])
def test_up_to_its_opset_a_model_is_left_to_the_parser(save_model: SaveModel, trt: SimpleNamespace, opset: int) -> None:
    model = save_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[3] x) => (float[3] y) {{ y = Relu(x) }}'
    )
    refuse_model(trt, facts(model), model)


@pytest.mark.parametrize("trt", [OF_8_5, OF_10_0])
def test_weights_of_4_bits_are_refused_with_what_to_do(save_model: SaveModel, trt: SimpleNamespace) -> None:
    model = save_model(
        """<ir_version: 10, opset_import: ["" : 21]> g (float[N, 2] x) => (float[N, 2] y) <float[1, 2] s = {1, 1}>
        { w = DequantizeLinear <axis = 0, block_size = 2> (q, s) y = MatMul (x, w) }"""
    )
    proto = onnx.load(model)
    proto.graph.initializer.append(onnx.helper.make_tensor("q", onnx.TensorProto.INT4, (2, 2), [1, -2, 3, -4]))
    onnx.save(proto, model)
    words = rf"has weights of 4 bits, which tensorrt {trt.__version__} does not take; quantize it with weight_bits = 8"
    with pytest.raises(Unavailable, match=words):
        refuse_model(trt, facts(model), model)
    refuse_model(OF_10_3, facts(model), model)


def test_beyond_it_is_refused_with_the_way_down(save_model: SaveModel) -> None:
    model = save_model('<ir_version: 8, opset_import: ["" : 21]> g (float[3] x) => (float[3] y) { y = Relu(x) }')
    words = r"model\.onnx: is in opset 21, tensorrt 10\.0\.1 reads up to 20; write it in opset 20 \(`trtforge export "
    with pytest.raises(Unavailable, match=words):
        refuse_model(OF_10_0, facts(model), model)
