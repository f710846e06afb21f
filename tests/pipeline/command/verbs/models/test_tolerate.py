"""The verb `tolerate`, and what `validate` makes of its tolerances."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibration.data.batches import Samples, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from pipeline.artifact import OnnxModel
from pipeline.stages.tolerate import Rounding
from tests.pipeline.tolerances import INT8, answers, derived, sound

Command = Callable[..., Any]


def test_the_verb_and_what_validate_makes_of_it(tiny: Path, samples: Samples, command: Command) -> None:
    model = sound(OnnxModel(tiny / "tiny.onnx"), samples, "tensorrt")
    kind = ("--precision", "int8", "--simulate", "--data", "many.npz")
    said = command("tolerate", "tiny.onnx", *kind, "--method", "minmax", "-o", "tolerances.json")
    assert (said.status, said.out) == (0, "tolerances.json\n"), said.err
    assert json.loads((tiny / "tolerances.json").read_text())["target"] == "tensorrt"
    held = ("--tolerances", "tolerances.json")
    said = command("validate", "tiny.onnx", model.path, *kind, *held)
    assert said.status == 0, said.err
    answers(model, samples, "scaled.json", scale=1.2)
    said = command("validate", answers(OnnxModel(tiny / "tiny.onnx"), samples, "fp32.json").path,
                   model.path.parent / "scaled.json", "--precision", "int8", *held)  # fmt: skip
    assert said.status == 5
    assert "below the " in said.err
    assert "dB that was derived" in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tolerances", "none.json"), "none.json: cannot be read as tolerances ("),
        (("--tolerances", "fp32.json"), "fp32.json: was not written by `trtforge tolerate`; make it with that"),
        (("--tolerances", "half.json"), "half.json: is for fp16 engines, int8 is judged; derive them for it"),
        (
            ("--tolerances", "few.json"),
            "tolerances: were derived on 24 samples for output 'scores', 192 samples are ju",
        ),
    ],
)
def test_tolerances_that_do_not_belong(
    tiny: Path, fp32: OnnxModel, samples: Samples, command: Command, arguments: tuple[str, ...], words: str
) -> None:
    answers(fp32, samples, "fp32.json")
    derived(fp32, samples, Rounding("fp16", "none")).path.rename(tiny / "half.json")
    few = open_samples(DataSource("data.npz"), samples.specs, Preprocess())
    derived(fp32, few, INT8["tensorrt"]).path.rename(tiny / "few.json")
    said = command("validate", "fp32.json", "fp32.json", "--precision", "int8", *arguments)
    assert said.status == 2, said
    assert said.err.startswith(f"trtforge: {words}"), said.err


def test_what_the_verb_refuses(tiny: Path, command: Command) -> None:
    for arguments, words in (
        (("tiny.onnx", "--data", "data.npz"), "-o is missing: name the file to write, such as tolerances.json"),
        (("tiny.onnx", "-o", "t.json"), "--data is missing: "),
        (("none.onnx", "-o", "t.json"), "none.onnx: does not exist; give an ONNX file"),
        (("tiny.onnx", "--data", "data.npz", "-o", "t.json", "--num-draws", 2), "num_draws is 2, but must be at least"),
    ):
        said = command("tolerate", *arguments)
        assert said.status == 2, said
        assert said.err.startswith(f"trtforge: {words}"), said.err
    assert not (tiny / "t.json").exists()
