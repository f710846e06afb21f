"""Device time of each layer of an engine, as TensorRT's ``IProfiler`` tells it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any


def layer_profiler(trt: Any) -> Any:
    """An ``IProfiler`` of ``trt`` with ``times_ms``: of each layer's name, the milliseconds of each run.

    ``begin_run()`` says that the next run begins: a layer that is told twice in one run has the sum of both.
    """
    base: Any = trt.IProfiler

    class Profiler(base):  # type: ignore[misc]
        """Keeps what it is told, in the order in which it is told first."""

        def __init__(self) -> None:
            base.__init__(self)
            self.times_ms: defaultdict[str, list[float]] = defaultdict(list)
            self._told: set[str] = set()

        def begin_run(self) -> None:
            self._told.clear()

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            if layer_name in self._told:
                self.times_ms[layer_name][-1] += ms
            else:
                self._told.add(layer_name)
                self.times_ms[layer_name].append(ms)

    return Profiler()
