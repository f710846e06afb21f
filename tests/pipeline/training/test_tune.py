"""Tuning recovers what a bad calibration loses, is used only where it is better, and is what is deployed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.data.batches import Samples
from calibration.errors import DataError
from calibration.precision.placement import PlacementOptions, PlacementTarget
from calibration.ranges.ranges_file import ranges_from_folder
from engines.errors import EngineError
from engines.torch_graph import library
from pipeline.artifact import OnnxModel, Ranges
from pipeline.engine_runner import load_simulation
from pipeline.errors import ConfigError, Unavailable
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.quantize import Quantize
from pipeline.stages.tune import Tune
from pipeline.training.options import TrainingAim
from tests.pipeline.training.conftest import narrowed, samples_of

QUICK = Tune(epochs=6, batch_size=8, rate=0.01, num_threads=1)


@pytest.fixture(scope="module")
def bad_ranges(place: Path, ranges: Ranges) -> Ranges:
    """Each a quarter of the values' magnitude, as of samples that are too dark: the others are clipped."""
    return narrowed(ranges, place / "bad")


def aim_of(model: OnnxModel, target: PlacementTarget, metric: str = "", folder: Path = Path()) -> TrainingAim:
    return TrainingAim(model, metric, "", folder, PlacementOptions(target, arithmetic="u8s8"))


def answers(path: Path, samples: Samples) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with load_simulation(path, 1) as runner:
        return np.concatenate([runner.infer(feed)["y"] for feed in samples.batches(32)])


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_what_narrow_ranges_lose_is_learned_back(
    tmp_path: Path, model: OnnxModel, bad_ranges: Ranges, samples: Samples, target: PlacementTarget
) -> None:
    quantize = Quantize(target=target, arithmetic="u8s8")
    (tmp_path / "tuned").mkdir()
    tuned = QUICK(tmp_path / "tuned", model, bad_ranges, samples, aim_of(model, target))
    record = tuned.read()
    assert record["is_used"], record["decision"]
    assert record["best"] >= 1
    assert [epoch["epoch"] for epoch in record["epochs"]] == list(range(7))
    assert record["agreement_db"] is None or record["agreement_db"] > 100, "what is deployed is what was trained"
    (note, few) = json.loads((tmp_path / "tuned" / "notes.json").read_text())
    assert note.startswith("tune: of 6 epochs, epoch ")
    assert few.startswith("96 samples, of which 24 decide which epoch is best")

    exact = answers(model.path, samples)
    errors = []
    for name, weights, ranges in (("ptq", model, bad_ranges), ("int8", tuned.model, tuned.ranges)):
        (tmp_path / name).mkdir()
        written = quantize(tmp_path / name, weights, ranges)
        errors.append(float(np.square(answers(written.path, samples) - exact).mean()))
    assert errors[1] < errors[0] / 3
    other = Quantize(target="tensorrt" if target == "onnxruntime" else "onnxruntime")
    with pytest.raises(DataError, match=f"ranges: were tuned for {target}, with the weights that belong to them"):
        other(tmp_path, tuned.model, tuned.ranges)


def test_what_is_not_better_beyond_doubt_is_not_used(
    tmp_path: Path, model: OnnxModel, ranges: Ranges, samples: Samples
) -> None:
    still = replace(QUICK, rate=1e-12, epochs=1)
    tuned = still(tmp_path, model, ranges, samples, aim_of(model, "tensorrt"))
    assert not tuned.read()["is_used"]
    (note, _) = json.loads((tmp_path / "notes.json").read_text())
    assert "no epoch was better beyond doubt than the network by post-training quantization, which is used" in note
    record = ranges_from_folder(tuned.ranges.path)
    assert record.method == "minmax"
    assert record.tensors == ranges_from_folder(ranges.path).tensors
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ptq, same = Quantize()(tmp_path / "a", model, ranges), Quantize()(tmp_path / "b", tuned.model, tuned.ranges)
    assert onnx.load(ptq.path) == onnx.load(same.path)


