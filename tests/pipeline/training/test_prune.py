"""Pruning at once and while training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.data.batches import Samples
from calibration.errors import ModelError
from engines.torch_graph import library
from pipeline.artifact import OnnxModel
from pipeline.engine_runner import load_simulation
from pipeline.errors import ConfigError, Unavailable
from pipeline.stages.prune import Prune
from pipeline.training.options import TrainingAim


def weights(model: OnnxModel) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model.path).graph.initializer}


def aim_of(model: OnnxModel) -> TrainingAim:
    return TrainingAim(model, "", "", Path())


def loss(model: OnnxModel, pruned: OnnxModel, samples: Samples) -> float:
    answers = []
    for each in (model, pruned):
        with load_simulation(each.path, 1) as runner:
            answers.append(np.concatenate([runner.infer(feed)["y"] for feed in samples.batches(32)]))
    return float(np.square(answers[0] - answers[1]).mean())


def test_at_once_needs_no_torch(
    tmp_path: Path, model: OnnxModel, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "why_not", lambda: "torch is not installed; install it")
    pruned = Prune(share=0.5)(tmp_path, model, samples, aim_of(model))
    shares = {name: float((array == 0).mean()) for name, array in weights(pruned).items()}
    assert shares == {"first": 0.5, "bias": 0.0, "second": 0.5, "last": 0.5}
    assert pruned.path.stat().st_size == pytest.approx(model.path.stat().st_size, rel=0.05)
    (note,) = json.loads((tmp_path / "notes.json").read_text())
    assert note.startswith(
        "prune: 1,480 of 2,976 weights are zero (50%), in 3 convolutions and matrix products; the size"
    )
    with pytest.raises(
        Unavailable, match="prune: torch is not installed; install it; or prune at once, with epochs = 0"
    ):
        Prune(epochs=1)(tmp_path, model, samples, aim_of(model))


def test_training_meanwhile_loses_less_and_keeps_the_zeros(tmp_path: Path, model: OnnxModel, samples: Samples) -> None:
    (tmp_path / "once").mkdir()
    (tmp_path / "work").mkdir()
    at_once = Prune(share=0.6)(tmp_path / "once", model, samples, aim_of(model))
    stage = Prune(share=0.6, epochs=10, batch_size=8, rate=0.01, num_threads=1)
    trained = stage(tmp_path / "work", model, samples, aim_of(model))
    record = json.loads((tmp_path / "work" / "training.json").read_text())
    assert record["is_used"], record["decision"]
    assert record["best"] >= 5, "an epoch without all its zeros is none to keep"
    assert loss(model, trained, samples) < loss(model, at_once, samples) / 2
    assert float((weights(trained)["second"] == 0).mean()) == pytest.approx(0.6, abs=0.01)


def test_two_of_four(tmp_path: Path, model: OnnxModel, samples: Samples) -> None:
    pruned = Prune(pattern="2:4")(tmp_path, model, samples, aim_of(model))
    zeros = (weights(pruned)["second"] == 0).reshape(16, 4, 4, 3, 3).sum(axis=2)
    assert (zeros == 2).all()
    with pytest.raises(ConfigError, match=r"share is 0.75, but the pattern 2:4 has a share of 0.5"):
        Prune(pattern="2:4", share=0.75)


def test_where_nothing_can_be_pruned(tmp_path: Path, model: OnnxModel, samples: Samples) -> None:
    with pytest.raises(ModelError, match="nothing can be pruned"):
        Prune(exclude=("Conv", "MatMul"))(tmp_path, model, samples, aim_of(model))
    for share in (0.0, 1.0):
        with pytest.raises(ConfigError, match="share is"):
            replace(Prune(), share=share)
