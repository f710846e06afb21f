"""Operators that a file in integers keeps in floating point on purpose are named in it; no others are let through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.backends import litert
from engines.contract import BuildOptions
from engines.errors import EngineError
from engines.litert.in_float import ENTRY, with_operators_in_float
from tests.tflite_files import TfliteWriter, save_cosine_in_int8, save_linear

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")


def naming(path: Path, names: list[str]) -> Path:
    """The same file with these operators named."""
    import flatbuffers

    path.write_bytes(with_operators_in_float(litert.schema(), flatbuffers, path.read_bytes(), names))
    return path


def test_what_is_named_is_read_again(tmp_path: Path) -> None:
    assert litert.tflite_facts(save_linear(tmp_path / "m.tflite")).meant_in_float == frozenset()
    facts = litert.tflite_facts(naming(save_linear(tmp_path / "m.tflite"), ["a/b", "größe"]))
    assert facts.meant_in_float == {"a/b", "größe"}


def test_a_float_operator_that_is_named_is_built_and_told(tmp_path: Path) -> None:
    model = naming(save_cosine_in_int8(tmp_path / "m.tflite"), ["turned"])
    record = litert.build(model, tmp_path / "engine.tflite", BuildOptions("int8"))
    assert record.notes[0] == "1 of 4 operators compute in FP32, as [ptq] exclude has it: COS 'turned'."
    assert (record.num_quantizable, record.num_int8) == (1, 1)


def test_a_float_operator_that_is_not_named_is_refused_beside_one_that_is(tmp_path: Path) -> None:
    model = naming(save_cosine_in_int8(tmp_path / "m.tflite"), ["another"])
    with pytest.raises(EngineError, match=r"1 of 4 operators compute in floating point, COS 'turned'; in int8 all are"):
        litert.build(model, tmp_path / "engine.tflite", BuildOptions("int8"))


@pytest.mark.parametrize("text", [b"no JSON", b'{"turned": 1}', b"[1]", b"\xff"])
def test_an_entry_that_is_no_list_of_names(text: bytes, tmp_path: Path) -> None:
    writer = TfliteWriter()
    x, y = writer.tensor("x", (1, 3)), writer.tensor("y", (1, 3))
    writer.operator("RELU", [x], [y])
    entry, buffer = writer.schema.MetadataT(), writer.schema.BufferT()
    entry.name, entry.buffer, buffer.data = ENTRY.encode(), len(writer.model.buffers), np.frombuffer(text, np.uint8)
    writer.model.buffers.append(buffer)
    writer.model.metadata = [entry]
    with pytest.raises(EngineError, match=r"is not a whole \.tflite file"):
        litert.tflite_facts(writer.save(tmp_path / "m.tflite", [x], [y]))
