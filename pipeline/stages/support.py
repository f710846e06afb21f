"""Ask a backend, node by node, whether it takes a model: its parser where there is one, else the list of a release."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from engines import backend, module_of
from engines.contract import Backend, ShapeRange
from engines.plugin_library import FIELD, libraries_named, sha256_of_library
from engines.support.answers import AskableBackend, InputShapes, NodeAnswer, Partition, SupportAnswer
from engines.support.by_list import answer_by_list
from engines.support.operator_lists import generation_named
from pipeline.artifact import ModelFile, SupportTable
from pipeline.errors import ConfigError, Unavailable
from pipeline.machine import child_process
from pipeline.machine.packages import distribution_versions
from pipeline.option import option
from pipeline.stage import Stage


@dataclass(frozen=True)
class Whom:
    """Who is asked."""

    backend: str = ""
    """Empty: the list of ``generation``."""
    generation: str = ""
    """Of TensorRT."""
    shapes: InputShapes = field(default_factory=dict)
    """Of inputs with dynamic dimensions: what work is counted at; 1 for each dimension without."""


@dataclass(frozen=True)
class Support(Stage):
    """Say of each node of a model whether it runs, is folded, or does not run and why, and what would run where.

    A run asks before it makes anything for a backend, so that a model that cannot be built ends it in seconds.
    """

    RESULT: ClassVar[str] = "support"

    generation: str = option(
        "",
        "version of TensorRT, such as 8.6, whose listed operators are asked where its parser cannot be: for the "
        "device that a bundle is packed for",
    )

    plugin_operators: tuple[str, ...] = option(
        (), "operators that a library of plugins brings, which the listed operators are without: they count as taken"
    )

    def __post_init__(self) -> None:
        """Check the version; ConfigError."""
        if self.generation:
            try:
                generation_named(self.generation)
            except Unavailable as error:
                raise ConfigError(f"generation: {error}") from error

    def whom(self, name: str, shapes: Mapping[str, ShapeRange]) -> Whom:
        """Who is asked for a backend: its parser where it can be asked here, else the list of ``generation``.

        Raises:
            Unavailable: neither can be.
        """
        opt = {input_name: shape.opt for input_name, shape in shapes.items()}
        runtime = askable(backend(name))
        reason = runtime.why_not_ask()
        if reason and runtime.HAS_LISTS and self.generation:
            return Whom("", self.generation, opt)
        if reason:
            lists = "; --generation 8.6, say, asks the list of a version of TensorRT" if runtime.HAS_LISTS else ""
            raise Unavailable(f"{reason}{lists}")
        return Whom(name, "", opt)

    def versions(self, _model: object, whom: Whom) -> dict[str, str]:
        """Those of who is asked."""
        reads = not whom.backend or FIELD in backend(whom.backend).OBEYS
        plugins = {f"plugin {file.name}": sha256_of_library(file) for file in libraries_named() if reads}
        runtime = backend(whom.backend).versions() if whom.backend else {}
        return {**distribution_versions("onnx"), **runtime, **plugins}

    def modules(self, _model: object, whom: Whom) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(whom.backend),) if whom.backend else ()

    def __call__(self, out: Path, model: ModelFile, whom: Whom) -> SupportTable:
        """Write ``out/support.json``: the fields of ``engines.support.answers.SupportAnswer``.

        Raises:
            Unavailable: the backend cannot be asked here, or there is no list of that version.
            ConfigError: the model is in a format that the backend does not build from.
            EngineError: it is no model, or its parser refuses it without saying what of it.
            StageError: the parser crashed.
        """
        if not whom.backend:
            answer = answer_by_list(model.path, generation_named(whom.generation), whom.shapes, self.plugin_operators)
        else:
            if (takes := backend(whom.backend).TAKES) != model.FORMAT:
                raise ConfigError(
                    f"{model.path}: is in the format {model.FORMAT}, {whom.backend} builds from {takes}; give such a "
                    "file, or another backend"
                )
            what = f"ask {whom.backend}"
            answer = child_process.call(out / "support.log", what, _ask, whom.backend, model.path, whom.shapes)
        table = out / "support.json"
        table.write_text(json.dumps(asdict(answer), indent=1, ensure_ascii=False), encoding="utf-8")
        return SupportTable(table)


def answer_from(table: SupportTable) -> SupportAnswer:
    """What was answered."""
    record: dict[str, Any] = table.read()
    parts = record.pop("partition")
    segments = tuple(tuple(segment) for segment in parts.pop("segments"))
    partition = Partition(segments, tuple(parts["outside"]), parts["num_crossings"], parts["flops_share"])
    nodes = tuple(NodeAnswer(**node) for node in record["nodes"])
    return SupportAnswer(record["source"], nodes, partition, tuple(record["refusals"]), tuple(record["notes"]))


def askable(runtime: Backend) -> AskableBackend:
    """The backend, which can be asked.

    Raises:
        Unavailable: it cannot.
    """
    if not isinstance(runtime, AskableBackend):
        raise Unavailable(f"{runtime.NAME}: cannot be asked what it takes; build for it, which tells")
    return runtime


def _ask(name: str, model: Path, shapes: InputShapes) -> SupportAnswer:
    return askable(backend(name)).ask(model, shapes)
