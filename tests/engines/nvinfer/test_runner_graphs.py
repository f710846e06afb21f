"""Queries of an engine as CUDA graphs: what is captured, when, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from engines.contract import GpuUse, MemoryRunner
from engines.cuda.graph import NotCaptured
from tests.engines.nvinfer.pretended import PLAIN, PretendedContext, PretendedGpu, feed, pretended_trt, runner_of


def test_memory_that_a_graph_takes_is_in_it(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    capture = gpu.capture

    def taking(stream: Any, queue: Any) -> Any:
        gpu.free_memory_mib -= 3
        return capture(stream, queue)

    gpu.capture = taking  # type: ignore[method-assign]
    with runner_of(gpu, tmp_path, trt) as runner:
        runner.infer(feed(1))
        runner.infer(feed(1))
        gpu.free_memory_mib -= 100  # what others take later
        runner.infer(feed(1))
        assert runner.facts().device_memory_mib == 5
        assert isinstance(runner, MemoryRunner)
        assert runner.device_memory_now_mib() == 105


def test_shapes_that_come_again_are_captured_once(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    with runner_of(gpu, tmp_path, trt) as runner:
        for _ in range(4):
            assert runner.infer(feed(3))["y"].tolist() == [[0, 2], [4, 6], [8, 10]]
        work = [call for call in gpu.calls if call.split()[0] in ("capture", "launch", "execute")]
        assert work == ["execute on 7", "capture", *["launch", "execute on 7"] * 3]
        assert runner.facts().notes == ()
        gpu.calls.clear()
        for _ in range(2):
            runner.infer(feed(1))
        assert gpu.calls[0] == "free graph", "a graph keeps the shapes of its capture"
        assert gpu.calls.count("capture") == 1
    assert gpu.calls.count("free graph") == 2


def test_shapes_that_change_each_time_are_never_captured(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    with runner_of(gpu, tmp_path, trt) as runner:
        for num_rows in (1, 2, 1, 2):
            runner.infer(feed(num_rows))
    assert "capture" not in gpu.calls


def test_graphs_can_be_left_out(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    with runner_of(gpu, tmp_path, trt, PLAIN) as runner:
        for _ in range(3):
            runner.infer(feed(1))
    assert "capture" not in gpu.calls


def test_an_engines_record_can_forbid_graphs(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    with runner_of(gpu, tmp_path, trt, options={"cuda_graph": False}) as runner:
        for _ in range(3):
            runner.infer(feed(1))
    assert "capture" not in gpu.calls


def test_what_cannot_be_captured_runs_without_and_says_so(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    gpu.cannot_capture = "cuStreamEndCapture gives CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    with runner_of(gpu, tmp_path, trt) as runner:
        for _ in range(3):
            assert runner.infer(feed(1))["y"].tolist() == [[0, 2]]
        assert runner.facts().notes == (
            "CUDA graph: not captured (cuStreamEndCapture gives CUDA_ERROR_STREAM_CAPTURE_INVALIDATED; it gave no "
            "reason); queries are run kernel by kernel.",
        )
    assert gpu.calls.count("execute on 7") == 3 + 1, "once more after the capture"


def test_an_error_that_a_failed_capture_leaves_behind_is_no_querys(gpu: PretendedGpu, tmp_path: Path) -> None:
    """CUDA tells the last error to whoever asks first."""

    class Leaving(PretendedContext):
        left = False

        def execute_async_v3(self, handle: int) -> bool:
            is_well, self.left = not self.left, False
            return super().execute_async_v3(handle) and is_well

    context = Leaving(gpu)

    def capture(stream: Any, queue: Any) -> Any:
        context.left = True
        raise NotCaptured("cuStreamEndCapture gives CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")

    gpu.capture = capture  # type: ignore[method-assign]
    with runner_of(gpu, tmp_path, pretended_trt(gpu, lambda: context)) as runner:
        for _ in range(3):
            assert runner.infer(feed(1))["y"].tolist() == [[0, 2]]


def test_where_contexts_have_graphs_of_their_own_these_are_taken(gpu: PretendedGpu, tmp_path: Path) -> None:
    given: list[Any] = []

    def context(config: Any) -> PretendedContext:
        given.append(config.cuda_graph_strategy)
        return PretendedContext(gpu)

    engine: dict[str, Any] = {"create_runtime_config": SimpleNamespace, "create_execution_context": context}
    trt = pretended_trt(gpu, lambda: PretendedContext(gpu), **engine)
    vars(trt)["CudaGraphStrategy"] = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole", DISABLED="none")
    for use in (GpuUse(), PLAIN):
        with runner_of(gpu, tmp_path, trt, use) as runner:
            for _ in range(3):
                runner.infer(feed(1))
    assert given == ["whole", "none"]
    assert "capture" not in gpu.calls
