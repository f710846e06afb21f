"""A bundle: what one machine made of a plan, opened on another that has neither the network nor its data.

Layout::

    plan.toml                 an ordinary plan; [packed] names the manifest
    manifest.json             what is what (``Manifest``)
    models/<which>/model.onnx one for each precision; INT8 for each placement, such as ``int8.tensorrt``
    models/<which>/model.tflite for LiteRT, such as ``int8.tflite``
    ranges/                   as `trtforge calibrate` wrote them
    caches/<version>.cache    calibration caches, where asked for
    plugins/<name>.so         the shared libraries of [build] plugins
    trusted/<number>.pub      the public keys of [sign] trusted
    samples.npz               the evaluation samples, preprocessed, and their labels
    reference/outputs.json    the FP32 model's answers to them
    reference/findings.json   what the lint found
    tolerances/<key>.json     derived for engines of a kind, see ``tolerance_key``
    reference/verdict.json    the exported model against the trained network
    SHA256SUMS                of every file, as `sha256sum` reads it
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from calibration.file_digest import digest_now, file_digest
from engines.contract import Backend, Placement
from engines.model_format import ModelFormat
from engines.precision import FP32, precision_named
from pipeline.artifact import (
    TRAINED,
    Findings,
    ModelFile,
    OnnxModel,
    Outputs,
    Ranges,
    TfliteModel,
    Tolerances,
    Verdict,
)
from pipeline.errors import ConfigError, DataError
from pipeline.json_record import record_from_json
from pipeline.record import DataInfo

FORMAT_VERSION = 2
PLAN, MANIFEST, SUMS = "plan.toml", "manifest.json", "SHA256SUMS"
POWER_MODE = "power_mode"
"""What allows a bundle's plan to change a Jetson's power mode for a while, after ``--allow``."""
SAMPLES, LABELS, PLUGINS, KEYS = "samples.npz", "labels", "plugins", "trusted"
CALIBRATION = "packed:ranges"
"""What a bundle's plan names as calibration data: the samples stayed behind, their ranges are in the bundle."""

CACHE = "__pycache__"
"""Where Python looks for what it compiled: it would run that instead of the source beside it."""
OURS = (".trtforge", "trtforge-report", ".trtforge-report", "trtforge-gate", ".trtforge-gate")
"""How what runs write into a bundle's folder begins: the store, reports, gates, and where these are made."""
AGAIN = "copy the bundle again, or pack it again with `trtforge pack`"


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds; paths are relative to its folder."""

    format_version: int
    source: str
    """The trained network, as the plan named it where it was packed."""
    signature: str
    models: Mapping[str, str]
    """``fp32``, ``fp16`` and, by placement, ``int8.tensorrt``: the ONNX file; ``int8.tflite``: that for LiteRT."""
    ranges: str
    """Empty where the network came quantized, of which INT8 needs none."""
    caches: Mapping[str, str]
    """TensorRT's version -> the calibration cache for it."""
    reference: str
    verdict: str
    findings: str
    """What the lint found about the data and the model."""
    tolerances: Mapping[str, str]
    """By ``tolerance_key``: how far a correct engine may be off."""
    calibration: DataInfo | None
    """None where nothing was calibrated."""
    evaluation: DataInfo
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    """Of what it was made with."""


@dataclass(frozen=True)
class Bundle:
    """An unpacked bundle that was checked."""

    folder: Path
    manifest: Manifest

    def model(
        self, precision: str, placement: Placement, network: str, model_format: ModelFormat = OnnxModel.FORMAT
    ) -> ModelFile:
        """The model of that network in that format, with that precision written in it.

        Raises:
            ConfigError: the bundle was packed without it.
        """
        which = model_key(precision, placement, network, model_format)
        if which not in self.manifest.models:
            raise ConfigError(
                f"{self.folder}: the bundle has no model '{which}', only {', '.join(self.manifest.models)}; pack it "
                "again with the required backends in [pack] backends"
            )
        path = self.folder / self.manifest.models[which]
        return OnnxModel(path) if model_format == OnnxModel.FORMAT else TfliteModel(path)

    def fp32(self) -> OnnxModel:
        """The FP32 model in ONNX, which answers are compared with.

        Raises:
            ConfigError: the bundle is without.
        """
        return OnnxModel(self.model(FP32.name, "none", TRAINED).path)

    def ranges(self) -> Ranges | None:
        """The ranges that INT8 was placed by; None where the network came quantized."""
        return Ranges(self.folder / self.manifest.ranges) if self.manifest.ranges else None

    def reference(self) -> Outputs:
        """The FP32 model's answers to the samples."""
        return Outputs(self.folder / self.manifest.reference)

    def verdict(self) -> Verdict:
        """The exported model against the trained network, judged where that was."""
        return Verdict(self.folder / self.manifest.verdict)

    def tolerances(self, key: str) -> Tolerances | None:
        """How far a correct engine of that kind may be off; None if it was packed without."""
        return Tolerances(self.folder / self.manifest.tolerances[key]) if key in self.manifest.tolerances else None

    def findings(self) -> Findings:
        """What the lint found."""
        return Findings(self.folder / self.manifest.findings)


