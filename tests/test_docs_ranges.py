"""The page on ranges is held to the code: its commands run, and its tables have every key."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from PIL import Image

from calibration.ranges.ranges import METHODS, Origin, TensorRange
from calibration.ranges.ranges_file import FORMAT_VERSION
from calibration.ranges.stop import Stop
from pipeline.command.verbs.models.ranges import KINDS

if TYPE_CHECKING:
    from tests.conftest import Command

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "ranges.md").read_text(encoding="utf-8")


def keys(head: str) -> list[str]:
    """The first column of the table with this head."""
    table = PAGE[PAGE.index(f"| {head} |") :].split("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)


def test_the_page_has_every_key_of_the_file() -> None:
    own = ("format_version", "method", "percentile", *(one.name for one in fields(Origin)), "tensors")
    assert sorted(keys("key")) == sorted(own)
    assert keys("key of a tensor") == [one.name for one in fields(TensorRange)]
    assert keys("key of stop.json") == [one.name for one in fields(Stop)]
    assert f"Format version {FORMAT_VERSION}." in PAGE
    assert all(f"`{method}`" in PAGE for method in METHODS)


def test_the_page_has_every_kind_of_table() -> None:
    assert keys("to") == list(KINDS)


def activation_scales(path: Path) -> dict[str, bytes]:
    """Scale by the tensor that it rounds."""
    graph = onnx.load(path).graph
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    rounding = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in arrays]
    assert rounding
    return {node.input[0]: arrays[node.input[1]].raw_data for node in rounding}


def test_the_pages_commands_run(command: Command, tiny: Path) -> None:
    images = np.load("data.npz")["image"]
    np.savez("day1.npz", image=images[:12])
    np.savez("day2.npz", image=images[12:])
    (tiny / "tiny.onnx").rename("model.onnx")
    lines = [
        line[2:] for block in re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()
    ]
    assert len(lines) == 10
    for line in lines:
        said = command(*shlex.split(line)[1:])
        assert said.status == 0, f"{line}\n{said.err}"
    assert json.loads((tiny / "ranges" / "ranges.json").read_text())["num_samples"] == 24
    first, other = (activation_scales(tiny / name) for name in ("int8.onnx", "int8_of_cache.onnx"))
    assert first == other, "a cache has no means of channels, so biases differ"


def test_the_example_in_python_finds_what_the_command_finds(command: Command, tiny: Path) -> None:
    (tiny / "tiny.onnx").rename("model.onnx")
    (tiny / "data.npz").rename("day1.npz")
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(example, {})
    assert command("quantize", "model.onnx", "--data", "day1.npz", "-o", "int8.onnx").status == 0
    assert Path("int8_by_hand.onnx").read_bytes() == Path("int8.onnx").read_bytes()


PHOTOS = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 224, 224, 3] image) => (float[N, 32, 54, 54] y)
{
    t = Transpose <perm = [0, 3, 1, 2]> (image)
    a = Conv <strides = [4, 4]> (t, w)
    y = Conv (a, v)
}"""


SHOWN = ("show", "show", "merge", "convert", "convert")


def test_the_examples_in_the_help_run(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(PHOTOS)
    for name, num_in in {"w": 3, "v": 32}.items():
        kernel = random.standard_normal((32, num_in, 3, 3), np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(kernel, name))
    onnx.save(model, "model.onnx")
    for folder in ("photos", "monday", "tuesday"):
        Path(folder).mkdir()
        for number in range(2):
            Image.fromarray(random.integers(0, 256, (260, 300, 3), np.uint8)).save(f"{folder}/{number}.png")
    examples = [
        shlex.split(line)[1:]
        for verb in ("calibrate", "ranges")
        for line in re.findall(r"^ +(trtforge .*)$", command(verb, "--help").out.replace("\\\n", ""), re.MULTILINE)
    ]
    assert [" ".join(each[:2]) for each in examples[1:]] == [f"ranges {verb}" for verb in SHOWN]
    for day in ("monday", "tuesday"):
        given = [day if part == "photos" else f"{day}.ranges" if part == "ranges" else part for part in examples[0]]
        assert command(*given).status == 0
        Path(day).rename(f"photos of {day}")
        Path(f"{day}.ranges").rename(day)
    for each in examples:
        said = command(*each)
        assert said.status == 0, f"{each}\n{said.err}"
