"""Show, merge and convert ranges and calibration caches."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from calibration.analysis.range_choice import PlacementChoice, choice_from_folder
from calibration.graph.external_data import model_from_file
from calibration.graph.tensor_digests import tensor_digests
from calibration.histogram.methods import Method
from calibration.ranges.convergence import Convergence, convergence_from_folder
from calibration.ranges.foreign_tables import (
    ScaleTable,
    ranges_from_table,
    scales_from_ranges,
    scales_of_every_tensor,
    table_from_file,
)
from calibration.ranges.merge import merged_ranges
from calibration.ranges.ort_table import flatbuffers_from_scales, json_from_scales
from calibration.ranges.ranges import IMPORTED, METHODS, RangesRecord
from calibration.ranges.ranges_file import ranges_from_folder, write_ranges
from calibration.ranges.stop import stop_from_folder
from calibration.ranges.trt_cache import ALGORITHMS, Cache, bytes_from_cache, header_for
from pipeline.artifact import Artifact, OnnxModel, Ranges
from pipeline.command.options import given_options, model_from, needed, output_option
from pipeline.errors import ConfigError
from pipeline.output import check_file_target, check_folder_target, make
from pipeline.page.numbers import db_text
from pipeline.record import MethodSummary
from pipeline.report.tensor_quality import NEAR_DB, best_where, methods_from_ranges, tensors_from_ranges
from pipeline.spelling import echo, table_console
from pipeline.stages.quantize import Quantize

KINDS = ("ranges", "cache", "ort", "qdq")
ENDINGS = {"": "ranges", ".cache": "cache", ".flatbuffers": "ort", ".json": "ort", ".onnx": "qdq"}
MOST_LISTED = 3
"""A note that more tensors have is not printed for each."""
OF_CACHES = ("--tensorrt", "--algorithm")


@click.group(short_help="Show, merge and convert ranges.", context_settings={"help_option_names": ["-h", "--help"]})
def ranges() -> None:
    """Show, merge and convert ranges, written by `trtforge calibrate` or by another tool.

    \b
    trtforge ranges show ranges
    trtforge ranges merge monday tuesday --method mse -o ranges
    trtforge ranges convert ranges -o calibration.cache --tensorrt 8.5.2
    trtforge ranges convert calibration.cache --model model.onnx -o int8.onnx
    """


@ranges.command(short_help="Print the range of each tensor by each calibration method.")
@click.argument("folder", type=Path)
def show(folder: Path) -> None:
    """Print the range of each tensor in FOLDER by each calibration method, and the best method; worst tensors first."""
    record = ranges_from_folder(folder)
    console = table_console()
    if record.method == IMPORTED:
        console.print(_imported_table(record))
    else:
        console.print(_table(record))
        console.print(_methods_table(methods_from_ranges(record)))
    for line in notes_of(record):
        console.print(Text(line, style="dim"))
    origin = record.origin
    what = f"imported from {origin.source}" if record.method == IMPORTED else f"{origin.num_samples} samples"
    if origin.parts:
        what += f" of {len(origin.parts)} runs"
    versions = "".join(f", {tool} {version}" for tool, version in sorted(origin.versions.items()))
    console.print(Text(f"{what}; model {origin.model_digest[:12]}{versions}"))
    if (choice := choice_from_folder(folder)) is not None:
        for placement in choice.placements:
            console.print(_choice_table(choice.outputs, placement))
        console.print(Text(choice.sentence()))
    if (stop := stop_from_folder(folder)) is not None:
        console.print(Text(stop.sentence()))
    if (convergence := convergence_from_folder(folder)) is not None:
        console.print(_curve(convergence))
        console.print(Text(convergence.sentence()))


def notes_of(record: RangesRecord) -> list[str]:
    """Lines with what is noted of tensors; a note that many have stands once, with the first of them."""
    having: dict[str, list[str]] = {}
    for name, tensor in record.tensors.items():
        for note in tensor.notes:
            having.setdefault(note, []).append(name)
    lines = []
    for note, names in having.items():
        if len(names) > MOST_LISTED:
            lines.append(f"{len(names)} tensors, the first '{names[0]}': {note}")
        else:
            lines += [f"{name}: {note}" for name in names]
    return lines


@ranges.command(short_help="Merge the ranges of several runs on different samples.")
@click.argument("folders", type=Path, nargs=-1, required=True)
@click.option(
    "--method", type=click.Choice(METHODS), help="how ranges are read from the merged histograms; by default as before"
)
@output_option("folder to write the ranges to")
def merge(folders: tuple[Path, ...], method: Method | None, output: Path | None) -> None:
    """Merge the ranges in FOLDERS, from different samples; byte for byte the result of one run over all of them."""
    target: Path = needed(output, "-o", "name the folder to write the ranges to")
    check_folder_target(target)

    def merged(out: Path) -> Ranges:
        record, histograms = merged_ranges(folders, method)
        folder = out / "ranges"
        folder.mkdir()
        write_ranges(record, histograms, folder)
        return Ranges(folder)

    echo(make(target, merged).path)


@ranges.command(short_help="Convert between ranges, TensorRT's and ONNX Runtime's tables, and Q/DQ.")
@click.argument("source", type=Path)
@click.option("--to", type=click.Choice(KINDS), help="format to write; by default from the extension of -o")
@click.option("--model", type=Path, help="FP32 ONNX model; required for qdq, and for ranges from a table")
@click.option(
    "--names", type=Path, help="names.json of `trtforge export`: maps names in the model to names in the table"
)
@click.option("--tensorrt", metavar="VERSION", help="for a cache: version of TensorRT that will read it, such as 8.5.2")
@click.option(
    "--algorithm",
    type=click.Choice(ALGORITHMS),
    default="EntropyCalibration2",
    show_default=True,
    help="for a cache: calibrator class that will read it",
)
@output_option("file to write, or folder for ranges")
def convert(source: Path, **options: Any) -> None:
    """Convert SOURCE: ranges, a calibration cache of TensorRT, or a calibration table of ONNX Runtime.

    \b
    ranges  folder as written by `trtforge calibrate`; without histograms if SOURCE is a table
    cache   TensorRT's calibration cache (.cache) for one version, up to 10; for DLA give --model too,
            then a tensor without a scale is an error
    ort     ONNX Runtime's table: .flatbuffers, as its TensorRT provider reads it, or .json
    qdq     INT8 model with Q/DQ nodes placed for TensorRT (.onnx)

    Scales are bit-identical after every conversion and back.
    """
    output = needed(options["output"], "-o", "name the file to write, or the folder for ranges")
    kind = options["to"] or ENDINGS.get(output.suffix)
    if kind is None:
        raise ConfigError(f"{output}: its extension does not say what to write; give --to, one of {', '.join(KINDS)}")
    if kind != "cache" and (beside := [flag for flag in given_options() if flag in OF_CACHES]):
        raise ConfigError(f"{beside[0]}: has an effect only on a cache; drop it, or give --to cache")
    (check_folder_target if kind == "ranges" else check_file_target)(output)
    echo(make(output, partial(_converted, source=source, kind=kind, options=options)).path)


def _converted(out: Path, source: Path, kind: str, options: Mapping[str, Any]) -> Artifact:
    """Write what was asked for into ``out``, and beside it ``notes.json``."""
    names = _names(options["names"])
    model = model_from(options["model"]) if options["model"] else None
    ranges_or_table, notes = _read(source, model, names, must_be_ranges=kind in ("ranges", "qdq"))
    if names and source.is_dir() and kind == "qdq":
        raise ConfigError("--names: has no effect on Q/DQ from ranges, which have the model's names; drop it")
    artifact: Artifact
    if isinstance(ranges_or_table, RangesRecord) and kind in ("ranges", "qdq"):
        if source.is_dir() and kind == "ranges":
            raise ConfigError(f"{source}: is a folder of ranges already; copy it, or give --to")
        folder = source if source.is_dir() else out / "ranges"
        if folder != source:
            folder.mkdir()
            write_ranges(ranges_or_table, {}, folder)
        artifact = Ranges(folder)
        if kind == "qdq":
            opened: OnnxModel = needed(model, "--model", "Q/DQ nodes are written into it")
            artifact = Quantize(target="tensorrt")(out, opened, Ranges(folder))
            notes = [*notes, *artifact.notes()]
    else:
        scales, method, more = _scales(
            ranges_or_table, model if kind == "cache" else None, names if source.is_dir() else {}
        )
        artifact = Artifact(out / "table")
        artifact.path.write_bytes(_writer(kind, method, options)(scales))
        notes = [*notes, *more]
    (out / "notes.json").write_text(json.dumps(notes))
    return artifact


def _read(
    source: Path, model: OnnxModel | None, names: Mapping[str, str], *, must_be_ranges: bool
) -> tuple[RangesRecord | ScaleTable, list[str]]:
    """The source, as ranges of the model where there is one; and sentences on what did not fit."""
    if source.is_dir():
        record = ranges_from_folder(source)
        if model is not None:
            digests = partial(tensor_digests, model_from_file(model.path))
            record.check_model(model.digest(), digests)
        return record, []
    table = table_from_file(source)
    if model is None:
        if names:
            raise ConfigError("--names: has no effect without --model; give both")
        if must_be_ranges:
            needed(model, "--model", f"the tensors of {source} are those of a model")
        return table, []
    return ranges_from_table(table, model_from_file(model.path), model.digest(), names)


def _scales(
    ranges_or_table: RangesRecord | ScaleTable, model: OnnxModel | None, names: Mapping[str, str]
) -> tuple[dict[str, float], str, list[str]]:
    """Scales by the names that the table is to have, the method, and sentences."""
    if isinstance(ranges_or_table, ScaleTable):
        zero = [name for name, scale in ranges_or_table.scales.items() if not scale]
        notes = [f"{len(zero)} tensors, the first '{zero[0]}', are all zero and have no scale"] if zero else []
        return {name: scale for name, scale in ranges_or_table.scales.items() if scale}, IMPORTED, notes
    scales, notes = scales_from_ranges(ranges_or_table)
    if model is not None:
        zero = [name for name in ranges_or_table.tensors if name not in scales]
        scales = scales_of_every_tensor(scales, model_from_file(model.path), zero)
    return {names.get(name, name): scale for name, scale in scales.items()}, ranges_or_table.method, notes


def _writer(kind: str, method: str, options: Mapping[str, Any]) -> Callable[[Mapping[str, float]], bytes]:
    if kind == "cache":
        version = needed(options["tensorrt"], "--tensorrt", "name the version that reads the cache, such as 8.5.2")
        header = header_for(version, options["algorithm"])
        return lambda scales: bytes_from_cache(Cache(header, scales))
    if options["output"].suffix == ".json":
        return lambda scales: json_from_scales(scales, method)
    if options["output"].suffix == ".flatbuffers":
        return flatbuffers_from_scales
    raise ConfigError(f"{options['output']}: ONNX Runtime's table ends in .flatbuffers or .json; give such a name")


def _names(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}); give names.json of `trtforge export`") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(f"{path}: is not a table of names; give names.json of `trtforge export`")
    if len(set(names.values())) < len(names):
        raise ConfigError(f"{path}: gives two tensors the same name; correct it")
    return names


def _imported_table(record: RangesRecord) -> Table:
    table = Table("tensor", "amax", title="imported ranges, without histograms")
    for name, tensor in record.tensors.items():
        table.add_row(Text(name), f"{tensor.amax:.4g}")
    return table


def _table(record: RangesRecord) -> Table:
    table = Table(
        title=f"ranges by {record.method}; by each method: SQNR of symmetric int8, amax, share clipped (chosen: bold)"
    )
    table.show_lines = True
    table.add_column("tensor, min to max", overflow="fold")
    for method in METHODS:
        table.add_column(method, justify="right", no_wrap=True)
    for tensor in tensors_from_ranges(record):
        best = f"best: {tensor.best_method}" if tensor.best_method else "no SQNR"
        cells = [
            Text(
                "\n".join((db_text(reading.sqnr_db), f"{reading.amax:.4g}", f"{100 * reading.clipped_share:.3g} %")),
                style="bold" if method == tensor.method else "",
            )
            for method, reading in tensor.by_method.items()
        ]
        table.add_row(Text(f"{tensor.name}\n{tensor.min:.4g} to {tensor.max:.4g}\n{best}"), *cells)
    return table


def _methods_table(methods: Sequence[MethodSummary]) -> Table:
    table = Table("method", title=best_where(methods), title_justify="left")
    for head in ("best on", f"within {NEAR_DB:g} dB\nof the best on", "mean SQNR"):
        table.add_column(head, justify="right")
    for summary in methods:
        name = f"{summary.method} (chosen for {summary.num_chosen})" if summary.num_chosen else summary.method
        table.add_row(name, str(summary.num_best), str(summary.num_near_best), db_text(summary.mean_sqnr_db))
    return table


def _choice_table(outputs: Sequence[str], choice: PlacementChoice) -> Table:
    which = outputs[0] if len(outputs) == 1 else f"{len(outputs)} outputs"
    table = Table("ranges", title=f"{which} against FP32's, for {choice.target}")
    for head in ("SQNR", "samples", "tensors not\nby entropy"):
        table.add_column(head, justify="right")
    for result in choice.results:
        name = f"{result.name} (chosen)" if result.name == choice.winner else result.name
        table.add_row(name, db_text(result.sqnr_db), str(result.num_samples), str(result.num_changed))
    return table


def _curve(convergence: Convergence) -> Table:
    table = Table(
        title=f"change against the last range, %\n(by {convergence.reading}, {len(convergence.tensors)} tensors)"
    )
    for head in ("samples", "half of\nthe tensors", "nine of ten"):
        table.add_column(head, justify="right")
    for point in convergence.points:
        cells = (f"{100 * change:.3g}" for change in (point.median_change, point.most_change))
        table.add_row(str(point.num_samples), *cells)
    return table
