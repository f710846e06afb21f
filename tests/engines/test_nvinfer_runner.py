"""The runner's own work, on a pretended GPU: order of the calls, memory, shapes. It says nothing about TensorRT.

The pretended engine doubles its input: float32 (N, 2), N from 1 to 4.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.contract import DYNAMIC, Array, TensorSpec
from engines.errors import EngineError, Unavailable
from engines.nvinfer_runner import NvinferRunner


class Buffer:
    """Device memory: bytes, at an address."""

    addresses: dict[int, Buffer] = {}  # noqa: RUF012  what the pretended kernel reads and writes

    def __init__(self, num_bytes: int, calls: list[str]) -> None:
        self.data, self.calls = np.zeros(num_bytes, np.uint8), calls
        Buffer.addresses[id(self)] = self

    def __int__(self) -> int:
        return id(self)

    def free(self) -> None:
        self.calls.append("free")


class PretendedGpu:
    """Host memory that writes down what is done with it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __enter__(self) -> PretendedGpu:
        self.calls.append("enter")
        return self

    def __exit__(self, *error: object) -> None:
        self.calls.append("exit")

    def stream(self) -> Any:
        return SimpleNamespace(handle=7, synchronize=lambda: self.calls.append("synchronize"))

    def event(self) -> Any:
        return SimpleNamespace(record=lambda stream: self.calls.append("record"), time_till=lambda end: 0.25)

    def allocate(self, num_bytes: int) -> Buffer:
        self.calls.append(f"allocate {num_bytes}")
        return Buffer(num_bytes, self.calls)

    def pinned(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        return np.zeros(num_bytes, np.uint8)

    def copy_in(self, device: Buffer, host: Array, stream: Any) -> None:
        self.calls.append(f"in {host.shape}")
        device.data[: host.nbytes] = host.reshape(-1).view(np.uint8)

    def copy_out(self, host: Array, device: Buffer, stream: Any) -> None:
        self.calls.append(f"out {host.shape}")
        host[...] = device.data[: host.nbytes].view(host.dtype).reshape(host.shape)


class PretendedContext:
    def __init__(self, gpu: PretendedGpu) -> None:
        self.gpu, self.address, self.shape, self.works = gpu, {"x": 0, "y": 0}, (DYNAMIC, 2), True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape  # type: ignore[assignment]
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.address[name] = address

    def execute_async_v3(self, handle: int) -> bool:
        self.gpu.calls.append(f"execute on {handle}")
        source, target = (Buffer.addresses[self.address[name]].data.view(np.float32) for name in ("x", "y"))
        target[:] = source * 2
        return self.works


def pretended_trt(gpu: PretendedGpu, context: PretendedContext, **engine: Any) -> dict[str, Any]:
    class Logger:
        ERROR, INTERNAL_ERROR = 1, 0

    parts = {
        "num_io_tensors": 2,
        "get_tensor_name": lambda index: "xy"[index],
        "get_tensor_mode": lambda name: "IN" if name == "x" else "OUT",
        "get_tensor_dtype": lambda name: SimpleNamespace(name="FLOAT"),
        "get_tensor_location": lambda name: "DEVICE",
        "get_tensor_shape": lambda name: (DYNAMIC, 2),
        "get_tensor_profile_shape": lambda name, profile: ((1, 2), (2, 2), (4, 2)),
        "create_execution_context": lambda: context,
    } | engine
    loaded = SimpleNamespace(**parts)

    def load(data: bytes) -> Any:
        gpu.calls.append("load")
        return loaded if data == b"plan" else None

    return {
        "ILogger": Logger,
        "Runtime": lambda log: SimpleNamespace(deserialize_cuda_engine=load),
        "TensorIOMode": SimpleNamespace(INPUT="IN"),
        "TensorLocation": SimpleNamespace(DEVICE="DEVICE"),
    }


@pytest.fixture
def gpu() -> PretendedGpu:
    return PretendedGpu()


def runner_of(
    gpu: PretendedGpu, folder: Path, context: PretendedContext, data: bytes = b"plan", **engine: Any
) -> NvinferRunner:
    (folder / "engine.plan").write_bytes(data)
    trt = ModuleType("pretended")
    vars(trt).update(pretended_trt(gpu, context, **engine))
    return NvinferRunner(folder / "engine.plan", lambda: trt, lambda: gpu)


def feed(num_rows: int) -> dict[str, Array]:
    return {"x": np.arange(2 * num_rows, dtype=np.float32).reshape(num_rows, 2)}


def test_one_run(gpu: PretendedGpu, tmp_path: Path) -> None:
    with runner_of(gpu, tmp_path, PretendedContext(gpu)) as runner:
        assert runner.inputs == (TensorSpec("x", "float32", (DYNAMIC, 2)),)
        assert runner.outputs == (TensorSpec("y", "float32", (DYNAMIC, 2)),)
        assert gpu.calls == ["enter", "load", "allocate 32", "allocate 32"]  # 4 x 2 float32: the largest shape
        gpu.calls.clear()
        assert runner.device_ms() is None
        assert runner.infer(feed(3))["y"].tolist() == [[0, 2], [4, 6], [8, 10]]
        assert gpu.calls == ["in (3, 2)", "record", "execute on 7", "record", "out (3, 2)", "synchronize"]
        assert runner.device_ms() == 0.25
        gpu.calls.clear()
    assert gpu.calls == ["free", "free", "exit"]


def test_results_of_two_runs_do_not_share_memory(gpu: PretendedGpu, tmp_path: Path) -> None:
    with runner_of(gpu, tmp_path, PretendedContext(gpu)) as runner:
        first, second = runner.infer(feed(2)), runner.infer({"x": np.full((2, 2), 9, np.float32)})
    assert first["y"].tolist() == [[0, 2], [4, 6]]
    assert second["y"].tolist() == [[18, 18], [18, 18]]


def test_shapes_follow_the_feed_within_the_profile(gpu: PretendedGpu, tmp_path: Path) -> None:
    with runner_of(gpu, tmp_path, PretendedContext(gpu)) as runner:
        for num_rows in (4, 1, 1, 3):
            assert runner.infer(feed(num_rows))["y"].shape == (num_rows, 2)
        with pytest.raises(EngineError, match=r"shape \(5, 2\), the engine's profile goes from \(1, 2\) to \(4, 2\)"):
            runner.infer(feed(5))
        assert runner.infer(feed(1))["y"].tolist() == [[0, 2]]


def test_a_failed_execution_is_an_error(gpu: PretendedGpu, tmp_path: Path) -> None:
    context = PretendedContext(gpu)
    with runner_of(gpu, tmp_path, context) as runner:
        context.works = False
        with pytest.raises(EngineError, match=r"engine\.plan: execution failed \(it gave no reason\)"):
            runner.infer(feed(1))


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"create_execution_context": lambda: None}, "no execution context"),
        ({"get_tensor_dtype": lambda name: SimpleNamespace(name="FP8")}, "'x' is FP8, numpy has no such type"),
        ({"get_tensor_location": lambda name: "HOST"}, "'x' is a shape tensor in host memory"),
    ],
)
def test_engines_that_cannot_be_run_give_everything_back(
    gpu: PretendedGpu, tmp_path: Path, engine: dict[str, Any], words: str
) -> None:
    runner = runner_of(gpu, tmp_path, PretendedContext(gpu), **engine)
    with pytest.raises(EngineError, match=words), runner:
        pytest.fail("it cannot be entered")
    assert gpu.calls[-1] == "exit"
    assert gpu.calls.count("free") == sum(call.startswith("allocate") for call in gpu.calls)


