"""`trtforge deliver --to cpp` of engines of ONNX Runtime: compiled, run, and compared with Python to the bit."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.data.preprocess import Preprocess
from engines.backends import onnxruntime as ort_backend
from engines.signing.envelope import new_key, public_key
from engines.signing.trust import sha256_of
from pipeline.artifact import Engine
from pipeline.delivery.contents import delivered_from
from pipeline.delivery.cpp import cpp_program, deliver_to_cpp
from pipeline.signing.statement import sign_file
from tests.conftest import Command
from tests.pipeline.delivery.cpp_building import SECONDS, built, called, needs_compiler, onnxruntime_definitions

TYPES = """
<ir_version: 8, opset_import: ["" : 17]>
types (float16[N,2] half, int64[N] whole, bool[2] "a/b:c=d", uint8[N,3] bytes)
  => (float16[N,2] half_out, int64[N] whole_out, bool[2] truth, uint8[N,3] bytes_out, float total) {
  half_out = Add (half, half)
  whole_out = Neg (whole)
  truth = Not ("a/b:c=d")
  bytes_out = Identity (bytes)
  real = Cast <to = 1> (bytes)
  total = ReduceSum <keepdims = 0> (real)
}
"""
PIXELS = """
<ir_version: 8, opset_import: ["" : 17]>
pixels (uint8[N,H,W,3] frame) => (float[N,3] means) {
  real = Cast <to = 1> (frame)
  means = ReduceMean <axes = [1, 2], keepdims = 0> (real)
}
"""


AS_STORED = Preprocess()


@dataclass(frozen=True)
class Workshop:
    """A folder with one program in it, whose engine changes; what is the same is not compiled again."""

    folder: Path
    definitions: Sequence[str]

    def program(self) -> Path:
        return built(self.folder / "program", self.folder / "build", *self.definitions)

    def program_of(self, engine: Path, preprocess: Preprocess = AS_STORED, *keys: Path) -> Path:
        delivered = delivered_from("good", engine, "onnxruntime")
        deliver_to_cpp(
            cpp_program(delivered, preprocess, (), [public_key(key) for key in keys]), self.folder / "program"
        )
        return self.program()

    @property
    def engine(self) -> Path:
        return self.folder / "program" / "model.onnx"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    needs_compiler()
    folder = tmp_path_factory.mktemp("workshop")
    return Workshop(folder, onnxruntime_definitions(folder))


def model_in(text: str, path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def outputs_in(folder: Path) -> list[np.ndarray[Any, Any]]:
    return [np.load(file) for file in sorted(folder.iterdir())]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_program_answers_as_python_does(
    precision: str, workshop: Workshop, command: Command, plan: Path, tmp_path: Path
) -> None:
    changed = ("--set", f'variants.precisions=["{precision}"]', "--set", "validate.int8.max_metric_drop=1.0")
    quick = ("--set", "gate.pays=false", "--set", "gate.html=false", "--set", "validate.int8.min_cosine=0.0")
    assert command("gate", plan, *changed, *quick, "--budget", "size_mib <= 1", "-o", "gate").status == 0
    assert command("baseline", "set", "good", "gate").status == 0
    done = command("deliver", "good", "--to", "cpp", workshop.folder / "program", "--plan", plan)
    assert (done.status, done.out, done.err) == (0, f"{workshop.folder / 'program' / 'engine_config.cpp'}\n", "")
    images = np.load("data.npz")["image"]
    np.save("image.npy", images)
    with ort_backend.load(workshop.engine, num_threads=1) as runner:
        expected = runner.infer({"image": images})["scores"]
    told = called(workshop.program(), workshop.engine, "image=image.npy", "--output", "new/out", "--threads", 1)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("scores float32 (24, 3): ")
    assert ", 100 queries; preprocess_ms " in told.stdout
    (scores,) = outputs_in(tmp_path / "new" / "out")
    assert (scores.dtype, scores.tobytes()) == (expected.dtype, expected.tobytes())


def test_every_type_goes_in_and_out(workshop: Workshop, tmp_path: Path) -> None:
    program = workshop.program_of(model_in(TYPES, tmp_path / "types.onnx"))
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "half": np.array([[1.5, -65504], [0.0001, 2]], np.float16),
        "whole": np.array([2**62, -3], np.int64),
        "a/b:c=d": np.array([True, False]),
        "bytes": np.array([[0, 255, 3], [4, 5, 6]], np.uint8),
    }
    for number, array in enumerate(arrays.values()):
        np.save(tmp_path / f"{number}.npy", array)
        array.tofile(tmp_path / f"{number}.bin")
    with ort_backend.load(workshop.engine, num_threads=0) as runner:
        expected = runner.infer(arrays)
    for ending in (".npy", ".bin"):
        inputs = [f"{name}={tmp_path / str(number)}{ending}" for number, name in enumerate(arrays)]
        done = called(program, workshop.engine, *inputs, "--output", tmp_path / "out", "--runs", 1, "--warm-up", 0)
        assert done.returncode == 0, done.stderr
        assert "truth bool (2,): 0 1\n" in done.stdout
        assert "half_out float16 (2, 2): 3 -inf " in done.stdout
        made = outputs_in(tmp_path / "out")
        assert [(array.dtype, array.shape) for array in made] == [(a.dtype, a.shape) for a in expected.values()]
        assert [array.tobytes() for array in made] == [array.tobytes() for array in expected.values()]


def test_a_cameras_pixels_are_preprocessed(workshop: Workshop, tmp_path: Path) -> None:
    steps = Preprocess(resize=(8, 12), fit="letterbox")
    program = workshop.program_of(model_in(PIXELS, tmp_path / "pixels.onnx"), steps)
    frames = np.random.default_rng(3).integers(0, 256, (2, 31, 40, 3), np.uint8)
    frames.tofile(tmp_path / "frame.bin")
    with ort_backend.load(workshop.engine, num_threads=0) as runner:
        expected = runner.infer({"frame": steps(frames)})["means"]
    file = tmp_path / "frame.bin"
    done = called(program, workshop.engine, f"frame={file}:uint8:2,31,40,3", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert outputs_in(tmp_path / "out")[0].tobytes() == expected.tobytes()
    untold = called(program, workshop.engine, f"frame={file}")
    assert (untold.returncode, "name it" in untold.stderr) == (2, True)


def test_what_cannot_be_run_is_one_sentence(workshop: Workshop, tmp_path: Path) -> None:
    program = workshop.program_of(model_in(PIXELS, tmp_path / "pixels.onnx"))
    engine = workshop.engine
    np.save(tmp_path / "ok.npy", np.zeros((1, 4, 4, 3), np.uint8))
    np.save(tmp_path / "real.npy", np.zeros((1, 4, 4, 3)))
    np.save(tmp_path / "flat.npy", np.zeros((4, 3), np.uint8))
    (tmp_path / "odd.bin").write_bytes(b"12345")
    (tmp_path / "other.onnx").write_bytes(engine.read_bytes() + b" ")
    ok = f"frame={tmp_path / 'ok.npy'}"
    for arguments, words in (
        ((), "usage: trtforge_model ENGINE"),
        ((engine,), "input 'frame' is missing"),
        ((engine, "frane=x.npy"), "the engine has no input 'frane', it takes 'frame'"),
        ((engine, ok, ok), "input 'frame' is given twice"),
        ((engine, "frame=none.npy"), "none.npy: cannot be read (No such file or directory)"),
        ((engine, f"frame={tmp_path / 'real.npy'}"), "is float64 (1, 4, 4, 3), the engine takes uint8 (?, ?, ?, 3)"),
        ((engine, f"frame={tmp_path / 'flat.npy'}"), "is uint8 (4, 3), the engine takes uint8 (?, ?, ?, 3)"),
        ((engine, f"frame={tmp_path / 'odd.bin'}:uint8:1,2,2,3"), "has 5 bytes, 12 are expected"),
        ((engine, f"frame={tmp_path / 'odd.bin'}:int:5"), "'int' is no type"),
        ((engine, f"frame={tmp_path / 'odd.bin'}:uint8:5,x"), "SHAPE x: a number from 0 to 2147483647 is expected"),
        ((engine, f"frame={tmp_path / 'odd.bin'}"), "more than one size of (?, ?, ?, 3) is open"),
        ((engine, ok, "--runs", "0"), "--runs 0: a number from 1 to 2147483647 is expected"),
        ((engine, f"frame={tmp_path}"), "is a folder; name a file"),
        ((tmp_path, ok), "is a folder; name a file"),
        ((engine, ok, "--run"), "--run: is no option"),
        ((engine, ok, "--threads"), "--threads: its value is missing"),
        ((engine, ok, "--output", tmp_path / "odd.bin"), "odd.bin: cannot be made"),
        ((tmp_path / "other.onnx", ok), "is not the engine that this program was written for (SHA-256 differs)"),
        ((tmp_path / "none.onnx", ok), "none.onnx: cannot be read"),
    ):
        done = called(program, *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert words in done.stderr
        assert not arguments or done.stderr.count("\n") == 1
    assert called(program, "-h").stdout.startswith("usage: trtforge_model ENGINE")
    with Path("/dev/full").open("w") as full:
        command = [str(program), str(engine), ok, "--runs", "1"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 3
    assert "standard output cannot be written, as where the disk is full; free some space" in done.stderr
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    config = workshop.folder / "program" / "engine_config.cpp"
    engine.write_bytes(b"no model")  # As if it had been delivered so, which `trtforge deliver` does not.
    lines = [f'  config.sha256 = "{sha256_of(engine)}";' if "sha256 =" in line else line for line in _lines(config)]
    config.write_text("\n".join(lines) + "\n")
    done = called(workshop.program(), engine, ok)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "ONNX Runtime refuses the model (" in done.stderr


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_weights_beside_the_engine_are_compared(workshop: Workshop, tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17]>
    large (float[N,4] x) => (float[N,4] y) { y = Add (x, weights) }
    """)
    weights = onnx.numpy_helper.from_array(np.array([1, 2, 3, 4], np.float32), "weights")
    model.graph.initializer.append(weights)
    options: dict[str, Any] = {"save_as_external_data": True, "location": "weights.data", "size_threshold": 0}
    onnx.save(model, tmp_path / "large.onnx", **options)
    program = workshop.program_of(tmp_path / "large.onnx")
    np.save(tmp_path / "x.npy", np.array([[1, 1, 1, 1]], np.float32))
    done = called(program, workshop.engine, f"x={tmp_path / 'x.npy'}")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "y float32 (1, 4): 2 3 4 5"), done.stderr
    data = workshop.engine.with_name("weights.data")
    data.write_bytes(data.read_bytes()[:-1] + b"\x41")
    done = called(program, workshop.engine, f"x={tmp_path / 'x.npy'}")
    assert done.returncode == 2
    assert "weights.data: is not the file that this program was written for (SHA-256 differs)" in done.stderr


