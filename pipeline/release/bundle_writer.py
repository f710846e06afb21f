"""A plan and its results in one file, for a device."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from calibration.data.batches import Samples
from calibration.data.user_function import module_sources
from calibration.ranges.foreign_tables import scales_from_ranges
from calibration.ranges.ranges_file import ranges_from_folder
from calibration.ranges.trt_cache import Cache, bytes_from_cache, header_for
from engines import backend
from engines.precision import FP32
from pipeline.artifact import TRAINED, Artifact, ModelFile, copy_files, external_files
from pipeline.bundle import (
    CALIBRATION,
    FORMAT_VERSION,
    KEYS,
    LABELS,
    MANIFEST,
    PLAN,
    PLUGINS,
    POWER_MODE,
    SAMPLES,
    SUMS,
    Manifest,
    files_in,
    model_key,
    sums_of,
    tolerance_key,
)
from pipeline.errors import ConfigError
from pipeline.json_record import write_json
from pipeline.machine.identity import installed_versions
from pipeline.plan import STAGES, Plan, merged, setting_from_text, tomllib
from pipeline.record import DataInfo, data_info
from pipeline.results import Results

TOP = "trtforge-bundle"
"""The folder in the archive."""
BATCH_SIZE = 32
BESIDE_A_MODEL = ("notes.json", "names.json")
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip file can hold: no file of a bundle has a time of its own."""


def narrowed(plan: Plan) -> Plan:
    """The plan with [pack]'s backends and evaluation samples, and INT8 by Q/DQ, which native INT8 needs not.

    Placements by time are static ones in it: the device has another CPU.
    """
    limits = [limit for limit in (plan.data.evaluation.limit, plan.pack.limit) if limit]
    evaluation = replace(plan.data.evaluation, limit=min(limits, default=0))
    variants = replace(plan.variants, backends=plan.pack.backends)
    build = replace(plan.build, int8="qdq")
    quantize = replace(plan.quantize, placement="static")
    data = replace(plan.data, evaluation=evaluation)
    return replace(plan, data=data, variants=variants, quantize=quantize, build=build)


def write_bundle(out: Path, plan: Plan, made: Results) -> Artifact:
    """Write ``out/bundle.tar``.

    Raises:
        ConfigError: the metric's module lies outside the plan's folder, or samples differ in shape.
        DataError: a version of TensorRT reads no cache.
    """
    folder = out / TOP
    folder.mkdir()
    manifest = _fill(folder, plan, made)
    write_json(manifest, folder / MANIFEST)
    plan_text = bundle_plan(plan, has_labels=made.evaluation.reader.labels() is not None)
    (folder / PLAN).write_text(plan_text, encoding="utf-8", newline="\n")
    (folder / SUMS).write_text(sums_of(folder), encoding="utf-8")
    write_tar(folder, out / "bundle.tar")
    return Artifact(out / "bundle.tar")


def _fill(folder: Path, plan: Plan, made: Results) -> Manifest:
    came_quantized = made.came_quantized
    assert made.ranges is not None or came_quantized
    assert made.reference is not None
    assert made.findings is not None
    assert made.source_verdict is not None
    models: dict[str, ModelFile] = {model_key(FP32.name, "none", TRAINED): made.fp32}
    for variant, model in made.models.items():
        placement = backend(variant.backend).PLACEMENT
        models[model_key(variant.precision.name, placement, variant.network, model.FORMAT)] = model
    caches = {}
    if made.ranges is not None and not came_quantized:
        copy_files(made.ranges.path, folder / "ranges")
        caches = dict(_caches(folder, plan.pack.caches, made.ranges.path))
    write_samples(folder / SAMPLES, made.evaluation)
    tolerances = dict(_copy_tolerances(folder, plan, made))
    (folder / "reference").mkdir()
    shutil.copyfile(made.reference.path, folder / "reference/outputs.json")
    shutil.copyfile(made.source_verdict.path, folder / "reference/verdict.json")
    findings = [asdict(finding) | {"sentence": _as_named(finding.sentence, plan)} for finding in made.findings.read()]
    (folder / "reference/findings.json").write_text(json.dumps(findings, indent=1), encoding="utf-8")
    _copy_metric(folder, plan)
    _copy_plugins(folder, plan)
    _copy_keys(folder, plan)
    return Manifest(
        format_version=FORMAT_VERSION,
        source=plan.model.source,
        signature=made.source.signature_name(),
        models={which: _copy_model(folder, which, model.path) for which, model in models.items()},
        ranges="" if came_quantized else "ranges",
        caches=caches,
        reference="reference/outputs.json",
        verdict="reference/verdict.json",
        findings="reference/findings.json",
        tolerances=tolerances,
        calibration=_calibration_info(plan, made),
        evaluation=replace(data_info(made.evaluation), path=plan.data.evaluation.path),
        notes=(*made.training_notes(), *made.notes),
        versions=installed_versions(),
    )


