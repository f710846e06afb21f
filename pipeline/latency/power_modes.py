"""What another power mode of a Jetson would bring: from its table, and measured where that is asked for.

The engines are timed in the mode that the device is in, in each mode that is asked for, and once more in the first: by
how much that differs is the drift, beside which the differences between modes have to be read. Modes are not changed
within a round, so that a ratio has no interval of its own; each p50 has one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.latency.benchmark import Latency, Timing, p50_interval_ms
from pipeline.machine.jetson import power_mode
from pipeline.machine.power_mode import ModesPutBack, PowerModel, model_named, power_models


@dataclass(frozen=True)
class MeasuredMode:
    """What was measured in one mode."""

    timings: Sequence[Timing]
    energy_mj: Mapping[tuple[str, int], float | None]
    """By engine and batch size, of one sample."""
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
    energy_ratio: float | None


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
    compared = []
    with ModesPutBack(root) as modes:
        now = modes.before
        for model in asked:
            why = modes.change_to(model)
            there = None if why else measure()
            compared.append(_unknown(model, why) if there is None else _compared(model, now, here, there))
        drift = None
        if any(mode.engines for mode in compared) and not modes.change_to(now):
            again = measure()
            drift = again.timings[0].latency_ms.p50 / here.timings[0].latency_ms.p50 - 1
    sentences = [mode.sentence for mode in compared]
    if drift is not None:
        first = here.timings[0].name
        sentences.append(f"Put back to {now.name}, {first} differed from before by {abs(drift):.1%}.")
    return PowerModes(now.name, power_models(root), tuple(compared), drift, tuple(sentences))


def _unknown(model: PowerModel, why: str) -> ComparedMode:
    advice = f"set it with sudo nvpmodel -m {model.number}, and run again"
    return ComparedMode(model.name, (), None, f"Power mode {model.name} was not measured: {why}; {advice}.")


def _compared(model: PowerModel, now: PowerModel, here: MeasuredMode, there: MeasuredMode) -> ComparedMode:
    before = {(timing.name, timing.batch_size): timing for timing in here.timings}
    rows = []
    for timing in there.timings:
        key = timing.name, timing.batch_size
        energy, energy_before = there.energy_mj.get(key), here.energy_mj.get(key)
        rows.append(
            ModeTiming(
                *key, timing.latency_ms, *p50_interval_ms(timing, seed=0), timing.throughput_per_s, energy,
                timing.latency_ms.p50 / before[key].latency_ms.p50,
                energy / energy_before if energy and energy_before else None,
            )
        )  # fmt: skip
    mode = ComparedMode(model.name, tuple(rows), there.num_throttles, "")
    return replace(mode, sentence=_sentence(mode, now, before))


def _sentence(mode: ComparedMode, now: PowerModel, before: Mapping[tuple[str, int], Timing]) -> str:
    parts = []
    for row in mode.engines:
        was = before[row.name, row.batch_size].latency_ms.p50
        energy = "" if row.energy_ratio is None else f" and {row.energy_ratio:.2f} times the energy"
        parts.append(
            f"{row.name} (batch {row.batch_size}) takes {row.latency_ratio:.2f} times as long "
            f"({row.latency_ms.p50:.3g} ms instead of {was:.3g} ms){energy}"
        )
    throttled = f"; the hardware throttled {mode.num_throttles} times" if mode.num_throttles else ""
    return f"In power mode {mode.mode} instead of {now.name}: {'; '.join(parts)}{throttled}."
