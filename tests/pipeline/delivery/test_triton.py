"""A Triton repository: read back by protobuf, with the numbers that its TensorRT backend checks."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.contract import TensorSpec
from pipeline.delivery.triton import TYPES, config_text, deliver_to_triton, triton_model
from pipeline.errors import ConfigError
from tests.pipeline.delivery.engines import IMAGE, SCORES, engine, profile
from tests.pipeline.delivery.model_config import ENUMS, parsed


def test_the_configuration_says_what_the_engine_is(tmp_path: Path) -> None:
    config = parsed(config_text(triton_model("resnet", [engine(tmp_path)], 0), 3))
    assert (config.name, config.backend, config.max_batch_size) == ("resnet", "tensorrt", 8)
    (image,), (scores,) = config.input, config.output
    assert (image.name, ENUMS["DataType"][image.data_type], list(image.dims)) == ("image", "TYPE_FP32", [3, 224, 224])
    assert (scores.name, list(scores.dims)) == ("scores", [1000])
    assert list(config.version_policy.specific.versions) == [3]
    (group,) = config.instance_group
    assert (ENUMS["Kind"][group.kind], group.count, list(group.profile)) == ("KIND_GPU", 1, [])
    assert config.default_model_filename == "model.plan"
    assert len(config.cc_model_filenames) == 0


def test_an_input_of_pixels_has_their_type_and_their_dims(tmp_path: Path) -> None:
    pixels = replace(IMAGE, dtype="uint8", shape=(-1, 224, 224, 3))
    config = parsed(config_text(triton_model("resnet", [engine(tmp_path, inputs=(pixels,))], 0), 1))
    (image,) = config.input
    assert (ENUMS["DataType"][image.data_type], list(image.dims)) == ("TYPE_UINT8", [224, 224, 3])


def test_dims_keep_the_batch_where_triton_is_told_none(tmp_path: Path) -> None:
    fixed = replace(IMAGE, shape=(1, 3, 224, 224))
    scalar = TensorSpec("loss", "float32", ())
    model = triton_model("resnet", [engine(tmp_path, inputs=(fixed,), outputs=(SCORES, scalar), profiles=())], 0)
    config = parsed(config_text(model, 1))
    assert config.max_batch_size == 0
    assert [list(spec.dims) for spec in (*config.input, *config.output)] == [[1, 3, 224, 224], [-1, 1000], [1]]
    assert config.output[1].HasField("reshape")
    assert list(config.output[1].reshape.shape) == []
    with pytest.raises(ConfigError, match=r"--max-batch 4: resnet\.orin has a fixed batch"):
        triton_model("resnet", [engine(tmp_path, inputs=(fixed,))], 4)


def test_of_several_profiles_those_that_take_the_largest_batch_are_named(tmp_path: Path) -> None:
    profiles = (profile(1), profile(16), profile(32))
    largest = engine(tmp_path, profiles=profiles, max_batch=32)
    config = parsed(config_text(triton_model("m", [largest], 0), 1))
    assert (config.max_batch_size, list(config.instance_group[0].profile)) == (32, ["2"])
    config = parsed(config_text(triton_model("m", [largest], 16), 1))
    assert (config.max_batch_size, list(config.instance_group[0].profile)) == (16, ["1", "2"])
    with pytest.raises(ConfigError, match="--max-batch 33: the engine takes at most 32; give a smaller one"):
        triton_model("m", [largest], 33)


def test_a_model_of_onnx_runtime_needs_to_be_told_its_largest_batch(tmp_path: Path) -> None:
    open_batch = engine(tmp_path, backend="onnxruntime", profiles=(), compute_capability="", max_batch=0)
    with pytest.raises(
        ConfigError, match="takes batches of any size, and Triton must be told the largest; give --max-b"
    ):
        triton_model("m", [open_batch], 0)
    config = parsed(config_text(triton_model("m", [open_batch], 16), 1))
    assert (config.backend, config.max_batch_size, config.default_model_filename) == ("onnxruntime", 16, "model.onnx")
    assert ENUMS["Kind"][config.instance_group[0].kind] == "KIND_AUTO"


def test_one_repository_serves_a_mixed_fleet(tmp_path: Path) -> None:
    orin, xavier = engine(tmp_path / "e"), engine(tmp_path / "e", "resnet.xavier", "7.2", max_batch=4)
    version = deliver_to_triton(triton_model("resnet", [orin, xavier], 0), tmp_path / "repository")
    assert {path.name: path.read_bytes() for path in version.iterdir()} == {
        "model.sm87.plan": b"engine resnet.orin", "model.sm72.plan": b"engine resnet.xavier",
    }  # fmt: skip
    config = parsed((tmp_path / "repository/resnet/config.pbtxt").read_text())
    assert {entry.key: entry.value for entry in config.cc_model_filenames} == {
        "8.7": "model.sm87.plan", "7.2": "model.sm72.plan",
    }  # fmt: skip
    assert config.max_batch_size == 4, "what all of them take"
    with pytest.raises(ConfigError, match=r"two are for compute capability '8\.7'"):
        triton_model("resnet", [orin, engine(tmp_path / "e", "other")], 0)
    odd = engine(tmp_path / "e", "other", "8.6", outputs=(replace(SCORES, name="probabilities"),))
    with pytest.raises(ConfigError, match="other: is not of the same backend, or does not take and give the tensors"):
        triton_model("resnet", [orin, odd], 0)


def test_versions_count_up_and_the_same_engine_is_the_same_version(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    first = deliver_to_triton(triton_model("resnet", [engine(tmp_path / "e")], 0), repository)
    assert first == repository / "resnet/1"
    assert deliver_to_triton(triton_model("resnet", [engine(tmp_path / "e")], 4), repository) == first
    assert parsed((repository / "resnet/config.pbtxt").read_text()).max_batch_size == 4
    second = deliver_to_triton(triton_model("resnet", [engine(tmp_path / "e", "newer")], 0), repository)
    assert second.name == "2"
    assert list(parsed((repository / "resnet/config.pbtxt").read_text()).version_policy.specific.versions) == [2]
    assert sorted(path.name for path in (repository / "resnet").iterdir()) == ["1", "2", "config.pbtxt"]
    assert deliver_to_triton(triton_model("resnet", [engine(tmp_path / "e")], 0), repository) == first, "back to it"


def test_every_type_that_is_written_is_one_of_tritons() -> None:
    assert set(TYPES.values()) <= set(ENUMS["DataType"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backend": "tensorrt_rtx"}, "Triton has no backend for an engine of tensorrt_rtx"),
        ({"inputs": (replace(IMAGE, dtype="complex64"),)}, "'image': is of type complex64, which Triton does not have"),
    ],
)
def test_what_triton_cannot_serve_is_said(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        config_text(triton_model("m", [engine(tmp_path, **changes)], 0), 1)
    with pytest.raises(ConfigError, match="--as 'a/b': is no name for a model"):
        triton_model("a/b", [engine(tmp_path)], 0)


def test_odd_names_of_tensors_are_read_back(tmp_path: Path) -> None:
    odd = replace(IMAGE, name='a "b"\\c/ü:0')
    config = parsed(config_text(triton_model("m", [engine(tmp_path, inputs=(odd,))], 0), 1))
    assert config.input[0].name == odd.name


def test_a_folder_in_the_way_of_the_configuration_stays(tmp_path: Path) -> None:
    mine = tmp_path / "models/resnet/config.pbtxt/mine"
    mine.mkdir(parents=True)
    with pytest.raises(ConfigError, match="pbtxt: is a folder, and a file of this name is written there; move it away"):
        deliver_to_triton(triton_model("resnet", [engine(tmp_path / "e")], 0), tmp_path / "models")
    assert mine.is_dir()
    assert [path.name for path in (tmp_path / "models/resnet").iterdir()] == ["config.pbtxt"]
