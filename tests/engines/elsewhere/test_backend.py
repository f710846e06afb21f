"""Runners, builds and timed queries through a process of Python 3.8: what they answer is what they answer here."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.backends import reference
from engines.contract import Array, BuildOptions, GivenBatches, GivenScales, GpuUse, MemoryRunner, ShapeRange
from engines.elsewhere.backend import BoundFeeds, ElsewhereBackend, ElsewhereRunner
from engines.elsewhere.process import ElsewhereProcess
from engines.elsewhere.worker import PYTHON_FILE, PYTHON_VARIABLE
from engines.errors import EngineError, NotTrusted, Unavailable
from engines.plugin_library import NAMED
from engines.signing import trust
from engines.signing.envelope import new_key, sealed
from engines.timed_queries import BlockLength, QueryArrivals
from tests.engines.elsewhere import pretended_backend
from tests.engines.plugins import NOTHING, for_another_processor, plugin_library
from tests.engines.python38 import ROOT, backend_in_38, process_of, python38, with_bindings


@pytest.fixture(scope="module")
def there() -> Iterator[ElsewhereBackend]:
    """The pretended TensorRT."""
    with process_of(pretended_backend) as process:
        yield ElsewhereBackend(process)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    (tmp_path / "engine.plan").write_bytes(b"plan")
    return tmp_path / "engine.plan"


def rows(*values: float) -> dict[str, Array]:
    return {"x": np.repeat(np.array(values, np.float32)[:, None], 2, axis=1)}


# Runners


def test_what_a_runner_tells(there: ElsewhereBackend, engine: Path) -> None:
    with there.load(engine, 0) as runner, pretended_backend.load(engine, num_threads=0) as here:
        assert (runner.inputs, runner.outputs) == (here.inputs, here.outputs)
        assert runner.device_ms() is None
        feed = rows(1, 2, 3)
        assert runner.infer(feed)["y"].tolist() == here.infer(feed)["y"].tolist() == [[2, 2], [4, 4], [6, 6]]
        assert runner.device_ms() == here.device_ms() == 2
        ours, theirs = here.facts(), runner.facts()
        assert ours.times is not None
        assert theirs.times is not None
        assert replace(theirs.times, enqueue_ms=0) == replace(ours.times, enqueue_ms=0)
        assert (theirs.device_memory_mib, theirs.notes) == (ours.device_memory_mib, ours.notes)
        assert isinstance(here, MemoryRunner)
        assert runner.device_memory_now_mib() == here.device_memory_now_mib() == ours.device_memory_mib
        assert runner.batch_ranges({"x": (1, 2)}) == here.batch_ranges({"x": (1, 2)}) == ((1, 4),)
        for bad in (rows(1, 2, 3, 4, 5), {"z": feed["x"]}):
            with pytest.raises(EngineError) as said:
                runner.infer(bad)
            with pytest.raises(EngineError) as wanted:
                here.infer(bad)
            assert str(said.value) == str(wanted.value)


def test_signatures_are_held_to_keys_here_and_the_bytes_to_them_there(
    there: ElsewhereBackend, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys are named after the process has begun, and it has nothing installed that verifies."""
    pytest.importorskip("securesystemslib")
    pytest.importorskip("cryptography")
    there.versions()
    monkeypatch.setenv(trust.TRUSTED, str(new_key(tmp_path / "release.key")))
    refitted = engine, tmp_path / "new.onnx", tmp_path / "out.plan", {"w": (("a", "MatMul"),)}
    for use_it in (
        lambda: there.load(engine, 0), lambda: there.layer_times(engine, rows(1), 1), lambda: there.refit(*refitted),
    ):  # fmt: skip
        with pytest.raises(NotTrusted, match=r"engine.plan: is not signed"):
            use_it()
    subject = {"name": engine.name, "digest": {"sha256": trust.sha256_of(engine)}}
    envelope = sealed({"_type": trust.STATEMENT_TYPE, "subject": [subject]}, tmp_path / "release.key")
    trust.beside_of(engine).write_text(json.dumps(envelope))
    with there.load(engine, 0) as runner:
        assert runner.infer(rows(1))["y"].tolist() == [[2, 2]]
    assert there.refit(*refitted).size_bytes == 4
    runner = there.load(engine, 0)
    engine.write_bytes(b"evil")
    with pytest.raises(NotTrusted, match="is not what was signed"):
        there.refit(*refitted)
    with pytest.raises(NotTrusted, match=r"is not what was signed \(SHA-256 differs\)"):
        runner.__enter__()
    with pytest.raises(NotTrusted, match="is not what was signed"):
        there.layer_times(engine, rows(1), 1)