def model_key(precision: str, placement: Placement, network: str, model_format: ModelFormat = OnnxModel.FORMAT) -> str:
    """A model's name in the manifest; of ONNX models only INT8 depends on the placement, others have their format's.

    The trained network has no name.
    """
    head = "" if network == TRAINED else f"{network}+"
    if model_format != OnnxModel.FORMAT:
        return f"{head}{precision}.{model_format}"
    return f"{head}{precision}.{placement}" if precision_named(precision).is_integer else f"{head}{precision}"


def tolerance_key(precision: str, runtime: Backend, native: bool) -> str:
    """The name of derived tolerances: they depend on what is rounded, by whose rules, and who says where."""
    is_by_format = runtime.TAKES != OnnxModel.FORMAT and not precision_named(precision).is_full
    return f"{precision}.{'native' if native else runtime.TAKES if is_by_format else runtime.PLACEMENT}"


def open_bundle(manifest: Path, written: Collection[Path] = ()) -> Bundle:
    """Open an unpacked bundle by its manifest; all files but the plan are checked against ``SHA256SUMS``.

    Args:
        manifest: manifest.json.
        written: what runs of the plan write into the bundle's folder, beside what has a name of ours.

    Raises:
        ConfigError: there is no manifest, it is of another version, or it does not fit.
        DataError: a file is missing, is not what was packed, was not packed, or lies outside the bundle.
    """
    record = record_from_json(manifest, Manifest, FORMAT_VERSION, AGAIN)
    folder = manifest.parent
    names = check_sums(folder, written)
    parts = (record.ranges, record.reference, record.verdict, record.findings)
    for part in (*record.models.values(), *record.caches.values(), *record.tolerances.values(), *parts):
        if part and part not in names and not any(name.startswith(f"{part}/") for name in names):
            raise DataError(f"{manifest}: names '{part}', which is no file of the bundle; {AGAIN}")
    return Bundle(folder, record)


def check_sums(folder: Path, written: Collection[Path] = ()) -> set[str]:
    """Check a bundle's folder against its ``SHA256SUMS``. The plan may be changed; what runs write may be there.

    Returns the names of its files, relative to the folder.

    Raises:
        DataError: a file that it names is missing or changed, or a file is there that it does not name.
    """
    sums = folder / SUMS
    if not sums.is_file():
        raise DataError(f"{sums}: is missing; {AGAIN}")
    digests = read_sums(folder)
    resolved = {path.resolve() for path in written}
    apart = [entry for entry in folder.iterdir() if entry.name.startswith(OURS) or entry.resolve() in resolved]
    words = {
        "missing": "is missing from the bundle",
        "changed": "is not what was packed (SHA-256 differs)",
        "unlisted": f"was not packed, {sums.name} does not name it",
    }
    for file, problem in faults_by_sums(folder, digests, apart):
        if (file, problem) != (folder / PLAN, "changed"):
            if CACHE in file.relative_to(folder).parts:
                raise DataError(f"{file}: {words[problem]}, and Python would run it instead of the source; delete it")
            raise DataError(f"{file}: {words[problem]}; {AGAIN}")
    return set(digests)


def read_sums(folder: Path) -> dict[str, str]:
    """Relative name -> SHA-256 (hex), of ``SHA256SUMS``."""
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


SumFault: TypeAlias = Literal["missing", "changed", "unlisted"]


def faults_by_sums(
    folder: Path, digests: Mapping[str, str], apart: Collection[Path] = ()
) -> Iterator[tuple[Path, SumFault]]:
    """Each file that is not as its sums say: not there, or a link, or elsewhere; of other content; or in no sum.

    ``apart`` are files and folders in ``folder`` that need no sum.
    """
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file() or file.is_symlink() or not file.resolve().is_relative_to(folder.resolve()):
            yield file, "missing"
        elif digest_now(file) != digest:
            yield file, "changed"
    for entry in sorted(folder.iterdir()):
        if entry == folder / SUMS or entry in apart:
            continue
        for file in [entry] if entry.is_symlink() or not entry.is_dir() else sorted(entry.rglob("*")):
            is_folder = file.is_dir() and not file.is_symlink()
            if not is_folder and file.relative_to(folder).as_posix() not in digests:
                yield file, "unlisted"


def sums_of(folder: Path) -> str:
    """The text of ``SHA256SUMS`` for every file in the folder."""
    return "".join(f"{file_digest(file).hex()}  {file.relative_to(folder).as_posix()}\n" for file in files_in(folder))


def files_in(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in the order of their names."""
    yield from sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.as_posix())
