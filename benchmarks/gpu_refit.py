"""What needs a GPU of refits: weights that go into an engine, judged against the model that they are of.

Part of `scripts/gpu_check`. Each step is a command: the own network in FP32 is refitted by the verb, and an engine of
it without weights filled; a plan in FP32, FP16 and INT8 is built, and run again with other weights. What was then built
and not refitted is a failed step, and TensorRT's reason is in its output: which weights a generation folds into others
is what nobody has seen yet.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.gpu_cases import Case, own_shapes, plan_text
from engines import backend
from engines.contract import BuildOptions
from engines.refitting import RefittingBackend
from pipeline.errors import Unavailable

PRECISIONS = ("fp32", "fp16", "int8")
FACTOR = 1.25
"""What the own network's weights are multiplied by: other ranges and scales, the same graph."""
Run = Callable[..., str]


@dataclass(frozen=True)
class RefitCheck:
    """Where it works, and what runs a step."""

    folder: Path
    backend: str
    run: Run
    """Title and words of `python -m`; what it printed."""
    failed: Callable[[str, str], None]
    """Told a title and a problem."""
    build: str
    """TOML for [build]."""
    flags: Sequence[str]
    """As the command says the same."""
    judged: Sequence[str | Path]
    """Options of `validate`: samples and tolerances."""


def has(name: str, weights: str) -> bool:
    """Whether a backend here builds engines with such weights, and refits them."""
    try:
        backend(name).refuse(BuildOptions(weights=weights))  # type: ignore[arg-type]  # Of ``Weights``.
    except Unavailable:
        return False
    return isinstance(backend(name), RefittingBackend)


def other_weights(model: Path, target: Path) -> Path:
    """The network with other weights: each tensor has another sign in a part of it, and is larger."""
    proto, draw = onnx.load(model), np.random.default_rng(1)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        signs = np.where(draw.random(values.shape) < 0.25, -FACTOR, FACTOR).astype(values.dtype)
        tensor.CopyFrom(numpy_helper.from_array(values * signs, tensor.name))
    onnx.save(proto, target)
    return target


def refits(check: RefitCheck, case: Case, model: Path) -> None:
    """All of it for the own network; a backend that refits nothing has no steps."""
    check.folder.mkdir(parents=True, exist_ok=True)
    new = other_weights(model, check.folder / "other.onnx")
    if has(check.backend, "refittable"):
        by_verb(check, "refittable", model, new)
        by_plan(check, case, model, new)
    if has(check.backend, "stripped"):
        by_verb(check, "stripped", model, model)


def by_verb(check: RefitCheck, weights: str, model: Path, new: Path) -> None:
    """An FP32 engine with those weights, and one with the new ones, judged against their model."""
    plan, target = check.folder / f"{weights}.plan", check.folder / f"{weights}-refitted.plan"
    for file in (plan, target):
        file.unlink(missing_ok=True)
    built = ("--backend", check.backend, "--precision", "fp32", "--weights", weights, *check.flags, *own_shapes())
    check.run(f"own: {weights}, to be refitted", "pipeline", "build", model, *built, "-o", plan)
    if plan.exists():
        check.run(f"own: {weights}, refitted", "pipeline", "refit", plan, new, "-o", target)
    if target.exists():
        check.run(f"own: {weights}, refitted, judged", "pipeline", "validate", new, target, *check.judged)


def by_plan(check: RefitCheck, case: Case, model: Path, new: Path) -> None:
    """A plan run with one network, and with the other in its place."""
    source = check.folder / "source.onnx"
    moved = Case(case.name, case.head.replace(str(model), str(source)), case.num_calibration)
    build = f'weights = "refittable"\n{check.build}'
    text = plan_text(moved, "report-refit", PRECISIONS, (check.backend,), build)
    plan = check.folder / "refit.toml"
    plan.write_text(text)
    store = ("--store", check.folder / "store")
    shutil.copy(model, source)
    check.run("own: refittable in each precision", "pipeline", "build", plan, *store)
    shutil.copy(new, source)
    title = "own: new weights in each precision"
    check.run(title, "pipeline", "validate", plan, *store)
    refitted = list((check.folder / "store" / "refit").glob("*/record.json"))
    if len(refitted) < len(PRECISIONS):
        check.failed(title, f"{len(refitted)} of {len(PRECISIONS)} engines were refitted; its output says why not")
