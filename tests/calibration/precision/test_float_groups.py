"""Which nodes are in integers, of which kind and resolution, and what is tried in float."""

from __future__ import annotations

from calibration.precision.float_groups import first_choices, float_groups, integer_nodes
from calibration.precision.placement import PlacementOptions
from calibration.ranges.span import Span
from tests.made import model_with_weights

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 6, 6] image) => (float[N, 3] scores) {
    [wide] a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, kernel) [relu] b = Relu (a)
    [deep] c = Conv <group = 16> (b, depth) [mix] d = Conv (c, point)
    [sigmoid] e = Sigmoid (d) [swish] f = Mul (d, e) [odd] g = Erf (f) [last] h = Conv (g, point)
    [flat] i = Flatten (h) [dense] scores = MatMul (i, weight)
}"""


def nodes(exclude: tuple[str, ...] = ()) -> list[tuple[str, str, str, bool]]:
    weights = {"kernel": (16, 16, 3, 3), "depth": (16, 1, 1, 1), "point": (16, 16, 1, 1), "weight": (144, 3)}
    model = model_with_weights(NET, 5, **weights)
    spans = dict.fromkeys(("image", *"abcdefghi", "scores"), Span(1.0, -1.0, 1.0))
    chosen = integer_nodes(model, spans, PlacementOptions("onnxruntime", exclude=exclude))
    return [(node.name, node.kind, node.resolution, node.is_product) for node in chosen]


EXPECTED = [
    ("wide", "other convolutions", "3x3", True),
    ("deep", "depthwise convolutions", "3x3", True),
    ("mix", "pointwise convolutions", "3x3", True),
    ("last", "pointwise convolutions", "3x3", True),
    ("dense", "MatMul", "1", True),
]


def test_nodes_in_integers_with_kind_and_resolution() -> None:
    assert nodes() == EXPECTED, "what only reads an integer, as the swish before an Erf, is float already"
    assert nodes(exclude=("deep", "MatMul")) == [each for each in EXPECTED if each[0] not in ("deep", "dense")]


def test_groups_from_large_to_small_each_once() -> None:
    from_text = NET.replace("[odd] g = Erf (f) [last] h = Conv (g, point)", "[last] h = Conv (f, point)")
    weights = {"kernel": (16, 16, 3, 3), "depth": (16, 1, 1, 1), "point": (16, 16, 1, 1), "weight": (144, 3)}
    spans = dict.fromkeys(("image", *"abcdefghi", "scores"), Span(1.0, -1.0, 1.0))
    chosen = integer_nodes(model_with_weights(from_text, 5, **weights), spans, PlacementOptions("onnxruntime"))
    assert [node.name for node in chosen if not node.is_product] == ["sigmoid", "swish"]
    groups = {group.name: set(group.nodes) for group in float_groups(chosen)}
    assert groups == {
        "other convolutions": {"wide"},
        "depthwise convolutions": {"deep"},
        "pointwise convolutions": {"mix", "last"},
        "Sigmoid": {"sigmoid"},
        "Mul": {"swish"},
        "MatMul": {"dense"},
        "all at 3x3": {"wide", "deep", "mix", "sigmoid", "swish", "last"},
    }
    choices = {choice.name: set(choice.nodes) for choice in first_choices(chosen)}
    everything = {node.name for node in chosen}
    assert choices["nothing"] == set()
    assert choices["all but products"] == {"sigmoid", "swish"}
    assert choices["all but pointwise convolutions"] == everything - {"mix", "last"}
    assert len(choices) == 6
