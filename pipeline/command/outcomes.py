"""What a verb came to: shows itself on a terminal, as text and in a notebook, and knows whether it is an error."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.errors import DataError
from pipeline.errors import CheckFailed, EngineError, NotDecided
from pipeline.spelling import echo, shown, table_console

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from calibration.lint.finding import Finding
    from engines.support.answers import SupportAnswer
    from pipeline.artifact import Artifact
    from pipeline.gate.record import GateRecord

WIDTH = 100
"""Of what is shown as text or in a notebook, characters."""
BLOCK = '<pre style="line-height:1.25;overflow-x:auto">{code}</pre>'


class VerbOutcome:
    """What a verb returns. The command prints it and ends as ``check`` says; ``import trtforge`` returns it."""

    def print_to(self, console: Console) -> None:
        """All of it, for people, on stdout."""
        raise NotImplementedError

    def remarks(self) -> Iterator[str]:
        """Sentences for stderr."""
        return iter(())

    def check(self) -> None:
        """End with an error where the command does: CheckFailed, NotDecided, DataError or EngineError."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As on the terminal, for rich's ``print``."""
        from rich.text import Text

        yield Text.from_ansi(self._text(options.max_width, console.color_system))

    def __str__(self) -> str:
        """As on the terminal, in plain text."""
        return self._text(WIDTH, None)

    def _repr_html_(self) -> str:
        """The same with its colours, for a notebook."""
        console = table_console(file=io.StringIO(), width=WIDTH, record=True, force_jupyter=False)
        self.print_to(console)
        return console.export_html(inline_styles=True, code_format=BLOCK)

    def __repr__(self) -> str:
        """The same at Python's prompt: the record behind it is long."""
        return str(self)

    def _text(self, width: int, colours: Any) -> str:
        text, is_coloured = io.StringIO(), colours is not None
        settings = {"width": width, "color_system": colours, "force_terminal": is_coloured}
        self.print_to(table_console(file=text, force_jupyter=False, **settings))
        return text.getvalue().rstrip("\n")


def tell(outcome: VerbOutcome) -> None:
    """What the command does with an outcome: print it, remarks on stderr, and end as it says."""
    outcome.print_to(table_console())
    for remark in outcome.remarks():
        echo(f"trtforge: {remark}", err=True)
    outcome.check()


def print_lines(lines: Iterable[object], console: Console) -> None:
    """Lines that other programs read: neither wrapped, nor with blanks for tabs, but where they are drawn as HTML."""
    for line in lines:
        if console.record:
            console.out(line, highlight=False)
        else:
            console.file.write(f"{shown(str(line))}\n")


