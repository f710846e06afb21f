"""Budgets: what an engine may cost at most and must give at least, one line of text each, read strictly.

Grammar, the same in ``[gate] budgets`` and after ``--budget``::

    QUANTITY [of VARIANT] [at batch N] [from baseline | with baseline] <= or >= NUMBER [x baseline]

such as ``p99_ms at batch 8 <= 12``, ``p50_ms <= 1.03 x baseline`` or ``metric_drop from baseline <= 0.01``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal, TypeAlias

from pipeline.errors import ConfigError

QuantityKind: TypeAlias = Literal[
    "latency", "start", "size", "memory", "growth", "energy", "accuracy", "fallback", "beside"
]  # fmt: skip
Relation: TypeAlias = Literal["<=", ">="]


@dataclass(frozen=True)
class Quantity:
    """Something that a budget can be about."""

    name: str
    kind: QuantityKind
    relations: tuple[Relation, ...]
    meaning: str
    by_batch: bool = False
    """Whether ``at batch N`` may stand behind it."""
    relative: bool = True
    """Whether its bound may be a multiple of the baseline's."""
    compares: str = ""
    """``from`` or ``with``, for what is a comparison with FP32 unless ``baseline`` stands behind that word."""


def _latency(name: str, meaning: str) -> Quantity:
    return Quantity(name, "latency", ("<=",), meaning, by_batch=True)


QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        _latency("p50_ms", "the median latency of a query"),
        _latency("p90_ms", "the 90th percentile of the latency of a query"),
        _latency("p99_ms", "the 99th percentile of the latency of a query"),
        _latency("mean_ms", "the mean latency of a query"),
        Quantity("throughput_per_s", "latency", (">=",), "samples per second of one stream", by_batch=True),
        Quantity("cold_start_ms", "start", ("<=",), "loading the engine and its first query in a new process"),
        Quantity("size_mib", "size", ("<=",), "the engine's file"),
        Quantity("size_compressed_mib", "size", ("<=",), "the engine's file, compressed by gzip at its highest level"),
        Quantity("peak_memory_mib", "memory", ("<=",), "the peak memory of a new process that loads and runs it"),
        Quantity("device_memory_mib", "memory", ("<=",), "the GPU's memory that loading and running it takes"),
        Quantity(
            "memory_growth_mib_per_h", "growth", ("<=",), "how fast the memory of a process that runs it grows",
            by_batch=True, relative=False,
        ),
        Quantity(
            "device_memory_growth_mib_per_h", "growth", ("<=",), "how fast the GPU's memory that it takes grows",
            by_batch=True, relative=False,
        ),
        Quantity(
            "beside_p50_ms", "beside", ("<=",), "the median latency beside the load of others", relative=False,
        ),
        Quantity(
            "beside_p99_ms", "beside", ("<=",), "the 99th percentile of the latency beside the load of others",
            relative=False,
        ),
        Quantity(
            "slowdown", "beside", ("<=",), "the median latency beside the load of others over that of it alone",
            relative=False,
        ),
        Quantity("energy_mj", "energy", ("<=",), "the energy of one inference (one sample)", by_batch=True),
        Quantity(
            "num_fallback_nodes", "fallback", ("<=",), "the number of nodes that the backend leaves to others",
            relative=False,
        ),
        Quantity("metric", "accuracy", (">=", "<="), "the metric of [data]", relative=False),
        Quantity(
            "metric_drop", "accuracy", ("<=",), "how much worse the metric is than FP32's",
            relative=False, compares="from",
        ),
        Quantity(
            "agreement", "accuracy", (">=",), "the share of samples with the same arg max as FP32",
            relative=False, compares="with",
        ),
    )
}  # fmt: skip
"""By name."""

MAY_BE_ZERO: tuple[QuantityKind, ...] = ("accuracy", "fallback")
"""Kinds whose bound may be 0."""

EXAMPLES = "'p99_ms at batch 8 <= 12', 'p50_ms <= 1.03 x baseline' or 'metric_drop <= 0.01'"


@dataclass(frozen=True)
class Budget:
    """One budget."""

    quantity: Quantity
    relation: Relation
    bound: float
    """In the unit of the quantity's name; a multiple of the baseline's where ``relative``."""
    relative: bool = False
    batch_size: int = 0
    """0: the first of [benchmark] batch_sizes."""
    variant: str = ""
    """Empty: the candidate."""
    versus_baseline: bool = False
    """For what compares: with the baseline's answers instead of FP32's."""

    @property
    def text(self) -> str:
        """The budget in its one canonical spelling."""
        return f"{self.subject} {self.limit}"

    @property
    def subject(self) -> str:
        """What is measured: the text up to the relation."""
        parts = [self.quantity.name]
        parts += [f"of {self.variant}"] if self.variant else []
        parts += [f"at batch {self.batch_size}"] if self.batch_size else []
        parts += [f"{self.quantity.compares} baseline"] if self.versus_baseline else []
        return " ".join(parts)

    @property
    def limit(self) -> str:
        """The relation and the bound."""
        return f"{self.relation} {self.bound:.12g}{' x baseline' if self.relative else ''}"

    @property
    def at_most(self) -> bool:
        """Whether the bound is an upper one."""
        return self.relation == "<="

    @property
    def needs_baseline(self) -> bool:
        """Whether it means nothing without a baseline."""
        return self.relative or self.versus_baseline


