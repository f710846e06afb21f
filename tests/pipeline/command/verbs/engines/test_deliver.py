"""`trtforge deliver`: from a gate that passed to a repository that Triton serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Command
from tests.pipeline.delivery.model_config import parsed


@pytest.fixture
def baseline(command: Command, plan: Path) -> Path:
    """The tiny network's FP32 engine, as baseline `good`."""
    changed = ("--set", 'variants.precisions=["fp32"]', "--set", "gate.pays=false", "--set", "gate.html=false")
    gated = command("gate", plan, *changed, "--budget", "size_mib <= 1", "-o", "gate")
    assert gated.status == 0, gated.err
    assert command("baseline", "set", "good", "gate").status == 0
    return plan


def test_a_baseline_becomes_a_model_that_triton_serves(command: Command, baseline: Path) -> None:
    missing = command("deliver", "good", "--to", "triton", "repository")
    assert missing.status == 2
    assert missing.err == (
        "trtforge: good: takes batches of any size, and Triton must be told the largest; give --max-batch\n"
    )
    done = command("deliver", "good", "--to", "triton", "repository", "--max-batch", "16", "--as", "tiny")
    assert (done.status, done.out) == (0, "repository/tiny/1\n"), done.err
    config = parsed(Path("repository/tiny/config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 16)
    assert [list(spec.dims) for spec in (*config.input, *config.output)] == [[4, 8, 8], [3]]
    assert Path("repository/tiny/1/model.onnx").is_file()


def test_what_has_no_effect_or_no_meaning_is_refused(command: Command, baseline: Path) -> None:
    typo = command("deliver", "god", "--to", "triton", "repository")
    assert (typo.status, "did you mean 'good'?" in typo.err) == (2, True)
    for arguments, sentence in (
        (("triton", "r", "--network-type", "other"), "--network-type: has no effect for triton; drop it"),
        (("deepstream", "r", "--as", "x"), "--as: has no effect for deepstream; drop it"),
        (("deepstream", "r"), "--plan is missing: name the plan, whose [data.preprocess] DeepStream has to do"),
        (("cpp", "r", "--max-batch", 4), "--max-batch: has no effect for cpp; drop it"),
        (("cpp", "r"), "--plan is missing: name the plan, whose [data.preprocess] the program has to do"),
        (("deepstream", "r", "--plan", baseline), "good: its input has the shape (-1, 4, 8, 8)"),
    ):
        refused = command("deliver", "good", "--to", *arguments)
        assert refused.status == 2
        assert sentence in refused.err
    assert not Path("r").exists()
    for arguments, place in (
        (("cpp", "plan.toml", "--plan", baseline), ""),
        (("triton", "plan.toml", "--max-batch", 4), "/good"),
    ):
        refused = command("deliver", "good", "--to", *arguments)
        assert refused.status == 2
        assert f"plan.toml{place}: cannot be made (" in refused.err
    unset = command("deliver", "good", "--to", "cpp", "", "--plan", baseline)
    assert (unset.status, "Invalid value for '--to': the folder has no name" in unset.err) == (2, True), unset.err
    two = command("deliver", "good", "good", "--to", "deepstream", "r", "--plan", baseline)
    assert "a configuration has one engine; give one NAME" in two.err


def test_a_program_says_what_is_not_in_it(command: Command, baseline: Path) -> None:
    text = baseline.read_text().replace('evaluation = { path = "data.npz"', 'evaluation = { path = "load:samples"')
    Path("other.toml").write_text(text)
    done = command("deliver", "good", "--to", "cpp", "program", "--plan", "other.toml")
    assert (done.status, done.out) == (0, "program/engine_config.cpp\n")
    assert done.err == "trtforge: what load:samples does to samples is not in the program, but [data.preprocess] is\n"
    Path("program/main.cpp").write_text("int main() {}\n")
    done = command("deliver", "good", "--to", "cpp", "program", "--plan", baseline)
    assert done.err == "trtforge: program/main.cpp: was changed, and stays as it is\n"
    Path("plan.toml").write_text(baseline.read_text() + '[data.preprocess]\nscale = 0.5\ndtype = "float16"\n')
    refused = command("deliver", "good", "--to", "cpp", "r", "--plan", "plan.toml")
    assert (refused.status, Path("r").exists()) == (2, False)
    assert "does not make what input 'image' of good takes, float32 (-1, 4, 8, 8)" in refused.err


def test_another_preprocessing_than_the_gates_is_told(command: Command, baseline: Path) -> None:
    Path("other.toml").write_text(baseline.read_text() + "[data.preprocess]\nscale = 0.5\n")
    done = command("deliver", "good", "--to", "cpp", "program", "--plan", "other.toml")
    assert (done.status, done.out) == (0, "program/engine_config.cpp\n")
    assert done.err == (
        "trtforge: other.toml: its [data.preprocess] (× 0.5) is not what the samples had that good was gated on "
        "(none, samples are used as stored); see that it is good's plan\n"
    )


def test_an_engine_that_nobody_trusted_signed_is_not_delivered(
    command: Command, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("securesystemslib")
    pytest.importorskip("cryptography")
    assert command("sign", "--new-key", "release.key").status == 0
    monkeypatch.setenv("TRTFORGE_TRUSTED", "release.pub")
    delivery = ("deliver", "good", "--to", "triton", "repository", "--max-batch", "16")
    said = command(*delivery)
    assert said.status == 2
    assert "model.onnx: is not signed, a signature by one of release.pub is expected" in said.err
    assert not Path("repository").exists()
    [engine] = {file.resolve() for file in Path(".trtforge/baselines/good").glob("engine/model.onnx")}
    signed = command("sign", engine, "--key", "release.key")
    assert signed.status == 0
    written = Path(signed.out.strip())
    assert written.parent == Path(".trtforge/signatures").resolve(), "a baseline's files stay as they are"
    assert command(*delivery).status == 0
    written.write_text(written.read_text().replace('"sig": "', '"sig": "AAAA'))
    said = command(*delivery)
    assert (said.status, said.out) == (2, "")
    assert "was changed after release.pub signed it" in said.err
