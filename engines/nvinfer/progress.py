"""How far a build is, as TensorRT 10 and later tell it: the outermost phase, and its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TypeAlias

ReportProgress: TypeAlias = "Callable[[str, int, int], None]"


def progress_monitor(trt: Any, report: ReportProgress) -> Any:
    """An ``IProgressMonitor`` of ``trt`` that tells ``report`` the outermost phase, steps done, and of how many.

    TensorRT calls it from several threads, and ends the build where ``step_complete`` is false: an error of ``report``
    would do so, and is dropped.
    """
    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        """Phases nest; only those without a parent are told."""

        def __init__(self) -> None:
            base.__init__(self)
            self._num_steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self._num_steps[phase_name] = num_steps
                _told(report, phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._num_steps:
                _told(report, phase_name, step + 1, self._num_steps[phase_name])
            return True

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self._num_steps:
                num_steps = self._num_steps.pop(phase_name)
                _told(report, phase_name, num_steps, num_steps)

    return Monitor()


def _told(report: ReportProgress, phase: str, done: int, num_steps: int) -> None:
    try:
        report(phase, done, num_steps)
    except Exception:  # noqa: BLE001  # Whoever listened is gone; the build is not.
        return