def test_a_refit(there: ElsewhereBackend, engine: Path, tmp_path: Path) -> None:
    files, changed = (engine, tmp_path / "new.onnx", tmp_path / "out.plan"), {"w": (("a", "MatMul"), ("b", "Add"))}
    assert there.refit(*files, changed) == pretended_backend.refit(*files, changed)
    assert (tmp_path / "out.plan").read_bytes() == b"plan"
    with pytest.raises(EngineError, match=r"engine.plan: weights 'folded' have changed"):
        there.refit(*files, {"folded": ()})


def test_answers_have_memory_of_their_own_and_arrays_may_grow(there: ElsewhereBackend, tmp_path: Path) -> None:
    wide = backend_in_38("reference")
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y, float[N] z) { y = Neg(x) z = Abs(x) }'
    )
    onnx.save(model, tmp_path / "m.onnx")
    options = BuildOptions(shapes={"x": ShapeRange((1,), (2,), (1 << 20,))})
    wide.build(tmp_path / "m.onnx", tmp_path / "engine", options)
    with wide.load(tmp_path / "engine", num_threads=0) as runner:
        first = runner.infer({"x": np.arange(3, dtype=np.float32)})
        for num in (10, 300_000, 7, 1_000_003):
            x = np.linspace(-1, 1, num, dtype=np.float32)
            answers = runner.infer({"x": x})
            np.testing.assert_array_equal(answers["y"], -x)
            np.testing.assert_array_equal(answers["z"], abs(x))
    assert first["y"].tolist() == [0, -1, -2]


def test_queries_in_flight(there: ElsewhereBackend, engine: Path) -> None:
    with there.load(engine, 0, GpuUse(num_streams=3)) as runner:
        feeds = [rows(value) for value in range(7)]
        assert [float(answers["y"][0, 0]) for answers in runner.infer_all(feeds)] == [0, 2, 4, 6, 8, 10, 12]
        flow = runner.infer_all(iter(feeds))
        assert float(next(flow)["y"][0, 0]) == 0
        assert runner.facts().times is not None, "it may be asked meanwhile"
        assert float(next(flow)["y"][0, 0]) == 2
        assert there.process._channel is not None
        assert there.process._channel.connection.gettimeout() is None, "no limit of what is quick holds for answers"
        flow.close()
        with pytest.raises(EngineError, match=r"input 'x' is float64"):
            list(runner.infer_all([rows(1), {"x": np.zeros((1, 2))}, rows(2)]))
        with pytest.raises(EngineError, match=r"the engine's profile goes from \(1, 2\) to \(4, 2\)"):
            list(runner.infer_all([rows(1), rows(1, 2, 3, 4, 5)]))
        assert runner.infer(rows(4))["y"].tolist() == [[8, 8]]


def test_a_runner_whose_process_has_ended(engine: Path) -> None:
    with (
        process_of(pretended_backend) as process,
        ElsewhereRunner(process, engine, trust.UNSIGNED, (0, None)) as runner,
    ):
        process.close()
        with pytest.raises(EngineError, match=r"engine\.plan: the process that held the engine has ended; load it"):
            runner.infer(rows(1))
        assert process.call("versions") == {"tensorrt": "0.1"}, "another one"
        with pytest.raises(EngineError, match="has ended; load it again"):
            runner.facts()