def test_an_output_whose_shape_depends_on_the_data(gpu: PretendedGpu, tmp_path: Path) -> None:
    context = PretendedContext(gpu)
    context.get_tensor_shape = lambda name: (DYNAMIC, 2)  # type: ignore[method-assign]
    with (
        pytest.raises(EngineError, match=r"output 'y', \(\?, 2\), depends on the data"),
        runner_of(gpu, tmp_path, context),
    ):
        pytest.fail("it cannot be entered")
    assert gpu.calls[-2:] == ["free", "exit"]


def test_an_engine_that_the_library_refuses(gpu: PretendedGpu, tmp_path: Path) -> None:
    runner = runner_of(gpu, tmp_path, PretendedContext(gpu), data=b"trash")
    with pytest.raises(EngineError, match=r"the engine cannot be loaded .* build it again here"), runner:
        pytest.fail("it cannot be entered")
    assert gpu.calls == ["enter", "load", "exit"]


def test_without_a_gpu_the_library_is_not_even_imported(tmp_path: Path) -> None:
    class NoGpu(PretendedGpu):
        def __enter__(self) -> PretendedGpu:
            raise Unavailable("no GPU")

    runner = NvinferRunner(tmp_path / "engine", lambda: pytest.fail("imported"), NoGpu)
    with pytest.raises(Unavailable, match="no GPU"), runner:
        pytest.fail("it cannot be entered")
