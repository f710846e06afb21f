"""The types that pass between stages: frozen dataclasses that hold a path, and know the digest of what lies there."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from calibration.file_digest import file_digest, of_content
from calibration.lint.finding import Finding
from calibration.ranges.span import CONVERGENCE_FILE
from engines.model_format import ModelFormat


def digest_of_path(path: Path, leave_out: str = "") -> str:
    """SHA-256 (hex) over a file's digest, or over a folder's relative names and digests in sorted order.

    Files of the name ``leave_out`` do not count.
    """
    sha = hashlib.sha256()
    for name, file in {"": path}.items() if path.is_file() else files_below(path).items():
        if file.name != leave_out:
            sha.update(f"{name}\0".encode() + file_digest(file))
    return sha.hexdigest()


def digest_of_file(path: Path) -> str:
    """``digest_of_path`` of what is known to be a file."""
    return hashlib.sha256(b"\0" + file_digest(path)).hexdigest()


def files_below(folder: Path) -> dict[str, Path]:
    """The files in a folder and in folders in it, by their names from there with ``/``, in the order of these parts.

    A link to a file counts as one, a link to a folder does not.
    """
    names: list[str] = []
    waiting = [""] if folder.is_dir() else []
    while waiting:
        prefix = waiting.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                if entry.is_file():
                    names.append(f"{prefix}{entry.name}")
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{prefix}{entry.name}/")
    return {name: folder / name for name in sorted(names, key=lambda name: name.split("/"))}


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file, as `sha256sum` prints it; of a folder as ``digest_of_path``."""
    return digest_of_path(path) if path.is_dir() else file_digest(path).hex()


def plain(value: Any, *, in_record: bool = False) -> Any:
    """What stands for a value in a recipe: an input's content digest, an option's plain data.

    Records in a record stand with their fields, as by ``asdict``, also those that have a digest.
    """
    is_record = is_dataclass(value) and not isinstance(value, type)
    if hasattr(value, "digest") and not (in_record and is_record):
        return {"digest": value.digest()}
    if is_record:
        return {each.name: plain(getattr(value, each.name), in_record=True) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, in_record=in_record) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, in_record=in_record) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} cannot stand in a recipe")


TRAINED = "trained"
"""The network as the user brought it; in names of variants it goes without saying."""
PRUNED = "pruned"
"""With a share of its weights at zero."""
TUNED = "tuned"
"""With weights that were trained for INT8; of the pruned network, where there is one. In INT8 alone."""
NETWORKS = (TRAINED, PRUNED, TUNED)

WEIGHT_FILES = "weight files 1"
"""What is remembered of an ONNX file, by each release: another number where ``_external_names`` changes."""


