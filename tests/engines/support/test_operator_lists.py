"""The releases of TensorRT and the operators that they read."""

from __future__ import annotations

import onnx.defs
import pytest

from engines.errors import Unavailable
from engines.support.operator_lists import ADDED, OF_8_5, RELEASES, TensorRtRelease, generation_named

IN_PARSERS_ALONE = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}
"""Of ONNX's first days."""


def test_what_each_release_was_the_first_to_read() -> None:
    sizes = {TensorRtRelease(release).name: len(TensorRtRelease(release).operators) for release in RELEASES}
    counted = {name: sizes[name] for name in ("8.5", "8.6", "10.0", "10.1", "10.3", "10.15")}
    assert counted == {"8.5": 142, "8.6": 145, "10.0": 149, "10.1": 150, "10.3": 150, "10.15": 158}
    assert "LayerNormalization" not in generation_named("8.5").operators
    assert "LayerNormalization" in generation_named("8.6.2.3").operators
    assert generation_named("8.5").first_with("Attention") == "10.14"
    assert generation_named("8.5").first_with("Det") == ""


def test_all_are_operators_of_onnx() -> None:
    names = OF_8_5.union(*ADDED.values())
    assert names - {schema.name for schema in onnx.defs.get_all_schemas_with_history()} == IN_PARSERS_ALONE


@pytest.mark.parametrize(
    ("version", "largest", "refused"), [("8.5", 17, 18), ("8.6", 17, 18), ("10.0", 20, 21), ("10.3", 20, 25)]
)
def test_opsets_that_are_read_and_refused_for_certain(version: str, largest: int, refused: int) -> None:
    release = generation_named(version)
    assert (release.largest_opset, release.refused_opset) == (largest, refused)


@pytest.mark.parametrize("text", ["8.4", "11.2", "10", "10.x", "", "9.3", "10.16", "\u0661\u0660.3"])
def test_another_version_is_refused_with_those_that_are_listed(text: str) -> None:
    with pytest.raises(Unavailable, match=r"the operators of 8\.5, 8\.6 and 10\.0 to 10\.15 are listed here; choose"):
        generation_named(text)