def _calibration_info(plan: Plan, made: Results) -> DataInfo | None:
    """What was calibrated on, as the plan names it; None where nothing was."""
    if plan.data.calibration is None or made.calibration is None:
        return None
    return replace(data_info(made.calibration), path=plan.data.calibration.path)


def _caches(folder: Path, versions: Sequence[str], ranges: Path) -> Iterator[tuple[str, str]]:
    for version in versions:
        scales, _ = scales_from_ranges(ranges_from_folder(ranges))
        path = folder / "caches" / f"{version}.cache"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes_from_cache(Cache(header_for(version, "EntropyCalibration2"), scales)))
        yield version, path.relative_to(folder).as_posix()


def bundle_plan(plan: Plan, *, has_labels: bool) -> str:
    """The text of the plan for the device: the user's, pointed at what is in the bundle."""
    table = tomllib.loads(plan.text)
    for setting in plan.settings:
        table = merged(table, setting_from_text(setting))
    for name in STAGES:
        if not plan.stage(name).NEEDS_ENGINES:  # Its work is done.
            table.pop(name, None)
    model = {key: value for key, value in table["model"].items() if key not in ("signature", "float_source")}
    metric_options = {key: value for key, value in table["data"].items() if key in ("metric", "output", "detector")}
    labels = {"labels": LABELS} if has_labels else {}
    report, gate = (
        {key: value for key, value in table.get(name, {}).items() if key != "folder"} for name in ("report", "gate")
    )
    table |= {
        "model": model | {"source": "models/fp32/model.onnx"},
        "data": metric_options | {"calibration": {"path": CALIBRATION}, "evaluation": {"path": SAMPLES} | labels},
        "variants": table.get("variants", {})
        | {"backends": list(plan.variants.backends), "networks": list(plan.variants.networks)},
        "report": report | {"html": False},
        "gate": gate | {"html": False},
        "packed": {"manifest": MANIFEST},
    }
    if plan.build.plugins:
        table["build"]["plugins"] = [_plugin_path(name) for name in plan.build.plugins]
    if plan.sign.trusted:
        table["sign"]["trusted"] = [_key_path(number) for number, _ in enumerate(plan.sign.trusted)]
    head = "# Written by `trtforge pack`. What another machine made is used as it is; building and judging are yours.\n"
    return f"{head}\n{tomli_w.dumps(table)}"


def write_samples(path: Path, samples: Samples) -> None:
    """All samples as the model takes them, one array per input, and the labels; in constant memory, equal bytes.

    Raises:
        ConfigError: samples differ in shape, or an input has the labels' name.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for spec in samples.specs:
            if spec.name == LABELS:
                raise ConfigError(f"the model's input '{LABELS}' has the name of the labels in a bundle; rename it")
            _write_input(archive, samples, spec.name)
        if samples.reader.labels() is not None:
            labels = samples.labels()
            with _member(archive, LABELS) as stream:
                _write_header(stream, labels.dtype, labels.shape)
                stream.write(np.ascontiguousarray(labels).tobytes())


def write_tar(folder: Path, path: Path) -> None:
    """An archive of a folder that is the same for the same files: in order, with no owner and no time."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for file in files_in(folder):
            member = tarfile.TarInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}")
            member.size, member.mode = file.stat().st_size, 0o644
            with file.open("rb") as stream:
                archive.addfile(member, stream)


