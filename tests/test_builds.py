"""`[build] builds`: several engines are built and timed in turns, and the quickest is kept; by a made-up backend.

Its engines differ in how long they take, as TensorRT's do, only that here the test says by how much.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from engines.backends import tensorrt, tensorrt_rtx
from pipeline.builder.several import compared
from pipeline.errors import ConfigError
from pipeline.stages.build import Build, takers_of
from tests.test_extension import program_in

BACKEND = '''"""A made-up backend: each build of a model waits otherwise."""

import json
import os
import time
from pathlib import Path

import numpy as np

from engines.backends.reference import refuse, why_not_build
from engines.contract import EngineRecord, LayerTimes, RunnerFacts, TensorSpec
from engines.signing.trust import UNSIGNED, expected

NAME = "clockwork"
TAKES, PLACEMENT, CAN_BUILD, GPU, STREAMS, NEEDS_RANGES = "onnx", "tensorrt", True, False, False, False
REFUSES_NODES, HAS_LISTS, OBEYS = False, False, frozenset({"builds"})
SUFFIX, INSTALL = ".gears", "wind it up"
SPECS = (TensorSpec("x", "float32", (-1, 4)),), (TensorSpec("y", "float32", (-1, 2)),)


def why_not_run():
    return os.environ.get("CLOCKWORK_STOPS", "")


def versions():
    return {NAME: "1"}


def build(model, engine, options):
    built = Path(os.environ["CLOCKWORK"])
    number = len(list(built.iterdir()))
    (built / str(number)).touch()
    engine.write_text(json.dumps({"wait_ms": [4.0, 1.0, 2.5][number % 3], "number": number}))
    return EngineRecord(NAME, options.precision, engine.stat().st_size, 0.1, versions(), *SPECS, 1, 0)


def load(engine, *, num_threads):
    assert expected(engine) == UNSIGNED
    return Runner(json.loads(engine.read_text())["wait_ms"])


class Runner:
    inputs, outputs = SPECS

    def __init__(self, wait_ms):
        self.wait_ms = wait_ms

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def infer(self, feed):
        assert feed["x"].shape == (3, 4)
        time.sleep(1e-4)
        return {"y": np.zeros((len(feed["x"]), 2), np.float32)}

    def device_ms(self):
        return self.wait_ms

    def facts(self):
        return RunnerFacts()


def layer_times(engine, feed, num_runs):
    return LayerTimes()
'''
NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4] x) => (float[N, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> { [fc] y = MatMul(x, w) }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = program_in(tmp_path_factory.mktemp("program"))
    (root / "engines/backends/clockwork.py").write_text(BACKEND)
    return root


def built(program: Path, work: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`trtforge build` with the backend, in a folder with a model."""
    (work / "gears").mkdir(exist_ok=True)
    onnx.save(onnx.parser.parse_model(NETWORK), work / "m.onnx")
    command = [sys.executable, "-m", "pipeline", "build", "m.onnx", "--backend", "clockwork", *arguments]
    shape = ("--min-shapes", "x:1x4", "--opt-shapes", "x:3x4", "--max-shapes", "x:8x4", "-o", "engine.gears")
    known = os.environ | {"PYTHONPATH": str(program), "CLOCKWORK": str(work / "gears")} | environment
    return subprocess.run([*command, *shape], cwd=work, env=known, capture_output=True, text=True, check=False)


def test_the_quickest_of_three_is_kept_and_all_are_told_of(program: Path, tmp_path: Path) -> None:
    said = built(program, tmp_path, "--builds", "3")
    assert said.returncode == 0, said.stderr
    engine = tmp_path / "engine.gears"
    assert json.loads(engine.read_text()) == {"wait_ms": 1.0, "number": 1}
    record = json.loads((tmp_path / "engine.gears.json").read_text())
    assert [round(build["p50_ms"], 3) for build in record["builds"]] == [4.0, 1.0, 2.5]
    assert [round(build["ratio"], 3) for build in record["builds"]] == [4.0, 1.0, 2.5]
    assert [build["is_chosen"] for build in record["builds"]] == [False, True, False]
    assert record["builds"][1]["sha256"] == hashlib.sha256(engine.read_bytes()).hexdigest()
    (note,) = record["notes"]
    assert note.startswith("The quickest of 3 builds was kept, p50 1 ms; the slowest takes 300.0 % more.")
    assert "by chance of the build" in note.lower()
    assert {path.name for path in tmp_path.iterdir()} == {"gears", "m.onnx", "engine.gears", "engine.gears.json"}


def test_one_build_is_as_ever(program: Path, tmp_path: Path) -> None:
    said = built(program, tmp_path)
    assert said.returncode == 0, said.stderr
    record = json.loads((tmp_path / "engine.gears.json").read_text())
    assert (record["notes"], "builds" in record, len(list((tmp_path / "gears").iterdir()))) == ([], False, 1)


def test_where_engines_do_not_run_nothing_is_built(program: Path, tmp_path: Path) -> None:
    said = built(program, tmp_path, "--builds", "2", CLOCKWORK_STOPS="clockwork: has no spring; wind it up")
    assert said.returncode == 3
    assert said.stderr.startswith(
        "trtforge: builds = 2: engines are timed where they are built, to keep the quickest ("
    )
    assert list((tmp_path / "gears").iterdir()) == []


def test_a_backend_whose_builds_are_alike_is_refused() -> None:
    assert {tensorrt.NAME, tensorrt_rtx.NAME} == {*takers_of("builds")}
    with pytest.raises(ConfigError, match=r"\[build\] builds: has no effect on an engine for litert or onn"):
        Build(builds=2).check_backends(("onnxruntime", "litert"))
    Build(builds=2).check_backends(("onnxruntime", "tensorrt"))
    with pytest.raises(ConfigError, match="builds is 0, but must be at least 1"):
        Build(builds=0)
    with pytest.raises(ConfigError, match="builds = 2: engines without weights cannot be timed; take 1, or weights = "):
        Build(builds=2, weights="stripped")


def test_a_machine_that_grows_slower_treats_all_alike() -> None:
    """The second is always a tenth quicker, whatever the session."""
    times_ms, ratios = compared([[1.0, 0.9], [2.0, 1.8], [4.0, 3.6]])
    assert times_ms == [2.0, 1.8]
    np.testing.assert_allclose(ratios, [1 / 0.9, 1.0])
