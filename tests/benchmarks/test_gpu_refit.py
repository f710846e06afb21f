"""The steps that refit on a GPU, as commands: the networks differ in weights alone, and the plans can be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import onnx
import pytest

from benchmarks import gpu_refit
from benchmarks.gpu_cases import WEIGHTS, own_case
from benchmarks.gpu_refit import PRECISIONS, RefitCheck, has, other_weights, refits
from engines.backends import tensorrt
from engines.refit.network import first_difference, network_graph
from pipeline.plan import Plan, read_plan


@dataclass
class Steps:
    """Writes down what is run; a build and a refit leave a file."""

    done: list[tuple[str, ...]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    plans: list[tuple[str, Plan, bytes]] = field(default_factory=list)
    num_refitted: int = len(PRECISIONS)

    def run(self, title: str, *words: str | Path) -> str:
        self.done.append((title, *map(str, words[1:])))
        if "-o" in words:
            Path(words[-1]).touch()
        elif Path(words[2]).suffix == ".toml":
            plan = read_plan(Path(words[2]))
            self.plans.append((str(words[1]), plan, plan.resolved(plan.model.source).read_bytes()))
            for number in range(self.num_refitted if words[1] == "validate" else 0):
                folder = Path(words[-1]) / "refit" / str(number)
                folder.mkdir(parents=True)
                (folder / "record.json").touch()
        return ""

    def failed(self, title: str, problem: str) -> None:
        self.problems.append((title, problem))


def refitted(tmp_path: Path, steps: Steps, name: str = "tensorrt") -> Path:
    """All steps on the own network; its file."""
    case = own_case(tmp_path)
    build, flags = "external_kernels = false", ("--no-external-kernels",)
    check = RefitCheck(
        tmp_path / "refit", name, steps.run, steps.failed, build, flags, ("--data", tmp_path / "own.npz")
    )
    refits(check, case, tmp_path / "own.onnx")
    return tmp_path / "own.onnx"


def test_all_weights_are_others_in_the_same_graph(tmp_path: Path) -> None:
    own_case(tmp_path)
    new = other_weights(tmp_path / "own.onnx", tmp_path / "other.onnx")
    before, after = network_graph(tmp_path / "own.onnx"), network_graph(new)
    assert first_difference(before, after) == ""
    assert set(after.changed_from(before)) == set(WEIGHTS)
    onnx.checker.check_model(onnx.load(new), full_check=True)


def test_the_steps_where_the_generation_has_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_refit, "has", lambda _name, _weights: True)
    steps = Steps()
    model = refitted(tmp_path, steps)
    folder, new = str(tmp_path / "refit"), str(tmp_path / "refit" / "other.onnx")
    assert [(title, words[0]) for title, *words in steps.done] == [
        ("own: refittable, to be refitted", "build"), ("own: refittable, refitted", "refit"),
        ("own: refittable, refitted, judged", "validate"), ("own: refittable in each precision", "build"),
        ("own: new weights in each precision", "validate"), ("own: stripped, to be refitted", "build"),
        ("own: stripped, refitted", "refit"), ("own: stripped, refitted, judged", "validate"),
    ]  # fmt: skip
    assert steps.done[1][1:] == ("refit", f"{folder}/refittable.plan", new, "-o", f"{folder}/refittable-refitted.plan")
    assert steps.done[2][1:4] == ("validate", new, f"{folder}/refittable-refitted.plan")
    assert steps.done[6][3] == str(model), "it is filled with what it was built from"
    assert steps.done[5][7:10] == ("--weights", "stripped", "--no-external-kernels")
    (_, plan, first), (_, same, second) = steps.plans
    assert plan.build == same.build
    assert (plan.build.weights, plan.build.external_kernels) == ("refittable", False)
    assert plan.variants.precisions == PRECISIONS
    assert (first, second) == (model.read_bytes(), Path(new).read_bytes())
    assert steps.problems == []


def test_what_was_built_and_not_refitted_is_a_failed_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_refit, "has", lambda _name, weights: weights == "refittable")
    steps = Steps(num_refitted=2)
    refitted(tmp_path, steps)
    assert steps.problems == [
        ("own: new weights in each precision", "2 of 3 engines were refitted; its output says why not")
    ]
    assert not [words for words in steps.done if "stripped" in words[0]]


def test_who_refits_nothing_has_no_steps(tmp_path: Path) -> None:
    steps = Steps()
    refitted(tmp_path, steps, "onnxruntime")
    refitted(tmp_path, steps, "tensorrt_rtx")
    assert steps.done == []
    if tensorrt.why_not_build():
        assert not has("tensorrt", "refittable"), "it is not here"
