"""What a delivery reads of an engine: its record, which must be of that very file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.delivery.contents import delivered_from
from pipeline.errors import ConfigError
from tests.pipeline.delivery.engines import IMAGE, SCORES, write_record


def test_the_record_says_what_the_engine_is(tmp_path: Path) -> None:
    path = tmp_path / "engine.plan"
    path.write_bytes(b"plan")
    write_record(path)
    delivered = delivered_from("resnet.orin", path, "tensorrt")
    assert (delivered.inputs, delivered.outputs) == ((IMAGE,), (SCORES,))
    assert (delivered.precision, delivered.compute_capability, delivered.max_batch) == ("int8", "8.7", 8)
    assert delivered.batch_of(delivered.profiles[0]) == 8
    assert delivered.files() == [path]
    assert delivered.has_batch


def test_without_a_record_or_with_half_of_one_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "engine.plan"
    path.write_bytes(b"plan")
    with pytest.raises(ConfigError, match="has no record, which says what its inputs are"):
        delivered_from("resnet.orin", path, "tensorrt")
    write_record(path, inputs=[{"name": "image"}])
    with pytest.raises(ConfigError, match="its record is not whole"):
        delivered_from("resnet.orin", path, "tensorrt")
    write_record(path, sha256="00" * 32)
    with pytest.raises(ConfigError, match="is the record of another file"):
        delivered_from("resnet.orin", path, "tensorrt")
