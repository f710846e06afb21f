"""The runner's own work, on a pretended GPU: order of the calls, memory, shapes. It says nothing about TensorRT."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.contract import DYNAMIC, DeviceTimes, GpuUse, LayerFacts, LayerTime, TensorSpec
from engines.errors import EngineError, OutOfMemory, Unavailable
from engines.nvinfer.builder import logger
from engines.nvinfer.runner import NUM_UNTOLD, NvinferRunner
from tests.engines.nvinfer.pretended import (
    ONE_PROFILE,
    PLAIN,
    PretendedContext,
    PretendedGpu,
    feed,
    pretended_trt,
    runner_of,
)

SPLIT = (((1, 2), (1, 2), (2, 2)), ((3, 2), (4, 2), (8, 2)))
"""Two profiles: one or two rows, three to eight."""


def test_one_run(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    with runner_of(gpu, tmp_path, trt) as runner:
        assert runner.inputs == (TensorSpec("x", "float32", (DYNAMIC, 2)),)
        assert runner.outputs == (TensorSpec("y", "float32", (DYNAMIC, 2)),)
        assert gpu.calls == ["enter", "load", "allocate 32", "allocate 32"]  # 4 x 2 float32: the largest shape
        gpu.calls.clear()
        assert runner.device_ms() is None
        assert runner.facts().times is None
        assert runner.infer(feed(3))["y"].tolist() == [[0, 2], [4, 6], [8, 10]]
        assert gpu.calls == [
            "record", "in (3, 2)", "record", "execute on 7", "record", "out (3, 2)", "record", "wait",
        ]  # fmt: skip
        assert runner.device_ms() == 2
        gpu.calls.clear()
    assert gpu.calls == ["wait", "free", "free", "exit"]


def test_where_the_time_went_and_how_much_memory(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    with runner_of(gpu, tmp_path, trt) as runner:
        runner.infer(feed(1))
        facts = runner.facts()
    assert isinstance(facts.times, DeviceTimes)
    assert (facts.times.host_to_device_ms, facts.times.compute_ms, facts.times.device_to_host_ms) == (2, 2, 2)
    assert 0 < facts.times.enqueue_ms < 60_000
    assert facts.device_memory_mib == 2, "a MiB for each of two buffers, on this GPU"
    assert facts.notes == ()


def test_plugins_are_known_before_an_engine_is_loaded(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    vars(trt)["init_libnvinfer_plugins"] = lambda log, namespace: gpu.calls.append("plugins")
    with runner_of(gpu, tmp_path, trt):
        assert gpu.calls[:3] == ["enter", "plugins", "load"]


def test_results_of_two_runs_do_not_share_memory(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    with runner_of(gpu, tmp_path, trt) as runner:
        first, second = runner.infer(feed(2)), runner.infer({"x": np.full((2, 2), 9, np.float32)})
    assert first["y"].tolist() == [[0, 2], [4, 6]]
    assert second["y"].tolist() == [[18, 18], [18, 18]]


def test_shapes_follow_the_feed_within_the_profile(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    with runner_of(gpu, tmp_path, trt) as runner:
        for num_rows in (4, 1, 1, 3):
            assert runner.infer(feed(num_rows))["y"].shape == (num_rows, 2)
        with pytest.raises(EngineError, match=r"shape \(5, 2\), the engine's profile goes from \(1, 2\) to \(4, 2\)"):
            runner.infer(feed(5))
        assert runner.infer(feed(1))["y"].tolist() == [[0, 2]]


def test_a_feed_that_is_like_the_last_one_but_for_its_type(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    with runner_of(gpu, tmp_path, trt) as runner:
        runner.infer(feed(2))
        with pytest.raises(EngineError, match=r"input 'x' is float64 \(2, 2\), the engine takes float32"):
            runner.infer({"x": np.zeros((2, 2))})
        with pytest.raises(EngineError, match=r"\(unknown 'k'\)"):
            runner.infer(feed(2) | {"k": np.zeros(1)})


# Profiles


@pytest.mark.parametrize(
    ("profiles", "rows", "profile"),
    [
        (SPLIT, 2, 0),
        (SPLIT, 3, 1),
        (SPLIT, 8, 1),
        # Both hold it: the narrower one,
        ((((1, 2), (2, 2), (8, 2)), ((1, 2), (2, 2), (4, 2))), 3, 1),
        # but for the usual shape of the wider one.
        ((((1, 2), (3, 2), (8, 2)), ((1, 2), (2, 2), (4, 2))), 3, 0),
    ],
)
def test_the_profile_that_holds_the_shapes(
    gpu: PretendedGpu, tmp_path: Path, profiles: tuple[Any, ...], rows: int, profile: int
) -> None:
    trt = pretended_trt(gpu, lambda: PretendedContext(gpu), profiles)
    with runner_of(gpu, tmp_path, trt) as runner:
        assert "allocate 64" in gpu.calls, "memory is for the largest of all profiles: 8 x 2 float32"
        assert runner.infer(feed(rows))["y"].shape == (rows, 2)
    chosen = [call for call in gpu.calls if call.startswith("profile")]
    assert chosen[0] == "profile 1", "each was tried for how much memory it needs"
    assert chosen[-1] == f"profile {profile}"


def test_an_input_of_one_shape_is_not_asked_of_the_profile(gpu: PretendedGpu, tmp_path: Path) -> None:
    def none(name: str, profile: int) -> Any:
        raise ValueError("Dims with -1 dimensions")

    fixed: dict[str, Any] = {"get_tensor_shape": lambda name: (3, 2), "get_tensor_profile_shape": none}
    with runner_of(gpu, tmp_path, pretended_trt(gpu, lambda: PretendedContext(gpu), **fixed)) as runner:
        assert runner.infer(feed(3))["y"].shape == (3, 2)
        with pytest.raises(EngineError, match=r"input 'x' has shape \(2, 2\), the engine takes \(3, 2\)"):
            runner.infer(feed(2))


def test_shapes_that_no_profile_holds(gpu: PretendedGpu, tmp_path: Path) -> None:
    trt = pretended_trt(gpu, lambda: PretendedContext(gpu), SPLIT)
    words = r"input 'x' has shape \(9, 2\), the engine's profiles go from \(1, 2\) to \(2, 2\) and from \(3, 2\) to"
    with runner_of(gpu, tmp_path, trt) as runner, pytest.raises(EngineError, match=words):
        runner.infer(feed(9))


class Unique:
    """An engine of TensorRT 8.5: a profile is for one context alone, and a second context begins without any."""

    def __init__(self, gpu: PretendedGpu, num_free: int = 1) -> None:
        self.gpu, self.num_free = gpu, num_free

    def create_execution_context(self) -> PretendedContext:
        context = PretendedContext(self.gpu)
        if not self.num_free:
            context.active_optimization_profile, context.takes_profiles = -1, False
        self.num_free = max(self.num_free - 1, 0)
        return context


def loading(trt: ModuleType, gpu: PretendedGpu, num_free: int = 1) -> list[Unique]:
    """Let each deserialized engine have contexts of its own; the engines, as they come."""
    loaded: list[Unique] = []
    parts = vars(trt.Runtime(None).deserialize_cuda_engine(b"plan"))
    gpu.calls.clear()

    def load(data: bytes) -> Any:
        loaded.append(Unique(gpu, num_free))
        return SimpleNamespace(**parts | {"create_execution_context": loaded[-1].create_execution_context})

    vars(trt)["Runtime"] = lambda log: SimpleNamespace(deserialize_cuda_engine=load)
    return loaded


@pytest.mark.parametrize("profiles", [ONE_PROFILE, SPLIT])
def test_streams_that_cannot_share_a_profile_have_an_engine_each(
    gpu: PretendedGpu, tmp_path: Path, profiles: tuple[Any, ...]
) -> None:
    trt = pretended_trt(gpu, lambda: PretendedContext(gpu), profiles)
    loaded = loading(trt, gpu)
    feeds = [{"x": np.full((2, 2), number, np.float32)} for number in range(5)]
    with runner_of(gpu, tmp_path, trt, GpuUse(num_streams=3)) as runner:
        assert [outputs["y"][0, 0] for outputs in runner.infer_all(feeds)] == [0, 2, 4, 6, 8]
        assert runner.facts().notes == ("The engine is loaded 3 times, for its 3 streams cannot share a profile.",)
    assert len(loaded) == 3
    assert gpu.calls.count("free") == 6


def test_a_context_that_gets_no_profile_at_all(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    loading(trt, gpu, num_free=0)
    with (
        pytest.raises(EngineError, match=r"profile 0 cannot be used \(it gave no reason\); build it again"),
        runner_of(gpu, tmp_path, trt),
    ):
        pytest.fail("it cannot be entered")
    assert gpu.calls.count("free") == sum(call.startswith("allocate") for call in gpu.calls)
    assert gpu.calls[-1] == "exit"


# DLA


def test_an_engine_for_dla_runs_on_the_core_that_it_was_built_for(
    gpu: PretendedGpu, trt: ModuleType, tmp_path: Path
) -> None:
    runtime = SimpleNamespace(num_DLA_cores=2, deserialize_cuda_engine=trt.Runtime(None).deserialize_cuda_engine)
    vars(trt)["Runtime"] = lambda log: runtime
    with runner_of(gpu, tmp_path, trt, options={"dla_core": 1}) as runner:
        assert runtime.DLA_core == 1
        assert runner.infer(feed(1))["y"].tolist() == [[0, 2]]
    del runtime.DLA_core
    with runner_of(gpu, tmp_path, trt, options={"dla_core": -1}):
        assert not hasattr(runtime, "DLA_core")
    words = r"was built for DLA core 2, this machine has 2 of them, counted from 0; build it for one that is there"
    with pytest.raises(Unavailable, match=words), runner_of(gpu, tmp_path, trt, options={"dla_core": 2}):
        pytest.fail("it cannot be entered")


# Several streams


def test_several_queries_in_flight_answer_in_order(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    feeds = [{"x": np.full((1, 2), number, np.float32)} for number in range(5)]
    with runner_of(gpu, tmp_path, trt, GpuUse(num_streams=2)) as runner:
        gpu.calls.clear()
        found = [outputs["y"][0, 0] for outputs in runner.infer_all(feeds)]
        assert found == [0, 2, 4, 6, 8]
        order = [call for call in gpu.calls if call.startswith(("execute", "wait"))]
        assert order[:5] == ["execute on 7", "execute on 8", "wait", "execute on 7", "wait"]
        assert order.count("wait") == 5
        assert runner.infer(feeds[1])["y"].tolist() == [[2, 2]]
    assert gpu.calls.count("free") == 4


def test_a_reader_that_stops_early_leaves_nothing_under_way(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    with runner_of(gpu, tmp_path, trt, GpuUse(num_streams=3)) as runner:
        outputs = runner.infer_all([feed(1)] * 9)
        next(outputs)
        gpu.calls.clear()
        outputs.close()
        assert gpu.calls == ["wait", "wait"]
        with pytest.raises(EngineError, match="missing 'x'"):
            list(runner.infer_all([feed(1), {}]))


# Layers


def test_times_of_layers_with_what_the_record_knows_of_them(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    known = {"name": "conv + relu", "kind": "conv", "precision": "INT8", "nodes": ["conv", "relu"]}
    with runner_of(gpu, tmp_path, trt, PLAIN, layers=[known]) as runner:
        found = runner.layer_times(feed(2), 5)
    assert found.layers == (
        LayerTime(LayerFacts("conv + relu", "conv", "INT8", ("conv", "relu")), 0.75, 0.75),
        LayerTime(LayerFacts("copy", "", "", ()), 0.25, 0.25),
    )
    assert found.allocated_mib is None
    assert gpu.calls.count("execute on 7") == NUM_UNTOLD + 5


def test_the_profiler_lives_as_long_as_the_context_that_has_its_address(gpu: PretendedGpu, tmp_path: Path) -> None:
    class Address(PretendedContext):
        """Keeps no profiler alive, as C++ does not."""

        seen: list[weakref.ref[Any]] = []  # noqa: RUF012  of this test

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, weakref.proxy(value) if name == "profiler" and value else value)
            if name == "profiler" and value:
                Address.seen.append(weakref.ref(value))

    with runner_of(gpu, tmp_path, pretended_trt(gpu, lambda: Address(gpu)), PLAIN) as runner:
        runner.layer_times(feed(2), 5)
        assert Address.seen[0]() is not None
        runner.infer(feed(2))
    assert Address.seen[0]() is None


def test_a_library_that_does_not_tell_times_of_layers(gpu: PretendedGpu, tmp_path: Path) -> None:
    class Silent(PretendedContext):
        def report_to_profiler(self) -> bool:
            return False

    with (
        runner_of(gpu, tmp_path, pretended_trt(gpu, lambda: Silent(gpu)), PLAIN) as runner,
        pytest.raises(EngineError, match=r"engine\.plan: layer times are not available \(it gave no reason\)"),
    ):
        runner.layer_times(feed(2), 5)


# What goes wrong


def test_a_failed_execution_is_an_error(gpu: PretendedGpu, tmp_path: Path) -> None:
    with (
        runner_of(gpu, tmp_path, pretended_trt(gpu, lambda: PretendedContext(gpu, works=False))) as runner,
        pytest.raises(EngineError, match=r"engine\.plan: execution failed \(it gave no reason\)"),
    ):
        runner.infer(feed(1))


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"create_execution_context": lambda: None}, "no execution context"),
        ({"get_tensor_dtype": lambda name: SimpleNamespace(name="FP8")}, "'x' is FP8, numpy has no such type"),
        ({"get_tensor_location": lambda name: "HOST"}, "'x' is a shape tensor in host memory"),
        (
            {"get_tensor_format": lambda name: SimpleNamespace(name="CHW32")},
            "'x' is laid out as CHW32, arrays are LINEAR",
        ),
    ],
)
def test_engines_that_cannot_be_run_give_everything_back(
    gpu: PretendedGpu, tmp_path: Path, engine: dict[str, Any], words: str
) -> None:
    runner = runner_of(gpu, tmp_path, pretended_trt(gpu, lambda: PretendedContext(gpu), **engine))
    with pytest.raises(EngineError, match=words), runner:
        pytest.fail("it cannot be entered")
    assert gpu.calls[-1] == "exit"
    assert gpu.calls.count("free") == sum(call.startswith("allocate") for call in gpu.calls)


@pytest.mark.parametrize("what", ["allocate", "pinned"])
def test_memory_that_is_full_gives_back_what_was_taken(gpu: PretendedGpu, tmp_path: Path, what: str) -> None:
    take, taken = getattr(gpu, what), []

    def second_is_too_much(num_bytes: int) -> Any:
        taken.append(num_bytes)
        if len(taken) == 2:
            raise EngineError("GPU: 9 MiB are requested, 2 of 8 MiB are free; use a smaller batch")
        return take(num_bytes)

    setattr(gpu, what, second_is_too_much)
    runner = runner_of(gpu, tmp_path, pretended_trt(gpu, lambda: PretendedContext(gpu)))
    with pytest.raises(EngineError, match="2 of 8 MiB are free; use a smaller batch"), runner:
        pytest.fail("it cannot be entered")
    assert gpu.calls.count("free") == sum(call.startswith("allocate") for call in gpu.calls) > 0
    assert gpu.calls[-1] == "exit"


def test_nothing_of_the_library_outlives_the_gpus_context(gpu: PretendedGpu, tmp_path: Path) -> None:
    class Watched(PretendedContext):
        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (DYNAMIC, 2)

        def __del__(self) -> None:
            gpu.calls.append("context is gone")

    runner = runner_of(gpu, tmp_path, pretended_trt(gpu, lambda: Watched(gpu)))
    with pytest.raises(EngineError, match=r"output 'y', \(\?, 2\), depends on the data"), runner:
        pytest.fail("it cannot be entered")
    assert gpu.calls[-2:] == ["context is gone", "exit"]


def test_an_engine_that_the_library_refuses(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "engine.plan").write_bytes(b"trash")
    runner = runner_of(gpu, tmp_path, trt)
    with pytest.raises(EngineError, match=r"the engine cannot be loaded .* build it again here"), runner:
        pytest.fail("it cannot be entered")
    assert gpu.calls == ["enter", "load", "exit"]


def test_an_engine_that_the_gpus_memory_does_not_hold(gpu: PretendedGpu, tmp_path: Path) -> None:
    trt = pretended_trt(gpu, lambda: PretendedContext(gpu))

    def load(data: bytes) -> None:
        logger(trt)[0].log(trt.ILogger.ERROR, "[defaultAllocator.cpp] Error Code 1: Cuda Runtime (out of memory)")

    vars(trt)["Runtime"] = lambda log: SimpleNamespace(deserialize_cuda_engine=load)
    words = r"the GPU's memory does not hold the engine \(.*out of memory\)\); stop other programs on the GPU"
    with pytest.raises(OutOfMemory, match=words), runner_of(gpu, tmp_path, trt):
        pytest.fail("it cannot be entered")
    assert gpu.calls[-1] == "exit"


def test_a_driver_that_is_too_old(gpu: PretendedGpu, tmp_path: Path) -> None:
    """In the words of TensorRT for RTX 1.7 on such a driver."""
    trt = pretended_trt(gpu, lambda: PretendedContext(gpu))

    def load(data: bytes) -> None:
        logger(trt)[0].log(
            trt.ILogger.ERROR,
            "IRuntime::deserializeCudaEngine: Error Code 1: Cuda Runtime (In ScopedCudaStream at cudaResources.cpp:25 "
            "(cudaError 35: CUDA driver version is insufficient for CUDA runtime version))",
        )

    vars(trt)["Runtime"] = lambda log: SimpleNamespace(deserialize_cuda_engine=load)
    words = r"engine\.plan: the driver is older than the library's CUDA \(.*insufficient.*\); update the driver$"
    with pytest.raises(Unavailable, match=words), runner_of(gpu, tmp_path, trt):
        pytest.fail("it cannot be entered")
    assert gpu.calls[-1] == "exit"


def test_without_a_gpu_the_library_is_not_even_imported(tmp_path: Path) -> None:
    class NoGpu(PretendedGpu):
        def __enter__(self) -> PretendedGpu:
            raise Unavailable("no GPU")

    runner = NvinferRunner(tmp_path / "engine", lambda: pytest.fail("imported"), NoGpu)
    with pytest.raises(Unavailable, match="no GPU"), runner:
        pytest.fail("it cannot be entered")