Change = Callable[[dict[str, Any]], None]


def _set(key: str, value: str) -> Change:
    return lambda envelope: envelope.update({key: value})


def test_only_what_a_trusted_key_signed_is_run(workshop: Workshop, tmp_path: Path) -> None:
    pytest.importorskip("securesystemslib")
    pytest.importorskip("cryptography")
    public, other = new_key(tmp_path / "release.key"), new_key(tmp_path / "other.key")
    engine = model_in(PIXELS, tmp_path / "pixels.onnx")
    signature = sign_file(engine, tmp_path / "release.key")
    program = workshop.program_of(engine, AS_STORED, other, public)
    np.save(tmp_path / "ok.npy", np.zeros((1, 4, 4, 3), np.uint8))
    beside = workshop.engine.with_name("model.onnx.dsse.json")
    assert beside.read_bytes() == signature.read_bytes()

    def answer() -> tuple[int, str]:
        done = called(program, workshop.engine, f"frame={tmp_path / 'ok.npy'}", "--runs", 1)
        return done.returncode, done.stderr

    assert answer() == (0, "")
    whole = json.loads(beside.read_text())
    forged = whole["payload"][:-8] + "AAAA" + whole["payload"][-4:]
    changes: list[tuple[Change, str]] = [
        (_set("payload", forged), "was changed after it was signed"),
        (_set("payloadType", "text/plain"), "is no signature of trtforge"),
        (_set("payload", "%"), "is no signature of trtforge"),
        (lambda envelope: envelope["signatures"][0].update(sig=""), "was changed after it was signed"),
        (lambda envelope: envelope["signatures"][0].update(keyid="ab" * 32), "is not signed by a key"),
        (lambda envelope: envelope.pop("signatures"), "is not signed by a key"),
    ]
    for change, words in changes:
        envelope = json.loads(json.dumps(whole))
        change(envelope)
        beside.write_text(json.dumps(envelope))
        status, text = answer()
        assert (status, words in text, text.count("\n")) == (2, True, 1), (words, text)
    for text in ("", "[]", "{", "[" * (1 << 20)):
        beside.write_text(text)
        assert "is no signature of trtforge" in answer()[1]
    another = model_in(TYPES, tmp_path / "types.onnx")
    beside.write_bytes(sign_file(another, tmp_path / "release.key").read_bytes())
    assert "is the signature of another engine" in answer()[1]
    beside.write_bytes(sign_file(engine, tmp_path / "other.key").read_bytes())
    assert answer() == (0, "")
    beside.unlink()
    status, text = answer()
    assert (status, "is not there, a signature of the engine is expected" in text) == (2, True)


def test_signed_weights_belong_to_the_signature(workshop: Workshop, tmp_path: Path) -> None:
    pytest.importorskip("securesystemslib")
    pytest.importorskip("cryptography")
    model = onnx.parser.parse_model(PIXELS)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2], np.float32), "unused"))
    engine = tmp_path / "pixels.onnx"
    onnx.save(model, engine, save_as_external_data=True, location="w.data", size_threshold=0)
    public = new_key(tmp_path / "release.key")
    assert len(Engine(engine, "onnxruntime").weight_files()) == 1
    sign_file(engine, tmp_path / "release.key")
    program = workshop.program_of(engine, AS_STORED, public)
    np.save(tmp_path / "ok.npy", np.zeros((1, 4, 4, 3), np.uint8))
    done = called(program, workshop.engine, f"frame={tmp_path / 'ok.npy'}", "--runs", 1)
    assert (done.returncode, done.stderr) == (0, "")