def _write_input(archive: zipfile.ZipFile, samples: Samples, name: str) -> None:
    batch_size = samples.fixed_batch or BATCH_SIZE
    shape: tuple[int, ...] | None = None
    with _member(archive, name) as stream:
        for batch in samples.batches(batch_size):
            array = batch[name]
            if shape is None:
                shape = array.shape[1:]
                _write_header(stream, array.dtype, (samples.num_samples, *shape))
            if array.shape[1:] != shape:
                raise ConfigError(
                    f"{samples.source.path}: input '{name}' is {shape} a sample at first and {array.shape[1:]} later, "
                    "a bundle holds samples of one shape; set resize and crop in [data.preprocess]"
                )
            stream.write(array.tobytes())


def _member(archive: zipfile.ZipFile, name: str) -> Any:
    return archive.open(zipfile.ZipInfo(f"{name}.npy", EPOCH), "w", force_zip64=True)


def _write_header(stream: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, described)


def _as_named(sentence: str, plan: Plan) -> str:
    """The sentence with data named as the plan names it: where it lay where it was packed does not matter."""
    for source in filter(None, (plan.data.calibration, plan.data.evaluation)):
        sentence = sentence.replace(str(plan.resolved(source.path)), source.path)
    return sentence


def _copy_model(folder: Path, which: str, model: Path) -> str:
    """The model's file, its weights beside it and what the stage said of it; its path in the bundle."""
    target = folder / "models" / which
    target.mkdir(parents=True)
    shutil.copyfile(model, target / f"model{model.suffix}")
    for weights in external_files(model):
        (target / weights.relative_to(model.parent)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(weights, target / weights.relative_to(model.parent))
    for name in BESIDE_A_MODEL:
        if (model.parent / name).is_file():
            shutil.copyfile(model.parent / name, target / name)
    return f"models/{which}/model{model.suffix}"


def _copy_tolerances(folder: Path, plan: Plan, made: Results) -> Iterator[tuple[str, str]]:
    """Derived tolerances by their key, copied."""
    for variant, tolerances in made.tolerances.items():
        native = plan.build.is_native(variant.backend, variant.precision.name)
        key = tolerance_key(variant.precision.name, backend(variant.backend), native)
        path = folder / "tolerances" / f"{key}.json"
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(tolerances.path, path)
        yield key, path.relative_to(folder).as_posix()


def _copy_metric(folder: Path, plan: Plan) -> None:
    """The user's own metric, with what it imports from the plan's folder."""
    if ":" not in plan.data.metric:
        return
    home = plan.folder.resolve()
    for file in module_sources(plan.data.metric, plan.folder):
        if not file.is_relative_to(home):
            raise ConfigError(f"{file}: the metric {plan.data.metric} lies outside {home}; put it there to pack it")
        (folder / file.relative_to(home)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / file.relative_to(home))


def _copy_plugins(folder: Path, plan: Plan) -> None:
    """The libraries of plugins, whatever processor they are for: the device says whether it is its own."""
    for name in plan.build.plugins:
        target = folder / _plugin_path(name)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(plan.resolved(name), target)


def _copy_keys(folder: Path, plan: Plan) -> None:
    """The public keys of whom the plan trusts: what a device builds has to be signed by one of them there."""
    for number, name in enumerate(plan.sign.trusted):
        target = folder / _key_path(number)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(plan.resolved(name), target)


def _key_path(number: int) -> str:
    return f"{KEYS}/{number + 1}.pub"


def code_allowed(plan: Plan) -> tuple[str, ...]:
    """The arguments by which the bundle of a user's own plan may run and load there what that plan does here."""
    metric = (plan.data.metric,) if ":" in plan.data.metric else ()
    modes = (POWER_MODE,) if plan.benchmark.power_mode else ()
    code = (*metric, *map(_plugin_path, plan.build.plugins), *modes)
    return ("--allow", ",".join(code)) if code else ()


def _plugin_path(name: str) -> str:
    return f"{PLUGINS}/{Path(name).name}"
