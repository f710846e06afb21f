"""Models that do not fit one ONNX file, through every stage and verb: as if a file held a kibibyte of weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

from calibration.graph import external_data
from calibration.graph.tensor_digests import tensor_digests
from pipeline import output
from pipeline.artifact import Engine, OnnxModel
from pipeline.flow import run
from pipeline.output import make, put
from pipeline.plan import read_plan
from pipeline.results import Results
from pipeline.store import Store
from tests.made import model_with_weights
from tests.pipeline.bundles import packed, unpacked

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_data, "MOST_BYTES", 1024)


def digests(model: OnnxModel) -> dict[str, str]:
    return tensor_digests(onnx.load(model.path))


def made_by(folder: Path, store: str) -> Results:
    return run(read_plan(folder / "plan.toml"), Store(folder / store), "benchmark")


@pytest.mark.slow
def test_a_whole_run(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = made_by(warm, "store")
    monkeypatch.setattr(external_data, "MOST_BYTES", 1024)
    large = made_by(warm, "large")
    assert [large.fp32.weight_files(), plain.fp32.weight_files()] == [[large.fp32.beside("model.onnx.data")], []]
    assert digests(large.fp32) == digests(plain.fp32)
    assert large.models.keys() == plain.models.keys()
    for variant, model in large.onnx_models().items():
        assert digests(model) == digests(plain.onnx_models()[variant])
        assert bool(model.weight_files()) is (variant.precision.name != "int8"), "INT8 is small enough"
    for variant, engine in large.engines.items():
        assert bool(engine.weight_files()) is (variant.precision.name != "int8")
        assert large.verdicts[variant].read() == plain.verdicts[variant].read()


@pytest.mark.usefixtures("few_bytes")
def test_the_verbs(folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    data = ("--data", "data.npz", "--input", "image=x_calibration")
    for words in (
        ("export", "net.onnx", "-o", "new/fp32.onnx"),
        ("lint", "new/fp32.onnx", *data),
        ("calibrate", "new/fp32.onnx", *data, "-o", "ranges"),
        ("cast", "new/fp32.onnx", "--ranges", "ranges", "-o", "new/fp16.onnx"),
        ("quantize", "new/fp32.onnx", "--ranges", "ranges", "-o", "new/trt.onnx"),
        ("quantize", "new/fp32.onnx", "--ranges", "ranges", "--target", "onnxruntime", "-o", "new/int8.onnx"),
        ("tolerate", "new/fp32.onnx", *data, "--precision", "int8", "-o", "tolerances.json"),
        ("build", "new/fp32.onnx", "--backend", "onnxruntime", "-o", "new/engine.onnx"),
        ("infer", "new/engine.onnx", *data, "-o", "answers.json"),
        ("prune", "new/fp32.onnx", *data, "--epochs", "0", "-o", "pruned.onnx"),
        ("prune", "new/fp32.onnx", *data, "--epochs", "1", "-o", "pruned.onnx"),
        ("tune", "new/fp32.onnx", *data, "--ranges", "ranges", "--epochs", "1", "-o", "tuned"),
        ("quantize", "new/fp32.onnx", *data, "--weight-bits", "4", "--target", "onnxruntime", "-o", "w4.onnx"),
        ("quantize", "new/fp32.onnx", *data, "--rounding", "gptq", "--target", "onnxruntime", "-o", "gptq.onnx"),
        ("quantize", "new/fp32.onnx", "--precision", "dynamic", "--target", "onnxruntime", "-o", "dynamic.onnx"),
        ("export", "new/fp32.onnx", "--equalize", "-o", "equal.onnx"),
        ("support", "new/fp32.onnx"),
        ("bisect", "new/fp32.onnx", "new/trt.onnx", *data, "--ranges", "ranges"),
    ):
        done = command(*words)
        assert done.status == 0, (words, done.err)
    assert sorted(path.name.replace(path.name[-21:-5], "*") if path.suffix == ".data" else path.name
                  for path in (folder / "new").iterdir()) == [
        "engine.onnx", "engine.onnx.*.data", "engine.onnx.json", "fp16.onnx", "fp16.onnx.*.data", "fp32.onnx",
        "fp32.onnx.*.data", "int8.onnx", "trt.onnx", "trt.onnx.*.data",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("few_bytes")
def test_a_bundle(folder: Path, command: Command) -> None:
    with (folder / "plan.toml").open("a") as stream:
        stream.write('[pack]\nbackends = ["onnxruntime"]\n')
    device = unpacked(packed(command, folder / "plan.toml"))
    assert (device / "models/fp32/model.onnx.data").is_file()
    shutil.rmtree(folder / ".trtforge", ignore_errors=True)
    done = command("run", device / "plan.toml", "--store", folder / "device-store")
    assert done.status == 0, done.err


NET = '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 400] x) => (float[N, 400] y) { y = Mul (x, w) }'


def saver(seed: int) -> Callable[[Path], OnnxModel]:
    """A stage whose model differs by the number."""

    def stage(out: Path) -> OnnxModel:
        external_data.save_model(model_with_weights(NET, seed, w=(400,)), out / "model.onnx")
        return OnnxModel(out / "model.onnx")

    return stage


def test_a_model_and_its_weights_change_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_bytes: None
) -> None:
    """After each rename, whoever dies there leaves the old model or the new one; the next call leaves no litter."""
    target = tmp_path / "x.onnx"
    old, new = (tensor_digests(model_with_weights(NET, seed, w=(400,))) for seed in (1, 2))
    make(target, saver(1))
    seen = []

    def watched(made: Path, where: Path, aside: Path) -> None:
        put(made, where, aside)
        seen.append(digests(OnnxModel(target)) == new)
        assert seen[-1] or digests(OnnxModel(target)) == old

    monkeypatch.setattr(output, "put", watched)
    make(target, saver(2))
    assert seen == [False, True]
    assert len(list(tmp_path.iterdir())) == 2
    shutil.copyfile(OnnxModel(target).weight_files()[0], tmp_path / f"x.onnx.{16 * 'a'}.data")  # Of who was killed.
    monkeypatch.setattr(external_data, "MOST_BYTES", 1 << 20)
    make(target, saver(1))
    assert list(tmp_path.iterdir()) == [target]


def test_weights_stay_while_another_process_makes_the_target(tmp_path: Path, few_bytes: None) -> None:
    target, others = tmp_path / "x.onnx", tmp_path / f"x.onnx.{16 * 'a'}.data"

    def stage(out: Path) -> OnnxModel:
        others.write_bytes(b"of the other one's model")
        with output.work_folder(target):
            return saver(1)(out)

    make(target, stage)
    assert not others.exists(), "it had finished"
    with output.work_folder(target):
        others.write_bytes(b"again")
        make(target, saver(2))
        assert others.exists()


def test_other_weights_are_another_engine(tmp_path: Path, few_bytes: None) -> None:
    engine = Engine(saver(1)(tmp_path).path)
    before = engine.digest()
    (tmp_path / "model.onnx.data").write_bytes(bytes(1600))
    assert engine.digest() != before
