"""Which variant to deploy, decided by rule and said in one sentence with the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.precision import precision_named, rank
from pipeline.page.numbers import (
    change_text,
    drop_text,
    likeness,
    metric_text,
    ms_text,
    size_text,
    speedup_text,
    times_text,
)
from pipeline.record import MetricInfo, Recommendation, VariantRecord

_SLACK = 1e-9


def is_within(drop: float, bound: float) -> bool:
    """Whether a drop of the metric is allowed; one of exactly the bound is, whatever the subtraction rounded."""
    return drop <= bound + _SLACK


@dataclass(frozen=True)
class OtherLoad:
    """What other programs took of the CPU time while engines were timed, and what the gate allows."""

    share: float | None = None
    """Of all cores' time; None where nothing was timed or the system does not tell."""
    max_load: float = 1.0
    """Up to this share every timing counts."""
    max_load_relative: float = 1.0
    """Up to this share speed-ups by p50 still count."""

    def exceeds(self, bound: float) -> bool:
        """Whether they took more."""
        return self.share is not None and self.share > bound

    def words(self) -> str:
        """What they took."""
        return f"other programs used {self.share or 0:.0%} of the machine's CPU time while engines were timed"


QUIET = OtherLoad()


def recommend(
    variants: Sequence[VariantRecord], metric: MetricInfo | None, max_metric_drop: float, load: OtherLoad = QUIET
) -> Recommendation:
    """The fastest variant whose accuracy was measured on the engine and is within the bound.

    Fastest means the lowest p50 at the first batch size; of networks of the same precision on the same backend, whose
    kernels are the same, the one that lost least, and FP32 is that of the trained network if it may be. A reduced
    precision must also be faster than FP32 beyond doubt: it has a lower p50 than every FP32 variant, and the whole
    interval of its speedup lies above 1. A variant that was not timed, or whose accuracy is simulated, or that failed
    validation, is never recommended; the sentence says what kept INT8 out. Where others kept the machine so busy that
    not even a gate would decide on ratios, speed is not decided.
    """
    if metric is None:
        return _undecided(
            "No variant can be recommended: the plan names no metric, so it is unknown whether the outputs are still "
            f"right. Name one in [data] metric.{_farthest(variants)}",
            max_metric_drop,
        )
    timed = [variant for variant in variants if variant.latency_ms is not None]
    allowed = [variant for variant in timed if not _objection(variant, metric, max_metric_drop)]
    if not timed:
        return _undecided(_nothing_timed(variants, metric, max_metric_drop), max_metric_drop)
    if load.exceeds(load.max_load_relative):
        sentence = (
            f"Speed is not decided: {load.words()}, above [gate] max_other_load_relative {load.max_load_relative:.0%}; "
            "stop them and run again."
        )
        return _undecided(sentence, max_metric_drop)
    if not allowed:
        return _undecided(_nothing_allowed(timed, metric, max_metric_drop), max_metric_drop)
    full = [variant for variant in allowed if is_full(variant)]
    full = [variant for variant in full if variant.is_trained()] or full
    best_full = min(full, key=_p50_ms) if full else None
    paying = [v for v in allowed if not is_full(v) and not _too_slow(v, best_full)]
    chosen = _fastest(paying) if paying else (best_full or _fastest(allowed))
    others = [variant for variant in variants if variant is not chosen]
    stay = is_full(chosen)
    parts = [_praise(chosen, best_full, metric), *_why_not_lowest(chosen, others, best_full, (metric, max_metric_drop))]
    if not chosen.by_batch[0].stable:
        parts.append(f"The timing of {chosen.name} was unstable: measure again on a quiet machine.")
    if load.exceeds(load.max_load):
        parts.append(
            f"But {load.words()}, above [gate] max_other_load {load.max_load:.0%}: ratios of p50 hold, "
            "milliseconds and p99 do not; stop them and run again for those."
        )
    return Recommendation("stay" if stay else "ship", chosen.name, " ".join(parts), max_metric_drop)


def _fastest(variants: Sequence[VariantRecord]) -> VariantRecord:
    """The fastest; where pruning or tuning made it, or did not, of those alike the most accurate, the first of several.

    Other weights take the same time, so that their order by p50 is chance.
    """
    fastest = min(variants, key=_p50_ms)
    alike = [v for v in variants if (v.precision, v.backend) == (fastest.precision, fastest.backend)]
    return min(alike, key=lambda variant: variant.metric_drop or 0.0)


def _undecided(sentence: str, max_metric_drop: float) -> Recommendation:
    return Recommendation("undecided", "", sentence, max_metric_drop)


def _farthest(variants: Sequence[VariantRecord]) -> str:
    """How far the outputs of reduced precisions are from FP32's: of each variant the farthest one."""
    outputs = {variant.name: variant.farthest_output() for variant in variants if not is_full(variant)}
    texts = [
        f"{name} '{output.output}' {likeness(output.cosine_min, output.sqnr_db)}"
        for name, output in outputs.items()
        if output is not None
    ]
    return f" Farthest outputs from FP32's: {'; '.join(texts)}." if texts else ""


