"""The verb `benchmark`: what it writes, and the table that it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.compose
import pytest

from pipeline.artifact import Timings
from pipeline.command.outcomes import Timed, tell
from tests.pipeline.command.verbs.calls import files, one_sentence

if TYPE_CHECKING:
    from tests.conftest import Command

QUICK = ("--warmup-queries", 1, "--warmup-seconds", 0, "--min-queries", 8, "--min-seconds", 0, "--num-blocks", 4)


def test_benchmark(command: Command, int8: Path) -> None:
    said = command(
        "benchmark", "tiny.onnx", int8, "--data", "data.npz", "--batch-sizes", "1,8", *QUICK, "-o", "t/timings.json"
    )
    assert said.status == 0, said.err
    rows = [line.split()[:2] for line in said.out.splitlines() if line.lstrip().startswith(("tiny", "int8"))]
    assert sorted(rows) == [["int8.onnx", "1"], ["int8.onnx", "8"], ["tiny.onnx", "1"], ["tiny.onnx", "8"]]
    assert "at least 8 queries" in " ".join(said.out.split())
    assert max(map(len, said.out.splitlines())) <= 80
    record = json.loads(Path("t/timings.json").read_text())
    assert {row["name"] for row in record["timings"]} == {"tiny.onnx", "int8.onnx"}
    assert files(Path("t")) == {"timings.json", *(row["samples"] for row in record["timings"])}
    assert files(int8.parent) == {"ranges", "int8.onnx", "t"}


def test_benchmark_tells_the_time_of_each_layer(command: Command, tiny: Path) -> None:
    said = command("benchmark", "tiny.onnx", "--data", "data.npz", "--layers", *QUICK, "-o", "timings.json")
    assert said.status == 0, said.err
    assert "tiny.onnx at batch 1: layers (median of 50 runs)" in said.out
    found = json.loads(Path("timings.json").read_text())
    assert found["timings"][0]["split_ms"] is None, "the CPU is no device"
    layers = found["layers"]["tiny.onnx"]["times"]["layers"]
    assert {"Conv", "Gemm"} & {layer["layer"]["kind"].removeprefix("Fused") for layer in layers}
    assert sum(layer["share"] for layer in layers) == pytest.approx(1)


def test_benchmark_says_that_a_backend_does_not_tell_layers(command: Command, tiny: Path) -> None:
    said = command("benchmark", "tiny.onnx", "--data", "data.npz", "--backend", "reference", "--layers", *QUICK)
    assert said.status == 0, said.err
    assert "trtforge: tiny.onnx: its backend does not report layer times" in said.err.splitlines()


def test_benchmark_without_output_leaves_nothing(command: Command, tiny: Path) -> None:
    said = command("benchmark", "tiny.onnx", "--data", "data.npz", *QUICK)
    assert said.status == 0, said.err
    assert files(tiny) == set()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--batch-sizes", "1,x"), "'1,x': is not a list of whole numbers; write 1,8,32"),
        (("--batch-sizes", ""), "batch_sizes is empty; name at least one, such as 1"),
        (("--batch-sizes", "64"), "[benchmark] batch_sizes has 64, but there are 24 samples to time with; give sizes"),
        (("--batch-sizes", "0"), "batch_sizes is 0, but must be at least 1; correct it"),
        (("--num-blocks", 1), "num_blocks is 1, but must be at least 4 and finite; correct it"),
    ],
)
def test_bad_options_of_benchmark(command: Command, tiny: Path, options: tuple[object, ...], said: str) -> None:
    one_sentence(command("benchmark", "tiny.onnx", "--data", "data.npz", *options), 2, said)
    assert files(tiny) == set()


def test_two_engines_of_one_name(command: Command, tiny: Path) -> None:
    Path("other").mkdir()
    Path("other/tiny.onnx").write_bytes(Path("tiny.onnx").read_bytes())
    said = command("benchmark", "tiny.onnx", "other/tiny.onnx", "--data", "data.npz", *QUICK)
    one_sentence(said, 2, "other/tiny.onnx: has the file name of another engine, tiny.onnx; rename one")
    said = command("benchmark", "tiny.onnx", "./other/../tiny.onnx", "--data", "data.npz", *QUICK)
    one_sentence(said, 2, "other/../tiny.onnx: is named twice; to run it twice at once name it twice in --together")


def timings(folder: Path, device: dict[str, float] | None, energy_mj: float | None = None) -> Timings:
    latency = {"mean": 0.012345, "p50": 0.01, "p90": 1.5, "p95": 2.0, "p99": 1234.5}
    row = {"batch_size": 1, "latency_ms": latency, "device_ms": device, "throughput_per_s": 81004.5, "split_ms": None}
    rows = [
        row | {"name": "model.onnx", "stable": True, "note": ""},
        row
        | {"name": "a_rather_long_name_of_an_engine[1].plan", "stable": False, "note": "too few", "device_ms": None},
    ]
    energies = [{"name": r["name"], "batch_size": 1, "energy_mj": energy_mj if r["stable"] else None} for r in rows]
    none: dict[str, Any] = {"monitor": None, "runners": {}, "layers": {}}
    record = none | {"protocol": "one [query] at a time", "timings": rows, "energies": energies}
    (folder / "timings.json").write_text(json.dumps(record))
    return Timings(folder / "timings.json")


def test_timings_on_the_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(Timed(timings(tmp_path, None).read()))
    said = capsys.readouterr()
    assert "device" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert [line.split() for line in said.out.splitlines() if "model.onnx" in line] == [
        ["model.onnx", "1", "0.0100", "1.50", "1,234", "0.0123", "81,004", "yes"]
    ]
    assert "one [query] at a time" in said.out
    assert said.err == "trtforge: a_rather_long_name_of_an_engine[1].plan at batch 1: too few\n"
    named = "".join(line[:27].strip() for line in said.out.splitlines()[4:7])
    assert named.startswith("model.onnxa_rather_long_name_of_an_engine[1].plan")


def test_timings_with_device_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(Timed(timings(tmp_path, {"p50": 0.5}).read()))
    lines = capsys.readouterr().out.splitlines()
    assert any("device" in line for line in lines)
    assert [line.split()[-2:] for line in lines if " yes " in line or " no " in line] == [["yes", "0.500"], ["no", "–"]]


def test_timings_with_energy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(Timed(timings(tmp_path, None, energy_mj=12.345).read()))
    lines = capsys.readouterr().out.splitlines()
    assert any("energy" in line for line in lines)
    assert [line.split()[-2:] for line in lines if " yes " in line or " no " in line] == [["yes", "12.3"], ["no", "–"]]


def test_benchmark_searches_the_largest_batch(command: Command, tiny: Path) -> None:
    """Of an engine without a bound of its own, to which a minute is enough for all that are tried."""
    bound = ("--largest-batch", "mean_ms <= 60000", "--largest-batch-seconds", 600)
    said = command("benchmark", "tiny.onnx", "--data", "data.npz", "--num-threads", 1, *QUICK, *bound, "-o", "t.json")
    assert said.status == 0, said.err
    words = " ".join(said.out.split())
    assert "tiny.onnx: even the largest batch, 4096, keeps mean_ms <= 60000 (95% interval 4096 to 4096), at" in words
    (largest,) = json.loads(Path("t.json").read_text())["largest_batches"]
    assert (largest["name"], largest["low"], largest["high"]) == ("tiny.onnx", 4096, 4096)
    refused = command("benchmark", "tiny.onnx", "--data", "data.npz", "--largest-batch", "20 ms")
    one_sentence(refused, 2, "largest_batch is '20 ms', which is no bound of latency; write p50_ms, p90_ms")


def test_benchmark_runs_engines_of_two_networks_at_once(command: Command, tiny: Path) -> None:
    """Each is fed what it takes, of the same data."""
    onnx.save(onnx.compose.add_prefix(onnx.load("tiny.onnx"), "other_"), "other.onnx")
    with np.load("data.npz") as arrays:
        data = dict(arrays)
    np.savez("both.npz", **data, **{f"other_{name}": array for name, array in data.items()})
    long = ("--min-seconds", 0, "--num-blocks", 6, "--min-queries", 8, "--together", "all", "-o", "t.json")
    said = command("benchmark", "tiny.onnx", "other.onnx", "--data", "both.npz", "--num-threads", 1, *long)
    assert said.status == 0, said.err
    words = " ".join(said.out.split())
    assert "At once, in processes: tiny.onnx takes" in words
    together = json.loads(Path("t.json").read_text())["together"]
    assert [row["name"] for row in together["engines"]] == ["tiny.onnx", "other.onnx"]
    assert all(Path(row["beside_file"]).is_file() for row in together["engines"])
    refused = command("benchmark", "tiny.onnx", "--data", "data.npz", *QUICK, "--together", Path("tiny.onnx").resolve())
    one_sentence(refused, 2, "[benchmark] together names tiny.onnx alone; name two or more, or one several times")
    refused = command("benchmark", "tiny.onnx", "--data", "data.npz", *QUICK, "--together", "all")
    one_sentence(refused, 2, "[benchmark] together names tiny.onnx alone; name two or more, or one several times")
