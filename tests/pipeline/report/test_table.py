"""report.json there and back, its documentation, and the table on the terminal."""

import dataclasses
import io
import json
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import pipeline
from pipeline.artifact import Timings
from pipeline.errors import ConfigError
from pipeline.json_record import finite, json_from_record, write_json
from pipeline.latency.benchmark import Latency, Speedup
from pipeline.latency.together import BesideOthers, Together
from pipeline.record import ComparedOutput, Record, VariantRecord
from pipeline.report.page import html_from_record
from pipeline.report.table import print_table, report_from_json
from pipeline.report.write import _together

ROOT = Path(pipeline.__file__).parent.parent


def test_the_record_comes_back_from_its_file_exactly(record: Record, tmp_path: Path) -> None:
    write_json(record, tmp_path / "new" / "report.json")
    assert report_from_json(tmp_path / "new" / "report.json") == record


def test_a_record_without_metric_protocol_or_timings_comes_back(record: Record, tmp_path: Path) -> None:
    bare = replace(
        record,
        metric=None,
        protocol=None,
        data=replace(record.data, calibration=None),
        variants=record.variants[3:],
        tensors=(),
    )
    write_json(bare, tmp_path / "report.json")
    assert report_from_json(tmp_path / "report.json") == bare


def test_the_same_record_is_the_same_bytes(record: Record) -> None:
    assert json_from_record(record) == json_from_record(record)


def test_the_shape_that_readers_rely_on(record: Record) -> None:
    data = json.loads(json_from_record(record))
    int8 = data["variants"][2]
    assert int8["name"] == "int8@onnxruntime"
    assert set(int8["latency_ms"]) == {"mean", "p50", "p90", "p95", "p99"}
    assert int8["latency_ms"] == int8["by_batch"][0]["latency_ms"]
    assert int8["speedup"] == int8["by_batch"][0]["speedup"] == 1.81
    assert int8["metric_drop"] == 0.0012
    assert int8["latency_missing"] == ""
    simulated = data["variants"][4]
    assert simulated["latency_ms"] is None
    assert simulated["metric_measured_on"] == "float simulation (ONNX Runtime, Q/DQ as written)"
    assert simulated["latency_missing"].startswith("no NVIDIA driver")
    assert data["model"]["inputs"] == [{"name": "input_1", "dtype": "float32", "shape": [-1, 49, 10, 1]}]


def test_a_number_that_json_cannot_hold_is_refused(record: Record) -> None:
    odd = replace(record.variants[0], comparison=(ComparedOutput("y", 0.0, 0.0, 1.0, 1.0, float("inf"), None),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_from_record(replace(record, variants=(odd,)))
    assert (finite(float("inf")), finite(float("nan")), finite(None), finite(0.5)) == (None, None, None, 0.5)


def broken(data: Any, path: str, change: Any) -> Any:
    """The plain data with the value at a dotted path replaced, or removed if ``change`` is ``...``."""
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place = data
    for step in steps:
        place = place[step]
    if change is ...:
        del place[last]
    else:
        place[last] = change
    return data


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ("variants.0.size_bytes", ..., r"variants\[0\]: required field missing|size_bytes"),
        ("variants.2.by_batch.0.latency_ms.p50", "fast", r"variants\[2\]\.by_batch\[0\]\.latency_ms\.p50: .*"),
        ("variants.0.size_bytes", "12", r"variants\[0\]\.size_bytes: "),
        ("variants.0.size_bytes", True, r"variants\[0\]\.size_bytes: "),
        ("variants.0.precision", "int4", r"variants\[0\]: .*precision is 'int4', expected one of fp32"),
        ("recommendation.outcome", "maybe", r"recommendation\.outcome: "),
        ("machine.colour", "red", "machine: .*colour"),
        ("served.0.from_store", 1, r"served\[0\]\.from_store: "),
        ("variants.0.notes", "abc", r"variants\[0\]\.notes: is 'abc', expected list"),
        ("schema_version", 4, "schema_version is 4, this program reads 15"),
        ("schema_version", ..., "schema_version is None, this program reads 15"),
    ],
)
def test_a_report_that_does_not_fit_names_the_key(
    record: Record, tmp_path: Path, path: str, change: Any, said: str
) -> None:
    data = broken(json.loads(json_from_record(record)), path, change)
    file = tmp_path / "report.json"
    file.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=rf"report\.json: .*({said}).*; write it again"):
        report_from_json(file)