def test_an_interrupted_training_goes_on_and_ends_the_same(
    tmp_path: Path, model: OnnxModel, bad_ranges: Ranges, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training import loop

    def run(name: str) -> str:
        (tmp_path / name / "work").mkdir(parents=True, exist_ok=True)
        tuned = QUICK(tmp_path / name / "work", model, bad_ranges, samples, aim_of(model, "tensorrt"))
        return tuned.digest()

    whole = run("whole")
    assert not list((tmp_path / "whole").glob(".train-*")), "what is done is not kept"
    real = loop._one_epoch
    num_epochs = []

    def interrupted(*arguments: object) -> float:
        num_epochs.append(1)
        if len(num_epochs) == 4:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_one_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("part")
    assert len(list((tmp_path / "part").glob(".train-*/state.pt"))) == 1
    (tmp_path / "part" / "work" / "tuned").rmdir()
    assert run("part") == whole
    assert len(num_epochs) == 4 + 3, "three whole epochs were not trained again"


def test_labels_train_and_the_metric_chooses(tmp_path: Path, place: Path, model: OnnxModel, bad_ranges: Ranges) -> None:
    both = replace(QUICK, loss="both", epochs=3)
    tuned = both(tmp_path, model, bad_ranges, samples_of(place, "y"), aim_of(model, "tensorrt", "top1"))
    record = tuned.read()
    assert record["metric"] == "top1"
    assert all(0 <= epoch["metric"] <= 1 for epoch in record["epochs"])


OWN_LOSS = """
def squared(answers, teacher, labels):
    return sum(((answers[name] - teacher[name]) ** 2).mean() for name in answers)

def count(answers, teacher, labels):
    return 3

def broken(answers, teacher, labels):
    raise KeyError("logits")
"""


def test_a_loss_of_ones_own(tmp_path: Path, model: OnnxModel, bad_ranges: Ranges, samples: Samples) -> None:
    (tmp_path / "losses.py").write_text(OWN_LOSS)
    aim = aim_of(model, "tensorrt", folder=tmp_path)
    own = replace(QUICK, loss="losses:squared", epochs=2)
    assert own(tmp_path, model, bad_ranges, samples, aim).read()["best"] >= 1
    for name, sentence in (
        ("count", "gave a int, a torch tensor of one number is expected"),
        ("broken", "raised KeyError"),
        ("absent", "absent"),
    ):
        (tmp_path / name).mkdir()
        with pytest.raises((ConfigError, DataError), match=sentence):
            replace(own, loss=f"losses:{name}")(tmp_path / name, model, bad_ranges, samples, aim)
    digest = replace(aim, loss=own.loss).digest()
    (tmp_path / "losses.py").write_text(OWN_LOSS.replace("** 2", "** 4"))
    assert replace(aim, loss=own.loss).digest() != digest, "what an earlier version trained is not served"


@pytest.mark.parametrize(
    ("loss", "labels", "limit", "sentence"),
    [
        ("labels", "", 0, "has no labels"),
        ("labels", "text", 0, "labels are text, which loss 'labels' cannot compare"),
        ("both", "same", 0, "all 96 samples are of class 0, from which nothing can be learned"),
        ("teacher", "", 5, "has 5 samples, of which 1 would be held out; at least 8 are needed to train"),
    ],
)
def test_samples_that_cannot_train(  # Fixtures.
    tmp_path: Path, place: Path, model: OnnxModel, ranges: Ranges, loss: str, labels: str, limit: int, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        replace(QUICK, loss=loss)(tmp_path, model, ranges, samples_of(place, labels, limit), aim_of(model, "tensorrt"))


def test_a_rate_that_is_too_high_is_stopped_and_told(
    tmp_path: Path, model: OnnxModel, ranges: Ranges, samples: Samples
) -> None:
    wild = replace(QUICK, rate=1.0, epochs=8)
    record = wild(tmp_path, model, ranges, samples, aim_of(model, "tensorrt")).read()
    assert not record["is_used"]
    assert record["stopped"].startswith("stopped ")
    assert record["stopped"].endswith("a lower rate may help")
    assert len(record["epochs"]) < 9


def test_what_cannot_be_trained_through_is_named(tmp_path: Path, model: OnnxModel, samples: Samples) -> None:
    proto = onnx.load(model.path)
    relu = next(node for node in proto.graph.node if node.op_type == "Relu")
    relu.op_type, relu.name = "Shrink", "odd"
    onnx.save(proto, tmp_path / "odd.onnx")
    odd = OnnxModel(tmp_path / "odd.onnx")
    ranges = Calibrate(method="minmax")(tmp_path, odd, samples)
    with pytest.raises(EngineError, match=r"node 'odd' \(Shrink\): cannot be trained through"):
        QUICK(tmp_path, odd, ranges, samples, aim_of(odd, "tensorrt"))


def test_unknown_answers_are_refused(tmp_path: Path, model: OnnxModel, ranges: Ranges, samples: Samples) -> None:
    with pytest.raises(ConfigError, match="answers: the model has no tensor 'hh'; did you mean 'h'"):
        replace(QUICK, answers=("hh",))(tmp_path, model, ranges, samples, aim_of(model, "tensorrt"))


def test_without_torch_it_is_said_at_once(
    tmp_path: Path, model: OnnxModel, ranges: Ranges, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "why_not", lambda: f"torch is not installed; {library.INSTALL}")
    with pytest.raises(Unavailable, match=r"tune: torch is not installed; pip install 'trtforge\[tune\]'"):
        QUICK(tmp_path, model, ranges, samples, aim_of(model, "tensorrt"))


def test_options_are_checked() -> None:
    for changes, sentence in (
        ({"loss": "kl"}, "loss is 'kl', but must be one of teacher, labels, both or module:function"),
        ({"held_out": 1.0}, "held_out is 1"),
        ({"rate": -1.0}, "rate is -1"),
        ({"epochs": 0}, "epochs is 0, but must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            replace(QUICK, **changes)
