"""A made-up backend whose engines can be refitted, in a copy of the program; onnx's evaluator runs them.

An engine is the ONNX file that it was built from. A refit puts the values of another file's weights into it, but for
those whose name begins with `folded`, which its builder is said to have folded into others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from tests.test_extension import program_in

BACKEND = '''"""A made-up runtime whose engines take new weights."""

import json
from dataclasses import replace
from pathlib import Path

import onnx

from engines.backends import reference
from engines.backends.reference import (
    CAN_BUILD, GPU, INSTALL, NEEDS_RANGES, PLACEMENT, STREAMS, TAKES, layer_times, versions, why_not_build,
    why_not_run,
)
from engines.errors import EngineError, Unavailable
from engines.refitting import RefitOutcome

NAME, SUFFIX, OBEYS = "slate", ".slate", frozenset({"weights"})
BLANK = b"stripped"


def refuse(options):
    reference.refuse(replace(options, weights="fixed"))


def build(model, engine, options):
    record = reference.build(model, engine, replace(options, weights="fixed"))
    if options.weights == "stripped":
        engine.write_bytes(BLANK)
    return replace(record, backend=NAME, options={"weights": options.weights}, size_bytes=engine.stat().st_size)


def load(engine, *, num_threads):
    if engine.read_bytes() == BLANK:
        raise Unavailable(f"{engine}: has no weights")
    return reference.load(engine, num_threads=num_threads)


def refit(engine, model, target, changed):
    if fixed := [name for name in changed if name.startswith("folded")]:
        raise EngineError(f"{engine}: weights {fixed} were folded into others")
    source = onnx.load(model)
    is_blank = engine.read_bytes() == BLANK
    proto = source if is_blank else onnx.load_model_from_string(engine.read_bytes())
    values = {tensor.name: tensor for tensor in source.graph.initializer}
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(values[tensor.name])
    target.write_bytes(proto.SerializeToString())
    return RefitOutcome(target.stat().st_size, 0.25, len(values), not is_blank)
'''
NETWORK = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x) => (float[N, 2] y)
<float[4, 2] w = {W}, float[2] folded_b = {0.5, B}>
{ [fc] xw = MatMul(x, w) [bias] y = Add(xw, folded_b) }"""
PLAN = """
[model]
source = "model.onnx"
[data]
calibration = { path = "data.npz", inputs = { x = "calibration" } }
evaluation = { path = "data.npz", inputs = { x = "evaluation" } }
[variants]
precisions = ["fp32"]
backends = ["slate"]
[lint]
allow = ["range", "classes"]
[build]
weights = "refittable"
[gate]
candidate = "fp32@slate"
html = false
sampled = false
pays = false
budgets = ["size_mib <= 1"]
"""


def program_with_slate(folder: Path) -> Path:
    """The copy."""
    root = program_in(folder)
    (root / "engines/backends/slate.py").write_text(BACKEND)
    return root


def write_network(file: Path, *, first: float = 1.0, last: float = -0.5, more: str = "") -> Path:
    """The network with these weights, and further nodes where they are given."""
    weights = ", ".join(map(str, (first, *range(2, 9))))
    text = NETWORK.replace("{W}", f"{{{weights}}}").replace("B}", f"{last}}}")
    onnx.save(onnx.parser.parse_model(text.replace("y = Add(xw, folded_b)", more) if more else text), file)
    return file


def write_plan(folder: Path, text: str = PLAN) -> Path:
    """A plan with its network and samples."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(5)
    calibration, evaluation = (random.standard_normal((40, 4)).astype(np.float32) for _ in range(2))
    np.savez(folder / "data.npz", calibration=calibration, evaluation=evaluation, x=evaluation)
    write_network(folder / "model.onnx")
    (folder / "plan.toml").write_text(text)
    return folder / "plan.toml"