def test_a_report_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"report\.json: cannot be read \(No such file or directory\)"):
        report_from_json(tmp_path / "report.json")
    (tmp_path / "report.json").write_text('{"schema_version": 4, "crea')
    with pytest.raises(ConfigError, match=r"report\.json: is not JSON"):
        report_from_json(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(ConfigError, match="schema_version is None"):
        report_from_json(tmp_path / "report.json")


def keys_of(kind: Any) -> Iterator[str]:
    """The names of all fields of a dataclass and of those inside it."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield field.name
            yield from keys_of(hints[field.name])
    elif isinstance(kind, types.UnionType) or typing.get_origin(kind) is not None:
        for inner in typing.get_args(kind):
            yield from keys_of(inner)


def test_the_page_about_the_schema_names_every_key_and_no_other() -> None:
    page = (ROOT / "docs" / "report-schema.md").read_text()
    keys = set(keys_of(Record))
    assert len(keys) > 90
    named = {word for code in re.findall(r"`([^`]+)`", page) for word in re.findall(r"^[a-z][a-z0-9_]*$", code)}
    assert keys - named == set()
    values = {"fp32", "fp16", "int8", "tensorrt", "onnxruntime", "none", "engine", "ship", "stay", "undecided"}
    values |= {"error", "warning", "pass", "fail"}
    files_and_words = {"block", "started_ms", "fraction", "null", "_ms", "_mib", "_db", "_w", "_per_s"}
    files_and_words |= {"time_ms", "values", "kinds", "names", "energy_uj"}
    assert named - keys - values - files_and_words == set()


def table_of(record: Record, width: int = 80) -> str:
    out = io.StringIO()
    print_table(record, Console(file=out, width=width))
    return out.getvalue()


def test_the_table_fits_80_columns_and_loses_nothing(record: Record) -> None:
    text = table_of(record)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    rows = [line.split() for line in text.splitlines() if "@" in line]
    assert rows[2] == ["int8@onnxruntime", "500", "91.25", "0.12", "0.228", "0.263", "1.81×", "99.1"]
    assert rows[4] == ["int8@tensorrt_rtx", "715", "91.16*", "0.21", "–", "–", "–", "99.1"]
    assert ["int8@onnxruntime", "32", "4.78"] in [row[:3] for row in rows]


def test_the_table_says_what_its_numbers_mean(record: Record) -> None:
    text = " ".join(table_of(record).split())
    assert "* accuracy by float simulation (ONNX Runtime, Q/DQ as written), not by the engine itself." in text
    assert "fp16@tensorrt_rtx, int8@tensorrt_rtx: not timed: no NVIDIA driver" in text
    assert "fp16@tensorrt_rtx: validation failed: output 'probabilities' has cosine 0.998700" in text
    assert "12 of 200 calibration samples are evaluation samples too" in text
    assert record.protocol is not None
    assert " ".join(record.protocol.description.split()) in text
    assert text.endswith(record.recommendation.sentence)


def test_an_unstable_timing_is_said_below_the_table(record: Record) -> None:
    first = record.variants[0]
    shaky = replace(first.by_batch[0], stable=False, note="unstable: the later half is 8.0% slower")
    text = " ".join(table_of(replace(record, variants=(first.timed((shaky,)),))).split())
    assert "fp32@onnxruntime, batch 1: unstable: the later half is 8.0% slower" in text


def test_names_with_brackets_are_no_markup(record: Record) -> None:
    odd = replace(record, model=replace(record.model, source="[red]model[/red]"), notes=("[bold]note[/bold]",))
    text = table_of(odd)
    assert "[red]model[/red]" in text
    assert "[bold]note[/bold]" in text


def test_a_metric_that_is_no_fraction_has_its_unit_in_the_head(record: Record) -> None:
    assert record.metric is not None
    text = table_of(replace(record, metric=replace(record.metric, name="mae", unit="m", higher_is_better=False)))
    assert "mae, m" in text
    assert "points" not in text.split("further")[0].split("fp32@")[0]
    assert "%" not in text.split("fp32@")[0].replace("agrees", "").splitlines()[2]


def test_a_run_without_metric_or_timings_has_a_table(record: Record) -> None:
    untimed = tuple(replace(variant, metric=None, metric_drop=None) for variant in record.variants[3:])
    text = table_of(replace(record, metric=None, protocol=None, variants=untimed))
    assert "not timed" in text
    assert "0.999*   32.5     –" in text


def test_without_a_metric_the_farthest_output_stands_in_its_columns(record: Record) -> None:
    far = ComparedOutput("boxes", 0.5, 0.1, 0.9182, 0.93, 12.0, 7.94)
    variants = tuple(replace(variant, comparison=(*variant.comparison, far)) for variant in record.variants)
    equal = replace(record.variants[0], comparison=(ComparedOutput("y", 0.0, 0.0, 1.0, 1.0, None, None),))
    text = table_of(replace(record, metric=None, variants=(equal, *variants[1:])))
    rows = {line.split()[0]: line.split() for line in text.split("further")[0].splitlines() if "@" in line}
    assert rows["fp32@onnxruntime"][2:4] == ["1", "equal"]
    assert rows["int8@onnxruntime"][2:4] == ["0.918", "7.9"]
    assert rows["int8@tensorrt_rtx"][2:4] == ["0.918*", "7.9"]
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "of the output that is farthest from FP32's" in text


def test_large_engines_are_shown_in_mib(record: Record) -> None:
    large = replace(record.variants[0], size_bytes=100 << 20)
    text = table_of(replace(record, variants=(large, *record.variants[1:])))
    assert "MiB" in text
    assert ["fp32@onnxruntime", "100", "91.37"] in [line.split()[:3] for line in text.splitlines()]


def test_timings_fill_the_fields_that_repeat_them(record: Record) -> None:
    variant: VariantRecord = record.variants[3]
    timings = record.variants[0].by_batch
    filled = variant.timed(timings)
    assert filled.latency_ms == timings[0].latency_ms
    assert filled.throughput_per_s == timings[0].throughput_per_s
    assert filled.speedup == timings[0].speedup
    assert filled.latency_missing == ""


def test_importing_loads_no_library_that_draws() -> None:
    code = (
        "import sys, pipeline.report.table, pipeline.report.page, pipeline.report.pictures, "
        "pipeline.advice.recommendation, pipeline.latency.benchmark;"
        "print(sorted({'matplotlib', 'jinja2', 'rich', 'cattrs', 'onnxruntime', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def at_once() -> Together:
    """Two engines that hinder each other."""
    alone, beside = Latency(1.1, 1.0, 1.2, 1.3, 1.5), Latency(2.1, 2.0, 2.2, 2.3, 4.5)
    row = BesideOthers(
        "int8@tensorrt", 1, alone, beside, Speedup(2.0, 1.9, 2.1), 900.0, 470.0, 400, "",
        "samples/together-0-alone.npz", "samples/together-0-beside.npz",
    )  # fmt: skip
    rows = row, replace(row, name="int8@tensorrt#2", note="beside: p99 is the slowest of only 40 queries")
    return Together("threads", rows, 1.05, 1.01, 1.09, 0.95, 10, "At once, in threads: both take twice as long.")


def test_engines_at_once_stand_below_the_table_and_on_the_page(record: Record, folder: Path, tmp_path: Path) -> None:
    record = replace(record, together=at_once())
    write_json(record, tmp_path / "report.json")
    assert report_from_json(tmp_path / "report.json") == record
    assert "At once, in threads: both take twice as long." in table_of(record)
    page = html_from_record(record, folder)
    assert "<td>2.00 (1.90 to 2.10)</td>" in page
    assert "int8@tensorrt#2, beside: p99 is the slowest" in page


def test_raw_latencies_at_once_lie_beside_the_report(tmp_path: Path) -> None:
    rows = [replace(row, alone_file="a.npz", beside_file="b.npz") for row in at_once().engines]
    kept = dataclasses.asdict(replace(at_once(), engines=tuple(rows)))
    (tmp_path / "timings.json").write_text(json.dumps({"together": kept}))
    together = _together(Timings(tmp_path / "timings.json"))
    assert together is not None
    assert together.engines[1].beside_file == "samples/b.npz"
    (tmp_path / "timings.json").write_text('{"together": null}')
    assert _together(Timings(tmp_path / "timings.json")) is None
