"""The networks of the offload's steps, what is expected of them, and what is said where it is not so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_offload
from benchmarks.gpu_offload import BACKENDS, FALLBACK, Offload, is_refused, networks, offload, problems
from engines import backend
from engines.backends import onnxruntime
from engines.ort.sharing import DESCRIPTION
from engines.support.by_list import answer_by_list
from engines.support.operator_lists import generation_named


def test_what_support_expects_of_the_networks(tmp_path: Path) -> None:
    models = networks(tmp_path)
    answers = {name: answer_by_list(model, generation_named("10.13"), {}) for name, model in models.items()}
    assert {name: len(answers[name].partition.outside) for name in FALLBACK} == FALLBACK
    assert [len(answer.partition.segments) for answer in answers.values()] == [1, 2, 0]


def test_they_run(tmp_path: Path) -> None:
    if reason := onnxruntime.why_not_run():
        pytest.skip(reason)
    models = networks(tmp_path)
    with np.load(tmp_path / "x.npz") as samples:
        for model in models.values():
            with onnxruntime.load(model, num_threads=1) as runner:
                assert np.isfinite(runner.infer({"x": samples["x"]})["y"]).all()


def description(folder: Path, model: str, *shares: tuple[str, tuple[str, ...], tuple[int, ...]]) -> Path:
    rows = [{"provider": p, "nodes": nodes, "operators": {}, "segments": sizes} for p, nodes, sizes in shares]
    (folder / DESCRIPTION).write_text(json.dumps({"model": model, "options": {}, "shares": rows}))
    return folder


def test_what_was_found_against_what_was_expected(tmp_path: Path) -> None:
    tensorrt, cuda = BACKENDS
    good = description(tmp_path, "context.onnx", ("T", ("first", "relu", "second"), (3,)))
    assert list(problems(tensorrt, "whole", good)) == []
    assert next(problems(tensorrt, "divided", good)).startswith("0 nodes run elsewhere, 1 were expected")
    divided = description(tmp_path, "model.onnx", ("T", ("first",), (1,)), ("C", ("det",), ()))
    assert list(problems(tensorrt, "divided", divided)) == []
    assert list(problems(cuda, "divided", divided)) == []
    assert list(problems(cuda, "whole", description(tmp_path, "model.onnx", ("C", (), ())))) == [
        "no node runs on the GPU"
    ]
    assert "session.json cannot be read" in next(problems(tensorrt, "whole", tmp_path / "nowhere"))


def test_without_a_gpu_why_not_is_said_and_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not all(backend(name).why_not_run() for name in BACKENDS):
        pytest.skip("there is a GPU with onnxruntime-gpu here")

    def run(title: str, *_: object) -> str:
        pytest.fail(f"{title} was run")

    def failed(title: str, problem: str) -> None:
        pytest.fail(f"{title}: {problem}")

    offload(Offload(tmp_path, run, failed))
    assert capsys.readouterr().err.count("gpu_check: not checked: onnxruntime_") == len(BACKENDS)
    assert "exit status 3: trtforge: onnxruntime_tensorrt: " in is_refused(
        tmp_path / "foreign.onnx", tmp_path / "engine"
    )


def test_a_step_is_named_after_its_backend() -> None:
    assert set(gpu_offload.NETWORKS) == {*FALLBACK, "foreign"}