def _p50_ms(variant: VariantRecord) -> float:
    return variant.latency_ms.p50 if variant.latency_ms is not None else float("inf")


def _objection(variant: VariantRecord, metric: MetricInfo, bound: float) -> str:
    """Why accuracy forbids this variant, as a phrase that follows its name; empty if it does not."""
    if variant.is_simulated():
        return "has only a simulated accuracy"
    if variant.metric_drop is None:
        return f"has no {metric.name}"
    if not is_within(variant.metric_drop, bound):
        return f"is {change_text(metric, variant.metric_drop)} in {metric.name}, beyond the {_bound(metric, bound)}"
    if variant.failures:
        return "failed validation"
    return ""


def _bound(metric: MetricInfo, bound: float) -> str:
    return f"{drop_text(metric, bound)} allowed"


def _too_slow(variant: VariantRecord, full: VariantRecord | None) -> bool:
    """Whether it is not faster than FP32 beyond doubt."""
    if full is None:
        return False
    interval = variant.by_batch[0].speedup_interval
    return _p50_ms(variant) >= _p50_ms(full) or (interval is not None and interval[0] <= 1)


def _praise(chosen: VariantRecord, full: VariantRecord | None, metric: MetricInfo) -> str:
    """The numbers that speak for the choice."""
    assert chosen.metric_drop is not None  # _objection() let it through
    first = chosen.by_batch[0]
    facts = [f"{ms_text(first.latency_ms.p50)} (p50, batch {first.batch_size})"]
    if is_full(chosen):
        facts.append(f"{metric.name} {metric_text(metric, chosen.metric)}")
        return f"Stay with {chosen.name}: {', '.join(facts)}."
    if full is not None and full.backend == chosen.backend and first.speedup is not None:
        facts.append(speedup_text(first.speedup, first.speedup_interval))
    elif full is not None:
        facts.append(f"{times_text(_p50_ms(full) / _p50_ms(chosen))} as fast as {full.name}")
    facts.append(f"{metric.name} {metric_text(metric, chosen.metric)}, {change_text(metric, chosen.metric_drop)}")
    if full is not None:
        facts.append(f"{size_text(chosen.size_bytes)} instead of {size_text(full.size_bytes)}")
    return f"Ship {chosen.name}: {', '.join(facts)}."


def _why_not_lowest(
    chosen: VariantRecord, others: Sequence[VariantRecord], full: VariantRecord | None, rule: tuple[MetricInfo, float]
) -> list[str]:
    """What kept the lowest precision out, if it is not the choice: the fastest timed variant of it, or the first."""
    lowest = max((chosen, *others), key=lambda variant: rank(variant.precision)).precision
    candidates = sorted((v for v in others if v.precision == lowest), key=_p50_ms)
    if chosen.precision == lowest or not precision_named(lowest).is_integer:
        return []
    title, candidate, (metric, bound) = precision_named(lowest).title, candidates[0], rule
    objection = _objection(candidate, metric, bound)
    if candidate.latency_ms is None:
        return [f"{title} is undecided: {candidate.name} was not timed here."]
    if objection:
        return [f"{title} is excluded: {candidate.name} {objection}."]
    rival = chosen if not is_full(chosen) else (full or chosen)
    ratio = _p50_ms(rival) / _p50_ms(candidate)
    doubt = ", too close to call" if ratio > 1 else ""
    return [
        f"{title} does not pay on this machine: {candidate.name} takes {ms_text(_p50_ms(candidate))}, "
        f"{times_text(ratio)} as fast as {rival.name}{doubt}."
    ]


def is_full(variant: VariantRecord) -> bool:
    """Whether its precision is not reduced."""
    return precision_named(variant.precision).is_full


def _nothing_timed(variants: Sequence[VariantRecord], metric: MetricInfo, bound: float) -> str:
    """No latency anywhere: say why, and what accuracy alone says."""
    reason = next((v.latency_missing for v in variants if v.latency_missing), "no variant was benchmarked")
    head = f"No variant can be recommended yet: nothing was timed here ({reason.rstrip('.')})."
    fitting = [v for v in variants if v.metric_drop is not None and is_within(v.metric_drop, bound) and not v.failures]
    reduced = [variant for variant in fitting if not is_full(variant)]
    if not reduced:
        return f"{head} No reduced precision keeps {metric.name} within the {_bound(metric, bound)}."
    smallest = min(reduced, key=lambda variant: variant.size_bytes)
    assert smallest.metric_drop is not None  # of fitting
    simulated = " in simulation" if smallest.is_simulated() else ""
    return (
        f"{head} By accuracy, {smallest.name} qualifies{simulated}: {metric.name} "
        f"{metric_text(metric, smallest.metric)}, {change_text(metric, smallest.metric_drop)}; benchmark it on the "
        "target."
    )


def _nothing_allowed(timed: Sequence[VariantRecord], metric: MetricInfo, bound: float) -> str:
    fastest = min(timed, key=_p50_ms)
    return f"No variant can be recommended: the fastest, {fastest.name}, {_objection(fastest, metric, bound)}."