def failures_of(verdicts: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """All failures of verdicts, with what each is about."""
    return tuple(f"{name}: {failure}" for name, verdict in verdicts.items() for failure in verdict["failures"])


def raise_failures(failures: Sequence[str]) -> None:
    """Raise CheckFailed with all of them if there are any."""
    if failures:
        raise CheckFailed("out of tolerance: " + "; ".join(failures))


@dataclass(frozen=True, repr=False)
class Made(VerbOutcome):
    """A file or a folder that a verb wrote."""

    artifact: Artifact

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.artifact.path

    @property
    def size_bytes(self) -> int:
        """Of the file with weights beside it, or of all files of the folder."""
        return sum(file.stat().st_size for file in self.artifact.files())

    def __fspath__(self) -> str:
        """So that what is made can be given to the next verb, and to whatever takes a path."""
        return str(self.path)

    def __str__(self) -> str:
        """Its path."""
        return str(self.path)

    def print_to(self, console: Console) -> None:
        """Its path."""
        print_lines([self.path], console)


@dataclass(frozen=True, repr=False)
class MadeOfPlan(VerbOutcome):
    """What a verb made of each variant of a plan; it lies in the store."""

    artifacts: Mapping[str, Artifact]
    """By the name of the variant."""
    failures: tuple[str, ...] = ()
    """What is out of tolerance, a sentence each."""

    def __getitem__(self, variant: str) -> Artifact:
        """That of one variant."""
        return self.artifacts[variant]

    def print_to(self, console: Console) -> None:
        """A line for each variant: its name and a path."""
        print_lines((f"{name}\t{artifact.path}" for name, artifact in self.artifacts.items()), console)

    def check(self) -> None:
        """Raise CheckFailed if anything is out of tolerance."""
        raise_failures(self.failures)


@dataclass(frozen=True, repr=False)
class ComparedOutputs(VerbOutcome):
    """The comparison of outputs with FP32's."""

    name: str
    """Of the candidate."""
    record: Mapping[str, Any]
    """As `trtforge validate -o` writes it."""

    @property
    def passed(self) -> bool:
        """Whether it is within the tolerances."""
        return bool(self.record["passed"])

    @property
    def metric(self) -> float | None:
        """Of the candidate, where a metric was asked for."""
        return None if self.record["metric"] is None else float(self.record["metric"])

    @property
    def reference_metric(self) -> float | None:
        """Of FP32."""
        return None if self.record["reference_metric"] is None else float(self.record["reference_metric"])

    def print_to(self, console: Console) -> None:
        """The table of the outputs, and the metric."""
        from pipeline.command.outcome_tables import print_verdict

        print_verdict(self.record, console)

    def check(self) -> None:
        """Raise CheckFailed if it is out of tolerance."""
        raise_failures(failures_of({self.name: self.record}))


@dataclass(frozen=True, repr=False)
class Timed(VerbOutcome):
    """Latencies of engines, measured against each other."""

    record: Mapping[str, Any]
    """As `trtforge benchmark -o` writes it."""

    @property
    def p50_ms(self) -> dict[str, float]:
        """Median latency by engine, at the first batch size, in milliseconds."""
        medians: dict[str, float] = {}
        for row in self.record["timings"]:
            medians.setdefault(row["name"], float(row["latency_ms"]["p50"]))
        return medians

    def print_to(self, console: Console) -> None:
        """The table, and how it was measured."""
        from pipeline.command.outcome_tables import print_timings

        print_timings(self.record, console)

    def remarks(self) -> Iterator[str]:
        """What was odd about the measurement."""
        from pipeline.command.layer_table import note_lines

        yield from note_lines(self.record)
        for row in self.record["timings"]:
            if row["note"]:
                yield f"{row['name']} at batch {row['batch_size']}: {row['note']}"
        yield from (trace["sentence"] for trace in self.record.get("traces", ()))
        yield from (self.record["monitor"] or {"notes": ()})["notes"]


@dataclass(frozen=True, repr=False)
class Gated(VerbOutcome):
    """The decision of a gate."""

    record: GateRecord
    """As in gate.json."""
    folder: Path
    """Where gate.json, gate.xml, gate.md and, if asked for, gate.html lie."""
    promotion: str = ""
    """What became of the stored baseline that it was to be promoted to; empty if nothing did."""

    @property
    def outcome(self) -> str:
        """``pass``, ``fail`` or ``not decided``."""
        return self.record.outcome

    def print_to(self, console: Console) -> None:
        """A row for each budget, the decision and the folder."""
        from pipeline.gate.summary import print_gate

        print_gate(self.record, console)
        print_lines([self.folder], console)

    def remarks(self) -> Iterator[str]:
        """What became of the stored baseline."""
        if self.promotion:
            yield self.promotion

    def check(self) -> None:
        """Raise CheckFailed or NotDecided unless it passed, or was promoted as the first."""
        from pipeline.retention.promotion import FIRST

        if self.promotion.endswith(FIRST):
            return
        from pipeline.gate.summary import reasons

        sentence = f"{self.record.candidate}: {'; '.join(reasons(self.record))}"
        if self.outcome == "fail":
            raise CheckFailed(f"must not ship: {sentence}")
        if self.outcome == "not decided":
            raise NotDecided(f"not decided: {sentence}")


@dataclass(frozen=True, repr=False)
class Linted(VerbOutcome):
    """What the lint found of samples."""

    findings: tuple[Finding, ...]
    """Errors first."""
    allowed: tuple[str, ...]
    """Codes of errors that do not count."""

    def print_to(self, console: Console) -> None:
        """A line for each finding: severity, code, sentence."""
        print_lines((f"{item.severity}\t{item.code}\t{item.sentence}" for item in self.findings), console)

    def check(self) -> None:
        """Raise DataError if there is an error that is not allowed."""
        from calibration.lint.findings import errors_in, how_to_allow

        if errors := errors_in(self.findings, self.allowed):
            raise DataError(
                f"lint: {len(errors)} of {len(self.findings)} findings prevent calibration; {how_to_allow(errors)}"
            )


@dataclass(frozen=True, repr=False)
class Supported(VerbOutcome):
    """Which nodes of a model backends take."""

    model: Path
    answers: Mapping[str, SupportAnswer]
    """By the backend, or the generation of TensorRT whose list was asked."""
    lines: tuple[str, ...]
    """As they are printed."""
    refusals: tuple[str, ...]
    """Of each that does not, a sentence."""

    @property
    def supported(self) -> bool:
        """Whether all of them take the whole model."""
        return all(answer.is_whole for answer in self.answers.values())

    def print_to(self, console: Console) -> None:
        """What each answered."""
        print_lines(self.lines, console)

    def check(self) -> None:
        """Raise EngineError if one does not take the whole model."""
        if self.refusals:
            raise EngineError(self.refusals[0])
