"""What another power mode of a Jetson would bring: from its table, and measured where that is asked for.

The engines are timed in the mode that the device is in, in each mode that is asked for, and once more in the first: by
how much that differs is the drift, beside which the differences between modes have to be read. Modes are not changed
within a round, so the interval of a ratio draws the blocks of each mode by themselves: it says how far the blocks carry
the ratio, and the drift what changed from one measurement to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.latency.benchmark import Latency, Timing, p50_interval_ms, p50_ratio_apart
from pipeline.latency.energy import BlockEnergies, energy_ratio_apart
from pipeline.machine.jetson import power_mode
from pipeline.machine.power_mode import ModesPutBack, PowerModel, model_named, power_models


@dataclass(frozen=True)
class MeasuredMode:
    """What was measured in one mode."""

    timings: Sequence[Timing]
    energies: Mapping[tuple[str, int], BlockEnergies]
    """By engine and batch size, of those whose energy is known."""
    num_throttles: int | None


@dataclass(frozen=True)
class ModeTiming:
    """One engine at one batch size, in another mode."""

    name: str
    batch_size: int
    latency_ms: Latency
    p50_low_ms: float
    p50_high_ms: float
    """95 % interval."""
    throughput_per_s: float
    energy_mj: float | None
    """Of one sample; None where it is not known."""
    latency_ratio: float
    """p50 / p50 in the mode that the device is in."""
    latency_ratio_interval: tuple[float, float]
    """95 %, by bootstrap over the blocks of both."""
    energy_ratio: float | None
    energy_ratio_interval: tuple[float, float] | None
    """As that of the latency."""


@dataclass(frozen=True)
class ComparedMode:
    """Another mode."""

    mode: str
    engines: tuple[ModeTiming, ...]
    """Empty where it could not be had."""
    num_throttles: int | None
    sentence: str


@dataclass(frozen=True)
class PowerModes:
    """The modes of this device, and what others brought."""

    now: str
    known: tuple[PowerModel, ...]
    compared: tuple[ComparedMode, ...]
    drift: float | None
    """By how much the first engine's p50 differed in the same mode at the end, as a fraction; None: nothing was
    compared."""
    sentences: tuple[str, ...]


def power_modes_here(root: Path) -> PowerModes | None:
    """What the table says; None where there is none."""
    models, now = power_models(root), power_mode(root)
    here = model_named(models, now)
    if here is None:
        return None
    others = [f"{model.name}: {words}" for model in models if (words := model.words(here))]
    sentence = f"Power mode {now}. By nvpmodel's table others allow: {'; '.join(others)}. " if others else ""
    asks = "[benchmark] power_mode (--power-mode) measures what one brings; nothing was changed."
    return PowerModes(now, models, (), None, (sentence + asks,) if others else ())


def compare_modes(
    root: Path, asked: Sequence[PowerModel], here: MeasuredMode, measure: Callable[[], MeasuredMode]
) -> PowerModes:
    """Measure in each mode, and once more in the one from before, which is put back whatever happens.

    Args:
        root: where the device's files lie.
        asked: the modes, as ``asked_models`` checked them.
        here: what was measured in the mode that the device is in.
        measure: the same again.

    Raises:
        StageError: the mode could not be put back, or an engine crashed.
    """
    modes_compared = []
    with ModesPutBack(root) as modes:
        now = modes.before
        for model in asked:
            why = modes.change_to(model)
            there = None if why else measure()
            modes_compared.append(_unknown(model, why) if there is None else compared(model, now, here, there))
        drift = None
        if any(mode.engines for mode in modes_compared) and not modes.change_to(now):
            again = measure()
            drift = again.timings[0].latency_ms.p50 / here.timings[0].latency_ms.p50 - 1
    sentences = [mode.sentence for mode in modes_compared]
    if drift is not None:
        first = here.timings[0].name
        sentences.append(f"Put back to {now.name}, {first} differed from before by {abs(drift):.1%}.")
    return PowerModes(now.name, power_models(root), tuple(modes_compared), drift, tuple(sentences))


def _unknown(model: PowerModel, why: str) -> ComparedMode:
    advice = f"set it with sudo nvpmodel -m {model.number}, and run again"
    return ComparedMode(model.name, (), None, f"Power mode {model.name} was not measured: {why}; {advice}.")


def compared(model: PowerModel, now: PowerModel, here: MeasuredMode, there: MeasuredMode) -> ComparedMode:
    """What was measured in the mode ``model``, beside what was measured in ``now``."""
    before = {(timing.name, timing.batch_size): timing for timing in here.timings}
    rows = []
    for timing in there.timings:
        key = timing.name, timing.batch_size
        energy, energy_before = there.energies.get(key), here.energies.get(key)
        energy_mj = None if energy is None else energy.per_inference_mj()
        slower, *slower_interval = p50_ratio_apart(timing, before[key], seed=0)
        more, more_interval = None, None
        if energy is not None and energy_before is not None and energy_before.energy_mj.min() > 0:
            more, low, high = energy_ratio_apart(energy, energy_before, seed=0)
            more_interval = low, high
        rows.append(
            ModeTiming(
                *key, timing.latency_ms, *p50_interval_ms(timing, seed=0), timing.throughput_per_s, energy_mj,
                slower, (slower_interval[0], slower_interval[1]), more, more_interval,
            )
        )  # fmt: skip
    mode = ComparedMode(model.name, tuple(rows), there.num_throttles, "")
    return replace(mode, sentence=_sentence(mode, now, before))


def times_with(ratio: float, interval: tuple[float, float] | None) -> str:
    """A ratio: ``0.50 (0.49 to 0.51) times``."""
    within = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
    return f"{ratio:.2f}{within} times"


def _sentence(mode: ComparedMode, now: PowerModel, before: Mapping[tuple[str, int], Timing]) -> str:
    parts = []
    for row in mode.engines:
        was = before[row.name, row.batch_size].latency_ms.p50
        more, interval = row.energy_ratio, row.energy_ratio_interval
        energy = "" if more is None else f" and {times_with(more, interval)} the energy"
        parts.append(
            f"{row.name} (batch {row.batch_size}) takes {times_with(row.latency_ratio, row.latency_ratio_interval)} as "
            f"long ({row.latency_ms.p50:.3g} ms instead of {was:.3g} ms){energy}"
        )
    throttled = f"; the hardware throttled {mode.num_throttles} times" if mode.num_throttles else ""
    return f"In power mode {mode.mode} instead of {now.name}: {'; '.join(parts)}{throttled}."