def budgets_from_texts(texts: Sequence[str], where: str) -> tuple[Budget, ...]:
    """All budgets, each once.

    Raises:
        ConfigError: there is none, one is no budget, or one stands there twice.
    """
    if not texts:
        raise ConfigError(f"{where}: there is no budget, so nothing could fail; write at least one, such as {EXAMPLES}")
    by_subject: dict[tuple[str, str], Budget] = {}
    for text in texts:
        budget = budget_from_text(text, where)
        key = budget.subject, f"{budget.relation}{budget.relative}"
        if key in by_subject:
            raise ConfigError(f"{where}: '{text}' and '{by_subject[key].text}' bound the same quantity; leave one out")
        by_subject[key] = budget
    return tuple(by_subject.values())


_LINE = re.compile(r"(?P<subject>[^<>=]*)(?P<relation>[<>=]+)(?P<bound>.*)", re.DOTALL)
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_BOUND = re.compile(rf"(?P<number>{_NUMBER})(?P<baseline>\s*[x×*]\s*baseline)?")


def budget_from_text(text: str, where: str) -> Budget:
    """One budget.

    Args:
        text: see the grammar above.
        where: what an error begins with, such as ``plan.toml: [gate] budgets``.

    Raises:
        ConfigError: it is none; with the nearest name, or what may stand there.
    """

    def wrong(problem: str) -> ConfigError:
        return ConfigError(f"{where}: '{text}': {problem}")

    line = _LINE.fullmatch(text.strip())
    if line is None:
        raise wrong(f"has no <= or >=; write a budget such as {EXAMPLES}")
    name, _, clauses = line["subject"].strip().partition(" ")
    if name not in QUANTITIES:
        problem = "names no quantity" if not name else f"there is no quantity '{name}'"
        raise wrong(f"{problem}{_nearest(name)}")
    quantity = QUANTITIES[name]
    if line["relation"] not in quantity.relations:
        allowed = " or ".join(quantity.relations)
        raise wrong(f"'{line['relation']}' does not bound {quantity.meaning} ({name}); write {name} {allowed} …")
    relation: Relation = "<=" if line["relation"] == "<=" else ">="
    bare = Budget(quantity, relation, *_bound(quantity, line["bound"].strip(), wrong))
    return _with_clauses(bare, clauses.split(), wrong)


Wrong: TypeAlias = Callable[[str], ConfigError]


def _bound(quantity: Quantity, text: str, wrong: Wrong) -> tuple[float, bool]:
    """The number, and whether it is a multiple of the baseline's."""
    match = _BOUND.fullmatch(text)
    if match is None:
        number = re.match(_NUMBER, text)
        extra = text[number.end() :].strip() if number else ""
        if extra:
            unit = f"; the unit of {quantity.name} is part of its name"
            raise wrong(f"'{extra}' after the number is not 'x baseline'{unit}: write the number alone")
        raise wrong(f"'{text}' is not a bound; write a number, or one such as '1.03 x baseline'")
    value, relative = float(match["number"]), match["baseline"] is not None
    if relative and not quantity.relative:
        if quantity.kind != "accuracy":
            raise wrong(f"{quantity.name} cannot be bounded by a multiple of the baseline's; write the number alone")
        other = (
            "metric_drop from baseline <= 0.01" if quantity.name != "agreement" else "agreement with baseline >= 0.98"
        )
        raise wrong(f"{quantity.name} cannot be bounded by a multiple of the baseline's; write '{other}'")
    if not math.isfinite(value):
        raise wrong(f"the bound is {value:g}, which is no limit; give a finite number")
    if value <= 0 and (relative or quantity.kind not in MAY_BE_ZERO):
        raise wrong(f"the bound is {value:g}, but {quantity.meaning} is above 0; give such a number")
    if quantity.name == "agreement" and not 0 < value <= 1:
        raise wrong(f"the bound is {value:g}, but {quantity.meaning} is from 0 to 1; write 0.98 for 98 %")
    return value, relative


def _with_clauses(budget: Budget, words: list[str], wrong: Wrong) -> Budget:
    """The budget with what stands between the quantity and the relation."""
    quantity, seen = budget.quantity, set[str]()
    while words:
        head, words = words[0], words[1:]
        if head in seen:
            raise wrong(f"'{head}' is given twice; leave one out")
        seen.add(head)
        if head == "of" and words:
            budget, words = replace(budget, variant=words[0]), words[1:]
        elif head == "at" and len(words) > 1 and words[0] == "batch":
            budget, words = replace(budget, batch_size=_batch_size(quantity, words[1], wrong)), words[2:]
        elif head == quantity.compares and words[:1] == ["baseline"]:
            budget, words = replace(budget, versus_baseline=True), words[1:]
        else:
            allowed = ["'of VARIANT'"]
            allowed += ["'at batch N'"] if quantity.by_batch else []
            allowed += [f"'{quantity.compares} baseline'"] if quantity.compares else []
            raise wrong(f"'{' '.join([head, *words])}' has no meaning after {quantity.name}; {', '.join(allowed)} may")
    return budget


def _batch_size(quantity: Quantity, text: str, wrong: Wrong) -> int:
    if not quantity.by_batch:
        batched = ", ".join(other.name for other in QUANTITIES.values() if other.by_batch)
        raise wrong(f"{quantity.name} is not measured by batch size, {batched} are; leave out 'at batch'")
    if not re.fullmatch(r"[1-9]\d*", text):
        raise wrong(f"'{text}' is not a batch size; write a whole number of at least 1")
    return int(text)


def _nearest(name: str) -> str:
    close = get_close_matches(name, QUANTITIES, n=1)
    meant = f"; did you mean '{close[0]}'?" if close else ";"
    return f"{meant} known: {', '.join(QUANTITIES)}"
