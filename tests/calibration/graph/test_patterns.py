"""Which names a pattern means; one that means nothing is answered with the nearest."""

from __future__ import annotations

import onnx.parser
import pytest

from calibration.errors import DataError
from calibration.graph.patterns import check_known, matching, nodes_by_name, nodes_meant

NAMES = ["features/0/conv", "features/0/relu6", "features/1/relu6", "head/fc[0]", "head/fc0"]


def test_check_known_offers_the_nearest() -> None:
    check_known(["conv_1"], {"conv_1"}, "exclude")
    with pytest.raises(DataError, match=r"exclude: 'conv1' .* the nearest is 'conv_1', others are 'relu'"):
        check_known(["conv1"], {"conv_1", "relu"}, "exclude")
    with pytest.raises(DataError, match="no such tensor; the model has none"):
        check_known(["conv1"], [], "exclude", "tensor")


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("features/*/relu6", ("features/0/relu6", "features/1/relu6")),
        ("*relu?", ("features/0/relu6", "features/1/relu6")),
        ("features/[!1]/*", ("features/0/conv", "features/0/relu6")),
        ("head/fc[0]", ("head/fc[0]",)),
        ("*", tuple(NAMES)),
    ],
)
def test_a_pattern_is_a_shells_and_a_name_is_itself(pattern: str, meant: tuple[str, ...]) -> None:
    assert matching([pattern], NAMES, "exclude", "node") == meant
    assert matching([pattern, pattern], NAMES, "exclude", "node") == meant, "each once"


@pytest.mark.parametrize("pattern", ["Features/*", "features/2/*"])
def test_a_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(DataError, match=rf"^here: '{pattern.replace('*', '.')}' .*no such node; the nearest is 'feat"):
        matching([NAMES[0], pattern], NAMES, "here", "node")


def test_nodes_go_by_the_names_that_passes_give_them_and_by_operator() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[N,2] x) => (float[N,2] y)'
        "{ a = Relu (x) [last] b = Relu (a) y = own.twice (b) }"
        '<domain: "own", opset_import: ["" : 17]> twice (v) => (w) { w = Add (v, v) }'
    )
    nodes = nodes_by_name(model)
    assert [node.op_type for node in nodes.values()] == ["Relu", "Relu", "Add"]
    assert nodes_meant(nodes, ["Relu_*", "Add"], "exclude") == ("Relu_a", "Add")
