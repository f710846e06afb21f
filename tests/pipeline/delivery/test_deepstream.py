"""DeepStream's configuration: it agrees with the engine, and what nvinfer cannot do is refused by its key."""

from __future__ import annotations

import configparser
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.data.preprocess import Preprocess
from pipeline.delivery.deepstream import (
    PREPROCESS_CONFIG,
    config_text,
    deliver_to_deepstream,
    engine_name,
    picture_from,
)
from pipeline.errors import ConfigError
from tests.pipeline.delivery.engines import IMAGE, engine


def properties(text: str) -> dict[str, str]:
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.read_string(text)
    assert parser.sections() == ["property"]
    return dict(parser["property"])


def test_the_configuration_agrees_with_the_engine(tmp_path: Path) -> None:
    made = engine(tmp_path)
    preprocess = Preprocess(resize=(224, 224), scale=1 / 255, mean=(0.5, 0.25, 0.125), std=(0.5,), layout="nchw")
    picture = picture_from(made, preprocess)
    written = properties(config_text(made, picture, "classifier"))
    assert written["model-engine-file"] == engine_name(made) == "model.onnx_b8_gpu0_int8.engine"
    assert (written["batch-size"], written["network-mode"], written["network-type"]) == ("8", "1", "1")
    assert (written["infer-dims"], written["network-input-order"]) == ("3;224;224", "0")
    assert (written["model-color-format"], written["maintain-aspect-ratio"]) == ("0", "0")
    assert written["output-blob-names"] == "scores"
    assert "output-tensor-meta" not in written
    # The formula of nvinfer gives what the plan's preprocessing gives, for every grey level of every channel.
    x = np.arange(256, dtype=np.float64)[:, None].repeat(3, 1)
    offsets = np.array([float(number) for number in written["offsets"].split(";")])
    ours = (x * preprocess.scale - np.array(preprocess.mean)) / 0.5
    np.testing.assert_allclose(float(written["net-scale-factor"]) * (x - offsets), ours, atol=1e-6)


def test_bgr_nhwc_gray_and_letterbox(tmp_path: Path) -> None:
    nhwc = engine(tmp_path, inputs=(replace(IMAGE, shape=(-1, 224, 160, 3)),), precision="fp16")
    framed = Preprocess(resize=(224, 160), fit="letterbox", fill=0.0, channels="bgr", mean=(104.0,))
    written = properties(config_text(nhwc, picture_from(nhwc, framed), "other"))
    assert (written["infer-dims"], written["network-input-order"], written["network-mode"]) == ("3;224;160", "1", "2")
    assert (written["model-color-format"], written["offsets"]) == ("1", "104;104;104")
    assert (written["maintain-aspect-ratio"], written["symmetric-padding"]) == ("1", "1")
    assert (written["network-type"], written["output-tensor-meta"]) == ("100", "1")
    gray = engine(tmp_path, inputs=(replace(IMAGE, shape=(-1, 1, 28, 28)),))
    assert properties(config_text(gray, picture_from(gray, Preprocess()), "detector"))["model-color-format"] == "2"


@pytest.mark.parametrize(
    ("preprocess", "sentence"),
    [
        (
            Preprocess(std=(0.229, 0.224, 0.225)),
            "[data.preprocess] std: is [0.229, 0.224, 0.225], and DeepStream has one",
        ),
        (Preprocess(resize=(256,), crop=(224, 224)), "[data.preprocess] crop: DeepStream cuts nothing from the centre"),
        (Preprocess(resize=(224,)), "[data.preprocess] resize: the shorter side is resized"),
        (Preprocess(resize=(224, 224), fit="letterbox"), "[data.preprocess] fill: is 114, and DeepStream pads with 0"),
        (Preprocess(mean=(1.0, 2.0)), "[data.preprocess] mean: has 2 numbers, the input has 3 channels"),
    ],
)
def test_what_deepstream_cannot_do_is_refused_by_its_key(tmp_path: Path, preprocess: Preprocess, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        picture_from(engine(tmp_path), preprocess)


@pytest.mark.parametrize("shape", [(-1, 10), (-1, 3, -1, -1), (-1, 5, 5, 5)])
def test_an_input_that_is_no_picture_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"resnet\.orin: "):
        picture_from(engine(tmp_path, inputs=(replace(IMAGE, shape=shape),)), Preprocess())
    with pytest.raises(ConfigError, match="takes int64, nvinfer gives floats"):
        picture_from(engine(tmp_path, inputs=(replace(IMAGE, dtype="int64"),)), Preprocess())


