"""What the tests of the command line share: a tiny network with data, and the command called in this process."""

from __future__ import annotations

import logging
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, settings

from calibration.data.user_function import forgotten_modules
from calibration.file_digest import remember_in, remembered_in
from tests.made import QUICK_PROTOCOL, model_with_weights

sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
"""Tests of TensorFlow's networks and of PyTorch's run in one process here, which is ended by both of their LLVMs; what
runs for users has a process for each."""

settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")
"""How long an example takes says how busy the machine is, not whether the code is right."""

TINY = """
<ir_version: 8, opset_import: ["" : 17]>
tiny (float[N,4,8,8] image) => (float[N,3] scores) {
  convolved = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, kernel, bias)
  active = Relu (convolved)
  pooled = GlobalAveragePool (active)
  flat = Flatten <axis = 1> (pooled)
  scores = Gemm (flat, weight, offset)
}
"""
"""A convolution and a matrix product, with the batch open."""


@dataclass(frozen=True)
class Said:
    """What one call of the command came to."""

    status: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heard() -> None:
    """A shell without job control starts what it puts in the background with ctrl-C ignored, for its children too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes what runs before left in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def tiny_model() -> onnx.ModelProto:
    """The network above with weights drawn once and for all."""
    return model_with_weights(TINY, 7, kernel=(8, 4, 3, 3), bias=(8,), weight=(8, 3), offset=(3,))


def tiny_in(folder: Path) -> None:
    """Write `tiny.onnx`, and `data.npz`: 24 images and labels `y`."""
    random = np.random.default_rng(8)
    onnx.save(tiny_model(), folder / "tiny.onnx")
    images = random.normal(size=(24, 4, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", image=images, y=np.arange(24) % 3)


def plan_in(folder: Path) -> Path:
    """Write a plan for the tiny network beside it: FP32 and INT8 on ONNX Runtime, timed in a moment."""
    path = folder / "plan.toml"
    path.write_text(
        """
[model]
source = "tiny.onnx"

[data]
calibration = { path = "data.npz", limit = 12 }
evaluation = { path = "data.npz", labels = "y" }
metric = "top1"

[variants]
precisions = ["fp32", "int8"]

[calibrate]
method = "minmax"  # Two dozen samples are too few for a histogram to be read otherwise.

[benchmark]
num_threads = 1
"""
        + QUICK_PROTOCOL
        + """
[report]
html = false
"""
    )
    return path


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, made the current one, with the tiny network and data for it."""
    tiny_in(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def plan(tiny: Path) -> Path:
    """The plan beside the tiny network."""
    return plan_in(tiny)


@contextmanager
def process_as_before() -> Iterator[None]:
    """The command sets up its process: the logging, and where digests are remembered. Afterwards both are as before."""
    root, table = logging.getLogger(), remembered_in()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        remember_in(table)


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    with process_as_before():
        yield


@pytest.fixture(autouse=True)
def _users_modules_as_before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test imports from its own folder is forgotten after it: another test's file may have the same name."""
    with forgotten_modules(tmp_path_factory.getbasetemp()):
        yield


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`trtforge ...` in this process, with the same errors and exit statuses as the command has."""
    from pipeline.command.cli import status_of

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        status = status_of([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return call


@dataclass(frozen=True)
class Packed:
    """What packing the tiny plan made; nobody changes these files."""

    bundle: Path
    store: Path


@pytest.fixture(scope="session")
def packed_once(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """The tiny plan packed; the network, its data and the plan are gone."""
    from pipeline.command.cli import status_of

    made = tmp_path_factory.mktemp("packed")
    packed, folder = Packed(made / "bundle.tar", made / "store"), made / "source"
    folder.mkdir()
    tiny_in(folder)
    with process_as_before():
        assert status_of(["pack", str(plan_in(folder)), "-o", str(packed.bundle), "--store", str(packed.store)]) == 0
    shutil.rmtree(folder)
    return packed


@pytest.fixture
def warm_store(packed_once: Packed, tmp_path: Path) -> Path:
    """A store of the test's own with all that packing the tiny plan made."""
    return Path(shutil.copytree(packed_once.store, tmp_path / "warm", symlinks=True))