def test_numbers_of_a_process_that_has_ended_mean_nothing_in_the_next(engine: Path) -> None:
    """Each process counts its runners and feeds from one."""
    with process_of(pretended_backend) as process, ElsewhereBackend(process).load(engine, 0) as first:
        bound = first.bind([rows(1)])
        process.close()
        with ElsewhereBackend(process).load(engine, 0) as second:
            second.bind([rows(2)]).one()
            for use_it in (
                lambda: list(first.infer_all([rows(3)])),
                bound.one,
                lambda: bound.run_for(1, 0.0),
                lambda: bound.run_queries(BlockLength(1), QueryArrivals()),
            ):
                with pytest.raises(EngineError, match=r"engine\.plan: the process that held the engine has ended"):
                    use_it()
            bound.rest()  # Nothing of it is in flight.
            assert second.infer(rows(2))["y"].tolist() == [[4, 4]]


def test_layers(there: ElsewhereBackend, engine: Path) -> None:
    assert there.layer_times(engine, rows(1), 3) == pretended_backend.layer_times(engine, rows(1), 3)


# Builds


def test_a_build_with_batches_and_progress(there: ElsewhereBackend, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    options = BuildOptions("int8", workspace_mib=7, progress=lambda *what: told.append(what))
    native = GivenBatches(lambda: iter([rows(1, 2), rows(3, 4)]), 2, tmp_path / "a.cache")
    record = there.build(tmp_path / "m", tmp_path / "e", replace(options, native=native))
    assert record.notes == ("a.cache: [[1.0, 1.0], [2.0, 2.0]]", "a.cache: [[3.0, 3.0], [4.0, 4.0]]")
    assert told == [("Building", 1, 2), ("Building", 2, 2)]
    here = pretended_backend.build(tmp_path / "m", tmp_path / "e", replace(options, native=GivenScales(b"\x00\xff")))
    assert there.build(tmp_path / "m", tmp_path / "e", replace(options, native=GivenScales(b"\x00\xff"))) == here


def test_an_error_in_the_samples_is_raised_as_it_is(there: ElsewhereBackend, tmp_path: Path) -> None:
    def damaged() -> Iterator[dict[str, Array]]:
        yield rows(1)
        raise ValueError("sample 7 is damaged")

    options = BuildOptions("int8", native=GivenBatches(damaged, 1, tmp_path / "a.cache"))
    with pytest.raises(ValueError, match="sample 7 is damaged"):
        there.build(tmp_path / "m", tmp_path / "e", options)
    assert there.versions() == {"tensorrt": "0.1"}


def test_paths_hold_from_the_folder_of_this_process(
    there: ElsewhereBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there.build(Path("m"), Path("here.plan"), BuildOptions())
    assert (tmp_path / "here.plan").read_bytes() == b"plan"


# Timed queries


def test_blocks_are_timed_there(there: ElsewhereBackend, engine: Path) -> None:
    with there.load(engine, 0) as runner:
        bound = runner.bind([rows(1), rows(2, 3)])
        assert bound.run_for(5, 0.0) == 5
        starts, ends, device_ms = bound.run_queries(BlockLength(6), QueryArrivals())
        assert len(starts) == len(ends) == len(device_ms) == 6
        assert all(start < end for start, end in zip(starts, ends))
        assert all(end <= later for end, later in zip(ends, starts[1:])), "one after the other, on one clock"
        assert device_ms == [2.0] * 6
        bound.times = []
        bound.run_queries(BlockLength(3), QueryArrivals())
        assert [(times.compute_ms, times.host_to_device_ms) for times in bound.times] == [(2, 2)] * 3
        due, _, _ = bound.run_queries(BlockLength(4), QueryArrivals(1000.0, evenly=True))
        assert np.diff(due).tolist() == pytest.approx([1e6] * 3, abs=2)
        poisson = QueryArrivals(1000.0, seed=(3, 4))
        gaps = [np.diff(bound.run_queries(BlockLength(5), poisson)[0]) for _ in range(2)]
        np.testing.assert_allclose(gaps[0], gaps[1], atol=2)
        bound.rest()
    bound.rest()  # Its runner has gone.


def test_blocks_with_several_in_flight(there: ElsewhereBackend, engine: Path) -> None:
    with there.load(engine, 0, GpuUse(num_streams=2)) as runner:
        bound = runner.bind([rows(1), rows(2)], in_flight=True)
        assert isinstance(bound, BoundFeeds)
        bound.one()
        assert len(bound.run_queries(BlockLength(9), QueryArrivals())[0]) == 9
        bound.rest()
        assert runner.infer(rows(5))["y"].tolist() == [[10, 10]]


# Warnings


def test_warnings_go_to_the_logging_of_this_process(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """The one of the plan's header: such a plan is of others, and of another version."""
    program = (
        "import logging, sys; from pathlib import Path; logging.basicConfig(format='%(name)s: %(message)s')\n"
        "from engines.backends import tensorrt\n"
        "try:\n    tensorrt.load(Path(sys.argv[1]), num_threads=0).__enter__()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    plan = tmp_path / "old.plan"
    plan.write_bytes(b"ftrt" + bytes(20) + bytes((8, 4, 1, 5)) + bytes(10))
    environment = with_bindings() | {PYTHON_VARIABLE: str(python38())}
    command = [sys.executable, "-c", program, str(plan)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.startswith(f"engines.nvinfer.plan_header: {plan}: was built by version 8.4.1, 8.5.3 is here; it")
    assert done.stdout == "Unavailable no GPU: libcuda.so.1 is not there; run on a machine with an NVIDIA driver\n"


# TensorRT 8.5.3


TENSORRT = """
import json, sys
from pathlib import Path
from engines.backends import tensorrt
from engines.contract import BuildOptions, GivenScales
said = {"versions": tensorrt.versions(), "build": tensorrt.why_not_build(), "run": tensorrt.why_not_run()}
place = tensorrt.place()
said["place"] = [place.python, place.python_version, place.location, dict(place.versions)]
def of(call):
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__} {error}"
level = BuildOptions(optimization_level=5)
said["level"] = of(lambda: tensorrt.refuse(level))
said["native"] = of(lambda: tensorrt.refuse(BuildOptions("int8", native=GivenScales(b""))))
said["opset"] = of(lambda: tensorrt.refuse_model(Path(sys.argv[1])))
said["engine"] = of(lambda: tensorrt.build(Path(sys.argv[2]), Path("/nowhere/engine"), BuildOptions()))
said["ask"] = of(lambda: tensorrt.ask(Path(sys.argv[2]), {}))
print(json.dumps(said))
"""


def test_plugins_are_named_to_it_with_each_call(
    there: ElsewhereBackend, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process has begun; an engine without a record gets what is named now."""
    library = for_another_processor(plugin_library(engine.parent, NOTHING))
    there.load(engine, 0).__enter__().__exit__(None, None, None)
    monkeypatch.setenv(NAMED, str(library))
    with pytest.raises(Unavailable, match=r"libmy\.so: is compiled for \w+, this machine is"):
        there.load(engine, 0).__enter__()
    monkeypatch.setenv(NAMED, "")
    there.load(engine, 0).__enter__().__exit__(None, None, None)


def test_libraries_travel_with_the_options(tmp_path: Path) -> None:
    """To the real bindings of 8.5.3."""
    library = for_another_processor(plugin_library(tmp_path, NOTHING))
    process = ElsewhereProcess(str(python38()), "engines.backends.tensorrt", "tensorrt")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in with_bindings().items():
            patch.setenv(name, value)
        with pytest.raises(Unavailable, match=r"libmy\.so: is compiled for \w+, this machine is"):
            ElsewhereBackend(process).refuse(BuildOptions(plugins=(library,)))
    process.close()


@pytest.mark.parametrize("by_file", [False, True], ids=["by the variable", "by the file of an environment"])
def test_tensorrt_8_5_on_its_real_bindings_up_to_the_gpu(tmp_path: Path, by_file: bool) -> None:
    """In a process whose own Python has no TensorRT."""
    for opset in (17, 19):
        model = onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[1, 2] x) => (float[1, 2] y) {{ y = Neg(x) }}'
        )
        onnx.save(model, tmp_path / f"{opset}.onnx")
    environment, program = with_bindings(), TENSORRT
    if by_file:
        (tmp_path / PYTHON_FILE).write_text(f"{python38()}\n")
        program = f"import sys; sys.prefix = {str(tmp_path)!r}\n{TENSORRT}"
    else:
        environment[PYTHON_VARIABLE] = str(python38())
    command = [sys.executable, "-c", program, f"{tmp_path}/19.onnx", f"{tmp_path}/17.onnx"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    no_gpu = "tensorrt: no GPU: libcuda.so.1 is not there; run on a machine with an NVIDIA driver"
    assert said["versions"] == {"tensorrt": "8.5.3.1"}
    assert said["build"] == said["run"] == no_gpu
    python, version, location, versions = said["place"]
    assert (python, version[:4], versions) == (str(python38()), "3.8.", {})
    assert location.endswith(".venv/python38/bindings/tensorrt/__init__.py")
    assert said["level"].startswith("Unavailable tensorrt: optimization level 5 is requested, version 8.5.3.1 has none")
    assert said["native"] is None, "it has calibrators"
    assert said["opset"].startswith(
        f"Unavailable {tmp_path}/19.onnx: is in opset 19, tensorrt 8.5.3.1 reads up to 17; write it in opset 17"
    )
    assert said["engine"] == f"Unavailable {no_gpu}"
    assert said["ask"].startswith(f"Unavailable {no_gpu}; the list of a version is asked with --generation")


def test_tensorrt_8_5_with_a_driver_in_pretence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU seems to be there, so that the real bindings are called: their library is a stub that gives no builder."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no gcc")
    source = ROOT / "tests/engines/cuda/pretended_driver.c"
    library = ("-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o", tmp_path / "libcuda.so.1")
    subprocess.run([compiler, *library, source], check=True)
    for name, value in with_bindings().items():
        monkeypatch.setenv(name, f"{tmp_path}:{value}" if name == "LD_LIBRARY_PATH" else value)
    process = ElsewhereProcess(str(python38()), "engines.backends.tensorrt", "tensorrt")
    there = ElsewhereBackend(process)
    assert there.why_not_build() == ""
    assert there.why_not_run().startswith("tensorrt: pycuda: is not installed; pip install pycuda==2025.1.2 (pycuda is")
    assert {"tensorrt": "8.5.3.1", "gpu": "Pretended GPU"}.items() <= there.versions().items()
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 2] x) => (float[1, 2] y) { y = Neg(x) }'
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(Unavailable, match=r"^tensorrt: the builder does not start \(it gave no reason\); its CUDA may"):
        there.build(tmp_path / "m.onnx", tmp_path / "engine", BuildOptions())
    assert not (tmp_path / "engine").exists()
    process.close()


def test_another_tensorrt_than_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on JetPack 5.0: a library of 8.4, which had no names yet for inputs and outputs."""
    (tmp_path / "tensorrt.py").write_text('__version__ = "8.4.0.11"\nclass ICudaEngine: ...\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = ElsewhereProcess(str(python38()), "engines.backends.tensorrt", "tensorrt")
    there = ElsewhereBackend(process)
    for call in (there.versions, lambda: there.refuse(BuildOptions())):
        with pytest.raises(Unavailable, match=r"version 8\.4\.0\.11 is installed, 8\.5 is the oldest that works; up"):
            call()
    process.close()


def test_numbers_of_a_process_elsewhere_are_like_those_here(linear: Path, tmp_path: Path) -> None:
    """A model of another Python's numpy: the answers agree to the last bit."""
    options = BuildOptions(shapes={"x": ShapeRange((1, 3), (2, 3), (8, 3))})
    far = backend_in_38("reference")
    far.build(linear, tmp_path / "far", options)
    reference.build(linear, tmp_path / "near", options)
    feed = {"x": np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)}
    feed["x"][0, 0] = math.inf
    with far.load(tmp_path / "far", num_threads=0) as one, reference.load(tmp_path / "near", num_threads=0) as other:
        np.testing.assert_array_equal(one.infer(feed)["y"], other.infer(feed)["y"])