def test_the_engine_is_there_before_the_configuration_names_it(tmp_path: Path) -> None:
    made = engine(tmp_path / "e")
    config = deliver_to_deepstream(made, picture_from(made, Preprocess()), "other", tmp_path / "out")
    assert config.with_name(properties(config.read_text())["model-engine-file"]).read_bytes() == b"engine resnet.orin"
    other = engine(tmp_path / "e", backend="onnxruntime")
    with pytest.raises(ConfigError, match="is an engine of onnxruntime, and DeepStream runs TensorRT's"):
        deliver_to_deepstream(other, picture_from(other, Preprocess()), "other", tmp_path / "out")


def test_a_network_that_takes_bytes_gets_them_from_gst_nvdspreprocess(tmp_path: Path) -> None:
    made = engine(tmp_path / "e", inputs=(replace(IMAGE, dtype="uint8", shape=(-1, 224, 160, 3)),))
    framed = Preprocess(
        resize=(224, 160), fit="letterbox", fill=0.0, channels="bgr", std=(0.2, 0.3, 0.4), layout="nchw"
    )
    with pytest.raises(
        ConfigError, match=r"takes uint8, so that it preprocesses by itself, and .* says fit into 224×160"
    ):
        picture_from(made, framed)
    config = deliver_to_deepstream(made, picture_from(made, framed.of_bytes()), "detector", tmp_path / "out")
    written = properties(config.read_text())
    assert (written["net-scale-factor"], written["offsets"], written["input-tensor-from-meta"]) == ("1", "0;0;0", "1")
    assert (written["model-color-format"], written["network-input-order"]) == ("0", "1"), "RGB: the order is folded"
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.read_string(config.with_name(PREPROCESS_CONFIG).read_text())
    tensor = parser["property"]
    assert (tensor["tensor-data-type"], tensor["tensor-name"], tensor["network-input-order"]) == ("1", "image", "1")
    assert (tensor["network-input-shape"], tensor["network-color-format"]) == ("8;224;160;3", "0")
    assert (tensor["processing-width"], tensor["processing-height"]) == ("160", "224")
    assert tensor["target-unique-ids"] == written["gie-unique-id"]
    assert (tensor["maintain-aspect-ratio"], tensor["symmetric-padding"]) == ("1", "1")
    assert parser["user-configs"]["pixel-normalization-factor"] == "1"
    assert parser["group-0"]["src-ids"] == "0;1;2;3;4;5;6;7"


def test_floats_need_no_second_configuration(tmp_path: Path) -> None:
    made = engine(tmp_path / "e")
    config = deliver_to_deepstream(made, picture_from(made, Preprocess()), "other", tmp_path / "out")
    assert "input-tensor-from-meta" not in properties(config.read_text())
    assert not config.with_name(PREPROCESS_CONFIG).exists()


@pytest.mark.parametrize("name", ["model.onnx_b8_gpu0_int8.engine", "config_infer.txt"])
def test_a_folder_with_the_name_of_a_file_stays(tmp_path: Path, name: str) -> None:
    made, mine = engine(tmp_path / "e"), tmp_path / "out" / name / "mine"
    mine.mkdir(parents=True)
    with pytest.raises(ConfigError, match="is a folder, and a file of this name is written there; move it away"):
        deliver_to_deepstream(made, picture_from(made, Preprocess()), "other", tmp_path / "out")
    assert mine.is_dir()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