def external_files(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold weights of it; none for what is no ONNX file."""
    return [path.parent / name for name in json.loads(of_content(path, WEIGHT_FILES, _external_names))]


def _external_names(path: Path) -> str:
    """The names of those files, as JSON."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import external_data_helper

    from calibration.graph.weightless import skeleton_from_file

    try:
        model = skeleton_from_file(path)
    except DecodeError:
        return "[]"  # To say what is wrong with it is up to the stage that reads it.
    tensors = (t for t in model.graph.initializer if external_data_helper.uses_external_data(t))
    return json.dumps(sorted({external_data_helper.ExternalDataInfo(tensor).location for tensor in tensors}))


@dataclass(frozen=True)
class Artifact:
    """Something that a stage made or a user brought: a file or a folder."""

    path: Path
    NOT_DIGESTED: ClassVar[str] = ""
    """A file in the artifact's folder that does not count for its digest."""

    def digest(self) -> str:
        """SHA-256 (hex) of the content, of files of weights beside it, and of every other field, not of the path."""
        others = {f.name: str(getattr(self, f.name)) for f in fields(self) if f.name != "path"}
        content = digest_of_path(self.path, self.NOT_DIGESTED)
        named = f"{type(self).__name__}\0{json.dumps(others, sort_keys=True)}\0{content}"
        digest = hashlib.sha256(named.encode()).hexdigest()
        if not (weights := self.weight_files()):
            return digest
        return hashlib.sha256("\0".join([digest, *map(digest_of_path, weights)]).encode()).hexdigest()

    @property
    def is_onnx(self) -> bool:
        """Whether it is an ONNX file, an engine of a runtime that takes it as it is included."""
        return self.path.suffix == ".onnx"

    def weight_files(self) -> list[Path]:
        """The files of weights beside it; empty where it holds all itself."""
        return [file for file in external_files(self.path) if file.is_file()] if self.is_onnx else []

    def files(self) -> list[Path]:
        """All of it: the file and those of weights beside it, or all that is in the folder."""
        return list(files_below(self.path).values()) if self.path.is_dir() else [self.path, *self.weight_files()]

    def beside(self, name: str) -> Path:
        """A file in the same folder, such as a stage's record about this artifact."""
        return self.path.parent / name

    def notes(self) -> list[str]:
        """The sentences that the stage left for the report."""
        file = self.beside("notes.json")
        return list(json.loads(file.read_text())) if file.is_file() else []


class Source(Artifact):
    """A trained network as the user brought it; its kinds are the files of ``pipeline/sources/``."""

    KIND: ClassVar[str] = ""
    """The file of its kind."""
    BECOMES: ClassVar[frozenset[ModelFormat]] = frozenset({"onnx"})
    """The formats that a network of this kind can be brought to."""

    DISTRIBUTIONS: ClassVar[tuple[str, ...]] = ()
    """Installed packages that its export depends on, beside those that every export does."""

    def signature_name(self) -> str:
        """Which of several functions of the network is meant, where its kind has such; else empty."""
        return ""


class OnnxModel(Source):
    """An ONNX file; the precision is written in it. Its weights may lie in files beside it."""

    KIND: ClassVar[str] = "onnx"
    FORMAT: ClassVar[ModelFormat] = "onnx"


class TfliteModel(Artifact):
    """A `.tflite` file with a fixed batch; the precision is written in it."""

    FORMAT: ClassVar[ModelFormat] = "tflite"


ModelFile: TypeAlias = OnnxModel | TfliteModel
"""What a precision is written in, and engines are built from."""


class Ranges(Artifact):
    """A folder with ``ranges.json`` and ``histograms.npz``; see ``calibration.ranges.ranges``.

    And ``settling.json``, see ``calibration.ranges.convergence``: the curve depends on the order of the samples, unlike
    the rest.
    """

    NOT_DIGESTED: ClassVar[str] = CONVERGENCE_FILE


class Tuned(Artifact):
    """A folder with a network whose weights were trained for INT8: ``model.onnx``, ``ranges`` and ``training.json``."""

    NOT_DIGESTED: ClassVar[str] = "training.json"

    @property
    def model(self) -> OnnxModel:
        """FP32, for that INT8 alone."""
        return OnnxModel(self.path / "model.onnx")

    @property
    def ranges(self) -> Ranges:
        """Of that model."""
        return Ranges(self.path / "ranges")

    def read(self) -> dict[str, Any]:
        """How the training went; see ``pipeline.training.curve``."""
        return dict(json.loads((self.path / "training.json").read_text(encoding="utf-8")))


class Findings(Artifact):
    """What the lint found of the calibration data (JSON), see ``pipeline.stages.lint``."""

    def read(self) -> tuple[Finding, ...]:
        """All of them, errors first."""
        return tuple(Finding(**item) for item in json.loads(self.path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Engine(Artifact):
    """What a backend built. ``simulated``: to be run as a float simulation of its Q/DQ nodes (accuracy only)."""

    backend: str = "onnxruntime"
    simulated: bool = False
    signature: str = ""
    """Of a trained network that is a SavedModel; empty for all else."""
    min_batch: int = 0
    max_batch: int = 0
    """The batches that one or other of its optimization profiles takes; 0: no bound."""


class Outputs(Artifact):
    """What an engine answered on all samples, in Polygraphy's RunResults format."""


class Tolerances(Artifact):
    """How far the outputs of a correct engine may be from FP32's, derived (JSON)."""

    def read(self) -> dict[str, Any]:
        """The record; see ``pipeline.stages.tolerate``."""
        return dict(json.loads(self.path.read_text()))


class SupportTable(Artifact):
    """What a backend answers of each node of a model (JSON), see ``pipeline.stages.support``."""

    def read(self) -> dict[str, Any]:
        """The record."""
        return dict(json.loads(self.path.read_text(encoding="utf-8")))


class LayerNoises(Artifact):
    """How much noise each tensor in INT8 brings to the outputs (JSON), see ``pipeline.accuracy.layer_noise``."""


class PlacementTimes(Artifact):
    """What of an INT8 model is quicker in float on one CPU (JSON)."""

    def read(self) -> dict[str, Any]:
        """The record; see ``pipeline.latency.placement_times``."""
        return dict(json.loads(self.path.read_text()))


class Mixture(Artifact):
    """The layers that are left out of INT8 so that it holds a bound (JSON)."""

    def read(self) -> dict[str, Any]:
        """The record; see ``pipeline.accuracy.mixed_precision``."""
        return dict(json.loads(self.path.read_text(encoding="utf-8")))


class FrontierTimes(Artifact):
    """How fast each set of layers in float is that mixed precision judged (JSON)."""

    def read(self) -> dict[str, Any]:
        """The record; see ``pipeline.latency.frontier_times``."""
        return dict(json.loads(self.path.read_text(encoding="utf-8")))


class WeightCodes(Artifact):
    """The codes of weights that were rounded by data: a folder with ``codes.npz`` and ``rounding.json``."""

    def read(self) -> dict[str, Any]:
        """The record; see ``pipeline.accuracy.weight_rounding``."""
        return dict(json.loads((self.path / "rounding.json").read_text(encoding="utf-8")))


class Verdict(Artifact):
    """The comparison of one engine's outputs with the FP32 model's, and the task metric of both (JSON)."""

    def read(self) -> dict[str, Any]:
        """The record; see ``pipeline.stages.validate``."""
        return dict(json.loads(self.path.read_text()))


class Timings(Artifact):
    """The raw latency samples of one benchmark run, and the machine they come from (JSON)."""

    def read(self) -> dict[str, Any]:
        """The record; see ``pipeline.stages.benchmark``."""
        return dict(json.loads(self.path.read_text()))


TYPES: dict[str, type[Artifact]] = {
    kind.__name__: kind
    for kind in (
        OnnxModel,
        TfliteModel,
        Findings,
        SupportTable,
        Ranges,
        Tuned,
        Engine,
        Outputs,
        Tolerances,
        LayerNoises,
        PlacementTimes,
        Mixture,
        FrontierTimes,
        WeightCodes,
        Verdict,
        Timings,
    )
}


def record_from_artifact(artifact: Artifact, folder: Path) -> dict[str, Any]:
    """Plain data that names the artifact relative to ``folder``, which must hold it."""
    others = {f.name: getattr(artifact, f.name) for f in fields(artifact) if f.name != "path"}
    return {"type": type(artifact).__name__, "path": artifact.path.relative_to(folder).as_posix(), **others}


def artifact_from_record(record: dict[str, Any], folder: Path) -> Artifact:
    """The inverse of ``record_from_artifact``."""
    others = {key: value for key, value in record.items() if key not in ("type", "path")}
    return TYPES[record["type"]](path=folder / record["path"], **others)


def files_of_engine(engine: Path) -> list[Path]:
    """The engine's file, and those that hold weights of it; of an engine that is a folder all that is in it."""
    return Artifact(engine).files()


def digest_of_engine(engine: Path) -> str:
    """SHA-256 (hex) of the engine's file, as `sha256sum` prints it; of all their digests where there are several."""
    if engine.is_dir():
        return sha256_of(engine)
    digests = [file_digest(file).hex() for file in files_of_engine(engine)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def copy_files(source: Path, target: Path) -> None:
    """The files of a folder into a new one; ``shutil.copytree`` makes a list of its errors, a full disk among them."""
    target.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, target / file.name)
