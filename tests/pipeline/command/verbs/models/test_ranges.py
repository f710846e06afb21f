"""The verb `ranges`: laptop to Jetson and back, old caches to TensorRT 11, runs merged, tables shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from calibration.histogram.histogram import histogram_from_values
from calibration.ranges.ort_table import scales_from_flatbuffers, scales_from_json
from calibration.ranges.ranges import Origin, ranges_from_histograms
from calibration.ranges.ranges_file import ranges_from_folder, write_ranges
from calibration.ranges.trt_cache import cache_from_bytes
from engines import backend
from engines.contract import BuildOptions, ShapeRange
from pipeline.command.verbs.models.ranges import notes_of

if TYPE_CHECKING:
    from tests.conftest import Command

JETSON = """<ir_version: 8, opset_import: ["" : 17]>
jetson (float[N, 16, 8, 8] input_1) => (float[N, 16, 8, 8] answer)
{
    hidden = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (input_1, w, b)
    answer = Relu (hidden)
}"""
OLD_CACHE = """TRT-8502-EntropyCalibration2
input_1:0: 3c010a14
hidden:0: 3d2d4859
answer:0: 4000890a
(Unnamed Layer* 7) [Constant]_output: 3c010a14
"""
"""Scales that NVIDIA published, on tensors named as tf2onnx names them."""


@pytest.fixture
def found(command: Command, tiny: Path) -> Path:
    """The ranges of all tensors of the tiny network, by entropy."""
    assert (
        command(
            "calibrate", "tiny.onnx", "--data", "data.npz", "--method", "entropy", "--watch", "all", "-o", "found"
        ).status
        == 0
    )
    return tiny / "found"


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, made the current one, with a network as it is exported today and its old cache."""
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(JETSON)
    for name, shape in {"w": (16, 16, 3, 3), "b": (16,)}.items():
        values = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "old.cache").write_text(OLD_CACHE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hex_of(path: Path) -> dict[str, str]:
    """Tensor name -> the eight digits in a cache."""
    lines = path.read_text().splitlines()[1:]
    return {name: bits for name, _, bits in (line.rpartition(": ") for line in lines)}


def test_a_model_without_its_file_of_weights_is_one_sentence(command: Command, found: Path) -> None:
    onnx.save(onnx.load("tiny.onnx"), "out.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    Path("w.bin").unlink()
    assert command("ranges", "convert", "found", "--tensorrt", "8.5.2", "-o", "a.cache").status == 0
    for arguments in (
        ("calibrate", "out.onnx", "--data", "data.npz", "-o", "x"),
        ("quantize", "out.onnx", "--ranges", "found", "-o", "x.onnx"),
        ("cast", "out.onnx", "--ranges", "found", "-o", "x.onnx"),
        ("ranges", "convert", "found", "--model", "out.onnx", "-o", "x.onnx"),
        ("ranges", "convert", "a.cache", "--model", "out.onnx", "-o", "x"),
    ):
        said = command(*arguments)
        assert (said.status, said.out) == (4, "")
        assert re.fullmatch(r"trtforge: out\.onnx: cannot be read with all its weights \(.+\); .+\n", said.err), (
            said.err
        )


# To the Jetson.


def test_ranges_become_the_cache_that_a_jetson_reads(command: Command, found: Path) -> None:
    said = command("ranges", "convert", "found", "-o", "a.cache", "--tensorrt", "8.5.2")
    assert (said.status, said.out) == (0, "a.cache\n")
    cache = cache_from_bytes(Path("a.cache").read_bytes(), "a.cache")
    assert cache.header == "TRT-8502-EntropyCalibration2"
    assert {name: 127 * scale for name, scale in cache.scales.items()} == {
        name: tensor.amax for name, tensor in ranges_from_folder(found).tensors.items()
    }


def test_the_header_is_as_asked_for(command: Command, found: Path) -> None:
    for version, header in (("10.3.0", "TRT-100300-"), ("8.6.1", "TRT-8601-")):
        to = ("--to", "cache", "-o", "table", "--tensorrt", version, "--algorithm", "MinMaxCalibration")
        assert command("ranges", "convert", found, *to).status == 0
        assert Path("table").read_text().startswith(f"{header}MinMaxCalibration\n")


@pytest.mark.parametrize("way", ["ranges", "a.flatbuffers", "a.json", "b.cache"])
def test_every_way_and_back_is_exact_to_the_bit(command: Command, found: Path, way: str) -> None:
    out, back = ("--tensorrt", "8.5.2", "-o"), ("--tensorrt", "8.5.2", "-o", "back.cache")
    assert command("ranges", "convert", "found", *out, "first.cache").status == 0
    kind = ("--model", "tiny.onnx", "--to", "ranges") if way == "ranges" else ()
    extra = ("--tensorrt", "10.3.0") if way == "b.cache" else ()
    assert command("ranges", "convert", "first.cache", *kind, *extra, "-o", way).status == 0
    assert command("ranges", "convert", way, *back).status == 0
    assert Path("back.cache").read_bytes() == Path("first.cache").read_bytes()


def test_a_cache_for_dla_has_every_tensor(command: Command, tiny: Path, found: Path) -> None:
    to = ("ranges", "convert", "found", "--tensorrt", "8.5.2", "-o", "dla.cache", "--model", "tiny.onnx")
    assert command(*to).status == 0
    every = {"image", "convolved", "active", "pooled", "flat", "scores"}
    assert set(hex_of(tiny / "dla.cache")) == every
    record = json.loads((found / "ranges.json").read_text())
    assert hex_of(tiny / "dla.cache")["flat"] == hex_of(tiny / "dla.cache")["pooled"]
    del record["tensors"]["flat"]
    (found / "ranges.json").write_text(json.dumps(record))
    assert command(*to).status == 0
    assert set(hex_of(tiny / "dla.cache")) == every
    del record["tensors"]["convolved"]
    (found / "ranges.json").write_text(json.dumps(record))
    said = command(*to)
    assert said.status == 2
    assert "1 ('convolved') of the model's tensors have no range, a cache for DLA needs each of them" in said.err


def test_names_of_the_original_model_are_written(command: Command, tiny: Path, found: Path) -> None:
    (tiny / "names.json").write_text('{"image": "serving_default_image:0"}')
    to = ("--tensorrt", "8.5.2", "--names", "names.json", "-o", "a.cache")
    assert command("ranges", "convert", "found", *to).status == 0
    assert "serving_default_image:0" in hex_of(tiny / "a.cache")
    assert "image" not in hex_of(tiny / "a.cache")
    back = command("ranges", "convert", "a.cache", "--model", "tiny.onnx", "--names", "names.json", "-o", "back")
    assert back.status == 0
    assert back.err == (
        "trtforge: back: 1 ('serving_default_image:0') tensors were renamed as `trtforge export` renames them\n"
    )
    amax = {name: tensor.amax for name, tensor in ranges_from_folder(tiny / "back").tensors.items()}
    assert amax == {name: tensor.amax for name, tensor in ranges_from_folder(found).tensors.items()}


def test_ranges_become_onnxruntimes_tables(command: Command, tiny: Path, found: Path) -> None:
    expected = {name: tensor.amax for name, tensor in ranges_from_folder(found).tensors.items()}
    for name, read in (("t.flatbuffers", scales_from_flatbuffers), ("t.json", scales_from_json)):
        assert command("ranges", "convert", "found", "-o", name).status == 0
        assert {n: 127 * scale for n, scale in read((tiny / name).read_bytes(), name).items()} == expected
    assert "CalibrationMethod.Entropy" in (tiny / "t.json").read_text()


# From the Jetson.


def test_an_old_cache_becomes_a_qdq_model_that_tensorrt_11_builds(command: Command, jetson: Path) -> None:
    said = command("ranges", "convert", "old.cache", "--model", "model.onnx", "-o", "int8.onnx")
    assert (said.status, said.out) == (0, "int8.onnx\n")
    assert "3 ('input_1:0', 'hidden:0', 'answer:0') tensors were renamed as `trtforge export` renames them" in said.err
    assert "1 ('(Unnamed Layer* 7) [Constant]_output') tensors of TRT-8502-EntropyCalibration2 are not in" in said.err
    model = onnx.load(jetson / "int8.onnx")
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scale = next(
        values[n.input[1]] for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "input_1"
    )
    assert scale.astype(">f4").tobytes().hex() == "3c010a14"
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx, which builds without a GPU, is not installed")
    shape = ShapeRange((1, 16, 8, 8), (4, 16, 8, 8), (8, 16, 8, 8))
    options = BuildOptions(precision="int8", shapes={"input_1": shape})
    record = backend("tensorrt_rtx").build(jetson / "int8.onnx", jetson / "int8.engine", options)
    assert (record.num_int8, record.num_quantizable) == (1, 1)


def test_an_old_cache_becomes_ranges_that_quantize_takes(command: Command, jetson: Path) -> None:
    assert command("ranges", "convert", "old.cache", "--model", "model.onnx", "-o", "found").status == 0
    assert sorted(path.name for path in (jetson / "found").iterdir()) == ["ranges.json"]
    assert command("ranges", "convert", "old.cache", "--model", "model.onnx", "-o", "one.onnx").status == 0
    assert command("ranges", "convert", "found", "--model", "model.onnx", "-o", "two.onnx").status == 0
    assert command("quantize", "model.onnx", "--ranges", "found", "-o", "three.onnx").status == 0
    assert len({(jetson / f"{name}.onnx").read_bytes() for name in ("one", "two", "three")}) == 1


@pytest.mark.parametrize(
    ("verb", "why"), [(("cast",), "FP16 needs"), (("quantize", "--target", "onnxruntime"), "asymmetric quantization")]
)
def test_what_needs_the_values_refuses_a_cache(command: Command, jetson: Path, verb: tuple[str, ...], why: str) -> None:
    assert command("ranges", "convert", "old.cache", "--model", "model.onnx", "-o", "found").status == 0
    said = command(*verb, "model.onnx", "--ranges", "found", "-o", "out.onnx")
    assert said.status == 2
    assert "were imported from TRT-8502-EntropyCalibration2, which has scales only" in said.err
    assert why in said.err
    assert not (jetson / "out.onnx").exists()


def test_ranges_of_a_model_with_other_weights_are_refused_and_the_tensor_named(command: Command, found: Path) -> None:
    model = onnx.load("tiny.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, "weight"))
    onnx.save(model, "tiny.onnx")
    for verb in (("quantize",), ("cast",)):
        said = command(*verb, "tiny.onnx", "--ranges", "found", "-o", "out.onnx")
        assert said.status == 2
        assert "by weights or operators, 1 ('scores') differ" in said.err
    said = command("ranges", "convert", "found", "--model", "tiny.onnx", "-o", "out.onnx")
    assert said.status == 2
    assert "by weights or operators, 1 ('scores') differ" in said.err


# What is refused.


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no output": (("found",), "-o is missing: name the file to write"),
    "no kind": (
        ("found", "-o", "a.txt"),
        "a.txt: its extension does not say what to write; give --to, one of ranges, ",
    ),
    "no version": (("found", "-o", "a.cache"), "--tensorrt is missing: name the version that reads the cache"),
    "new version": (("found", "-o", "a.cache", "--tensorrt", "11.0.0"), "reads no calibration caches, 10 was the last"),
    "version of a table": (
        ("found", "-o", "a.json", "--tensorrt", "8.5.2"),
        "--tensorrt: has an effect only on a cache",
    ),
    "no model": (("old.cache", "-o", "a"), "--model is missing: the tensors of old.cache are those of a model"),
    "no model for Q/DQ": (("found", "-o", "a.onnx"), "--model is missing: Q/DQ nodes are written into it"),
    "names alone": (("old.cache", "-o", "a.json", "--names", "n.json"), "--names: has no effect without --model"),
    "names for Q/DQ": (
        ("found", "-o", "a.onnx", "--model", "tiny.onnx", "--names", "n.json"),
        "--names: has no effect",
    ),
    "ranges to ranges": (("found", "-o", "a"), "found: is a folder of ranges already"),
    "an odd table": (
        ("found", "--to", "ort", "-o", "a.cache"),
        "a.cache: ONNX Runtime's table ends in .flatbuffers or",
    ),
    "no source": (("none", "-o", "a.json"), "none: cannot be read (No such file or directory)"),
    "no names": (("old.cache", "-o", "a", "--model", "tiny.onnx", "--names", "x"), "x: cannot be read as JSON"),
    "another's cache": (("old.cache", "-o", "a", "--model", "tiny.onnx"), "none of its 4 ('input_1:0', 'hidden:0',"),
    "a damaged cache": (
        ("cut.cache", "-o", "a.json"),
        "cut.cache, line 2: is 'input_1:0: 3c01', a tensor's name, a colon",
    ),
    "one name twice": (
        ("found", "-o", "a.json", "--names", "twice.json"),
        "twice.json: gives two tensors the same name",
    ),
    "names of numbers": (("found", "-o", "a.json", "--names", "number.json"), "number.json: is not a table of names"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(command: Command, found: Path, what: str) -> None:
    Path("old.cache").write_text(OLD_CACHE)
    Path("cut.cache").write_text(OLD_CACHE[:44])
    Path("n.json").write_text('{"image": "x"}')
    Path("twice.json").write_text('{"image": "x", "flat": "x"}')
    Path("number.json").write_text('{"image": 3}')
    before = sorted(found.parent.iterdir())
    arguments, sentence = REFUSED[what]
    said = command("ranges", "convert", *arguments)
    assert said.status == 2
    assert said.out == ""
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert sorted(found.parent.iterdir()) == before


# Merge and show.


def test_two_runs_merged_are_one_run_over_all(command: Command, tiny: Path) -> None:
    images = np.load("data.npz")["image"]
    for name, some in (("a", images[:10]), ("b", images[10:]), ("all", images)):
        np.savez(f"{name}.npz", image=some)
        options = ("--data", f"{name}.npz", "--batch-size", 1, "--method", "mse")
        assert command("calibrate", "tiny.onnx", *options, "-o", f"of_{name}").status == 0
    assert command("ranges", "merge", "of_a", "of_b", "-o", "merged").out == "merged\n"
    assert command("ranges", "merge", "of_b", "of_a", "-o", "backwards").status == 0
    for file in ("histograms.npz", "ranges.json"):
        assert (tiny / "merged" / file).read_bytes() == (tiny / "backwards" / file).read_bytes()
    assert (tiny / "merged" / "histograms.npz").read_bytes() == (tiny / "of_all" / "histograms.npz").read_bytes()
    records = [json.loads((tiny / name / "ranges.json").read_text()) for name in ("merged", "of_all")]
    assert len(records[0].pop("parts")) == 2
    assert records[1].pop("parts") == []
    assert records[0].pop("data_digest") != records[1].pop("data_digest")
    means, expected = ({n: t.pop("channel_means") for n, t in each["tensors"].items()} for each in records)
    assert {name for name, values in means.items() if values} == {name for name, values in expected.items() if values}
    for name, values in means.items():
        np.testing.assert_allclose(values, expected[name], atol=0.3, err_msg="of other samples")
    assert records[0] == records[1]
    said = command("ranges", "merge", "of_a", "merged", "-o", "twice")
    assert said.status == 2
    assert "samples must not count twice" in said.err
    assert not (tiny / "twice").exists()


def test_show_has_the_worst_first_and_each_method(command: Command, found: Path) -> None:
    said = command("ranges", "show", "found")
    assert said.status == 0
    ranges = ranges_from_folder(found)
    table, summary = said.out.split("Highest SQNR of ")
    blocks = re.split(r"├─.*┤\n", table[table.index("╇") :])
    assert len(blocks) == len(ranges.tensors)
    names = []
    for block in blocks:
        lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in block.splitlines() if line[0] == "│"]
        names.append(lines[0][0])
        tensor = ranges.tensors[names[-1]]
        methods = ("entropy", "minmax", "percentile", "mse")
        assert lines[0][1:] == [f"{tensor.sqnr_db[method] or 0:.1f} dB" for method in methods]
        assert lines[1] == [
            f"{tensor.min:.4g} to {tensor.max:.4g}",
            *(f"{tensor.amax_by_method[m]:.4g}" for m in methods),
        ]
        assert lines[2][1:] == [f"{100 * tensor.clipped_share[method]:.3g} %" for method in methods]
        best = lines[2][0].removeprefix("best: ")
        assert lines[0][1 + methods.index(best)] == max(lines[0][1:], key=lambda text: float(text.split()[0]))
    ratios = [ranges.tensors[name].sqnr_db["entropy"] or 0 for name in names]
    assert ratios == sorted(ratios)
    assert summary.startswith(f"{len(names)} tensors: ")
    assert re.search(r"│ entropy \(chosen for \d+\) +│ +\d+ │ +\d+ │ +\d+\.\d dB │", summary)
    assert "active: one-sided: half of symmetric int8's codes are unused" in said.out
    assert f"24 samples; model {ranges.origin.model_digest[:12]}, numpy " in said.out


def test_a_note_that_many_tensors_have_is_shown_once() -> None:
    values = np.linspace(0.0, 6.0, 99, dtype=np.float32)
    positive, constant = histogram_from_values(values, "t"), histogram_from_values(np.ones(3, np.float32), "c")
    one_sided = "one-sided: half of symmetric int8's codes are unused"

    def shown(num_positive: int) -> list[str]:
        histograms = {f"t{number}": positive for number in range(num_positive)} | {"c": constant}
        return notes_of(ranges_from_histograms(histograms, "minmax", 99.9, Origin("m", "d", 1)))

    assert shown(2) == ["c: constant on the calibration data", f"t0: {one_sided}", f"t1: {one_sided}"]
    assert shown(9) == ["c: constant on the calibration data", f"9 tensors, the first 't0': {one_sided}"]


def test_show_of_imported_ranges_says_where_they_are_from(command: Command, jetson: Path) -> None:
    assert command("ranges", "convert", "old.cache", "--model", "model.onnx", "-o", "found").status == 0
    said = command("ranges", "show", "found")
    assert said.status == 0
    assert "│ answer  │ 255.1 │" in said.out
    assert "imported from TRT-8502-EntropyCalibration2; model " in said.out


@pytest.mark.parametrize("method", ["minmax", "imported"])
def test_names_are_shown_as_they_are(command: Command, tmp_path: Path, method: Any) -> None:
    names = ("c[/b]x[red]", "a:zap:", "[bold]y")  # Terminals' markup and emoji, for some.
    histograms = {name: histogram_from_values(np.arange(1.0, 9.0), name) for name in names}
    found = ranges_from_histograms(histograms, "minmax", 99.99, Origin("m" * 64, "d" * 64, 8))
    if method == "imported":
        none: dict[str, Any] = {"amax_by_method": {}, "sqnr_db": {}, "clipped_share": {}}
        none |= {"method": method}
        found = replace(found, method=method, tensors={n: replace(t, **none) for n, t in found.tensors.items()})
    write_ranges(found, histograms, tmp_path)
    said = command("ranges", "show", tmp_path)
    assert said.status == 0, said.err
    assert all(f"│ {name} " in said.out for name in names), said.out


def test_merged_ranges_of_auto_need_a_named_method(command: Command, tiny: Path) -> None:
    images = np.load("data.npz")["image"]
    for name, some in (("a", images[:10]), ("b", images[10:])):
        np.savez(f"{name}.npz", image=some)
        assert command("calibrate", "tiny.onnx", "--data", f"{name}.npz", "-o", f"of_{name}").status == 0
    said = command("ranges", "merge", "of_a", "of_b", "-o", "merged")
    assert said.status == 2
    assert "of_a: ranges were chosen by auto, for which merging has no samples; name the method" in said.err
    assert command("ranges", "merge", "of_a", "of_b", "--method", "mse", "-o", "merged").status == 0
    assert ranges_from_folder(tiny / "merged").method == "mse"


def test_show_of_no_ranges_is_refused(command: Command, tiny: Path) -> None:
    said = command("ranges", "show", tiny)
    assert said.status == 2
    assert "ranges.json: cannot be read" in said.err


def test_ranges_show_has_the_curve_and_its_absence_is_no_fault(command: Command, tiny: Path) -> None:
    assert command("calibrate", "tiny.onnx", "--data", "data.npz", "-o", "ranges").status == 0
    said = command("ranges", "show", "ranges")
    assert re.search(
        r"change against the last range, % \(by percentile 99\.99, \d+ tensors\)", " ".join(said.out.split())
    )
    assert re.search(r"│ +16 │ +[\d.e-]+ │ +[\d.e-]+ │", said.out)
    assert re.search(r"ranges (had not )?converged", said.out)
    (tiny / "ranges" / "settling.json").write_text("{")
    assert "settling.json: is damaged" in command("ranges", "show", "ranges").err
    (tiny / "ranges" / "settling.json").unlink()
    assert "moving" not in command("ranges", "show", "ranges").out


def test_the_curve_is_no_part_of_the_ranges_digest(command: Command, tiny: Path) -> None:
    from pipeline.artifact import Ranges

    assert command("calibrate", "tiny.onnx", "--data", "data.npz", "-o", "ranges").status == 0
    before = Ranges(tiny / "ranges").digest()
    (tiny / "ranges" / "settling.json").unlink()
    assert Ranges(tiny / "ranges").digest() == before
    (tiny / "ranges" / "ranges.json").unlink()
    assert Ranges(tiny / "ranges").digest() != before


def test_a_model_is_no_table(command: Command, tiny: Path) -> None:
    """Its bytes are no FlatBuffer of gigabytes."""
    (tiny / "named.flatbuffers").write_bytes((tiny / "tiny.onnx").read_bytes())
    for name in ("tiny.onnx", "named.flatbuffers"):
        said = command("ranges", "convert", name, "-o", "out.json")
        assert said.status == 2
        assert said.err.startswith(
            f"trtforge: {name}: is an ONNX model, a calibration cache, a table or a folder of ranges"
        )


def test_a_file_that_is_too_large_for_a_table_is_not_read(command: Command, tiny: Path) -> None:
    with (tiny / "huge.cache").open("wb") as stream:
        stream.truncate(3 << 30)
    said = command("ranges", "convert", "huge.cache", "-o", "out.json")
    assert said.status == 2
    assert said.err.startswith(
        "trtforge: huge.cache: has 3072 MiB, a table of a model's tensors is expected, which has at"
    )
