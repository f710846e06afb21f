"""What a delivery reads of an engine: its record, which must be of that very file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.delivery.contents import delivered_from, delivering_to
from pipeline.delivery.triton import deliver_to_triton, triton_model
from pipeline.errors import ConfigError
from tests.pipeline.delivery.engines import IMAGE, SCORES, engine, write_record
from tests.pipeline.delivery.model_config import parsed


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


def test_of_many_who_deliver_at_once_each_finds_what_the_one_before_wrote_whole(tmp_path: Path) -> None:
    repository = tmp_path / "repository"

    def deliver(number: int) -> Path:
        model = triton_model("m", [engine(tmp_path / str(number), f"e{number}")], 0)
        with delivering_to(repository / "m"):
            version = deliver_to_triton(model, repository)
            config = parsed((repository / "m/config.pbtxt").read_text())
            assert list(config.version_policy.specific.versions) == [int(version.name)], "nobody came between"
            assert (version / "model.plan").read_bytes() == f"engine e{number}".encode()
        return version

    with ThreadPoolExecutor(8) as threads:
        versions = list(threads.map(deliver, range(24)))
    assert sorted(int(version.name) for version in versions) == list(range(1, 25))
