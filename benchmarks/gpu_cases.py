"""What `scripts/gpu_check` runs: its own small network, the networks of a data folder, and the plans for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from benchmarks.networks import NETWORKS, Network
from engines.contract import BuildOptions

OWN = """
<ir_version: 8, opset_import: ["" : 17]>
own (float[N, 3, 32, 32] image) => (float[N, 10] scores) {
  [conv1] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w1)
  [relu1] b = Relu (a)
  [conv2] c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, w2)
  [add] d = Add (c, b)
  [relu2] e = Relu (d)
  [conv3] f = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (e, w3)
  [relu3] g = Relu (f)
  [pool] h = GlobalAveragePool (g)
  [flat] i = Flatten <axis = 1> (h)
  [fc] scores = Gemm <transB = 1> (i, w4)
}
"""
"""A residual network whose weights are drawn: nobody has trained it; it has answers to agree on, and no accuracy."""
WEIGHTS = {"w1": (32, 3, 3, 3), "w2": (32, 32, 3, 3), "w3": (64, 32, 3, 3), "w4": (10, 64)}
NUM_CALIBRATION, NUM_EVALUATION = 64, 128
BATCHES = (1, 8, 32)
MOST_NATIVE = 16


OPTIONS: dict[str, tuple[BuildOptions, tuple[str, ...]]] = {
    "level 5": (BuildOptions(optimization_level=5), ("--optimization-level", "5")),
    "version-compatible": (BuildOptions(version_compatible=True), ("--version-compatible",)),
    "ampere_plus": (BuildOptions(hardware="ampere_plus"), ("--hardware", "ampere_plus")),
    "same_compute_capability": (
        BuildOptions(hardware="same_compute_capability"),
        ("--hardware", "same_compute_capability"),
    ),
    "refittable": (BuildOptions(weights="refittable"), ("--weights", "refittable")),
    "stripped": (BuildOptions(weights="stripped"), ("--weights", "stripped")),
}
"""Engines of the own network that the plans do not have: what is asked for, and how the command says it."""


@dataclass(frozen=True)
class Case:
    """A network with its data, as the head of a plan."""

    name: str
    head: str
    """TOML: `[model]` and `[data]`."""
    num_calibration: int
    """Samples to calibrate on."""

    def native_batch_size(self) -> int:
        """The largest batch, up to ``MOST_NATIVE``, of which the samples are a whole number: TensorRT reads no rest."""
        return max(size for size in range(1, MOST_NATIVE + 1) if not self.num_calibration % size)


def own_case(folder: Path) -> Case:
    """Make the own network and smooth random images for it."""
    draw = np.random.default_rng(0)
    model = onnx.parser.parse_model(OWN)
    for name, shape in WEIGHTS.items():
        weight = draw.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "own.onnx")
    coarse = draw.random((NUM_CALIBRATION + NUM_EVALUATION, 3, 8, 8), np.float32)
    images = np.kron(coarse, np.ones((4, 4), np.float32)) + draw.normal(0, 0.05, (len(coarse), 3, 32, 32))
    found = images.astype(np.float32)
    np.savez(folder / "own.npz", x_calib=found[:NUM_CALIBRATION], x_test=found[NUM_CALIBRATION:])
    return Case("own", _head(folder / "own.onnx", folder / "own.npz", "image", (3, 32, 32)), NUM_CALIBRATION)


def own_shapes() -> tuple[str, ...]:
    """The own network's profile, as the command takes it."""
    return tuple(
        part
        for word, batch in zip(("min", "opt", "max"), BATCHES)
        for part in (f"--{word}-shapes", f"image:{batch}x3x32x32")
    )


def cases_from_folder(folder: Path) -> list[Case]:
    """The trained networks that `benchmarks/networks.py` knows, as far as they are there; and each NAME.onnx with a
    NAME.npz beside it (`x_calib` and `x_test`; `y_test` for top-1), of one input with a free batch."""
    found = [_known(network, folder) for network in NETWORKS if (folder / network.source).exists()]
    for model in sorted(folder.glob("*.onnx")):
        if (data := model.with_suffix(".npz")).exists():
            (given,) = onnx.load(model, load_external_data=False).graph.input
            shape = tuple(dimension.dim_value for dimension in given.type.tensor_type.shape.dim[1:])
            with np.load(data) as arrays:
                labelled, num_calibration = "y_test" in arrays.files, len(arrays["x_calib"])
            head = _head(model, data, given.name, shape, labelled=labelled)
            found.append(Case(model.stem, head, num_calibration))
    return found


def plan_text(case: Case, report: str, precisions: Sequence[str], backends: Sequence[str], build: str) -> str:
    """A whole plan of that case; ``report``: its folder; ``build``: TOML for the stage of that name."""
    return (
        f"{case.head}[variants]\nprecisions = {json.dumps(precisions)}\nbackends = {json.dumps(backends)}\n"
        f'[calibrate]\nwatch = "all"\n'
        f"[build]\n{build}\n[benchmark]\nbatch_sizes = {list(BATCHES)}\nlayers = true\n"
        f'[benchmark.protocol]\nmin_seconds = 2.0\n[report]\nhtml = false\nfolder = "{report}"\n'
    )


def _known(network: Network, folder: Path) -> Case:
    head = _head(folder / network.source, folder / network.data, network.input, network.shape, labelled=True)
    preprocess = f'[data]\npreprocess = {{ scale = {network.scale}, dtype = "float32" }}\n'
    with np.load(folder / network.data) as arrays:
        num_calibration = len(arrays["x_calib"])
    return Case(Path(network.source).name, head.replace("[data]\n", preprocess), num_calibration)


def _head(model: Path, data: Path, name: str, shape: tuple[int, ...], *, labelled: bool = False) -> str:
    sizes = "".join(f"{key} = {[batch, *shape]}\n" for key, batch in zip(("min", "opt", "max"), BATCHES))
    labels = (', labels = "y_calib"', ', labels = "y_test"') if labelled else ("", "")
    if labelled:
        with np.load(data) as arrays:
            labels = (labels[0] if "y_calib" in arrays.files else "", labels[1])
    metric = 'metric = "top1"\n' if labelled else ""
    return (
        f'[model]\nsource = "{model}"\n[model.inputs.{json.dumps(name)}]\n{sizes}[data]\n{metric}'
        f'calibration = {{ path = "{data}", inputs = {{ {json.dumps(name)} = "x_calib" }}{labels[0]} }}\n'
        f'evaluation = {{ path = "{data}", inputs = {{ {json.dumps(name)} = "x_test" }}{labels[1]} }}\n'
    )
