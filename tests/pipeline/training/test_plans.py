"""Plans with networks that were pruned and tuned, in the verbs that come after a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.report.table import report_from_json
from pipeline.store import Store
from tests.pipeline.bundles import packed, unpacked
from tests.tflite_files import save_linear

if TYPE_CHECKING:
    from tests.conftest import Command

PLAN = """
[model]
source = "{place}/net.onnx"
[data]
calibration = {{ path = "{place}/data.npz", labels = "y" }}
evaluation = {{ path = "{place}/data.npz", labels = "y" }}
metric = "top1"
[variants]
precisions = ["fp32", "int8"]
backends = ["onnxruntime"]
[pack]
backends = ["onnxruntime"]
[calibrate]
method = "minmax"
[prune]
share = 0.25
[tune]
epochs = 1
num_threads = 1
[validate]
num_bisected = 0
[benchmark]
monitor_ms = 0
protocol = {{ warmup_seconds = 0.0, min_seconds = 0.01, min_queries = 10, num_blocks = 4 }}
"""


@pytest.fixture(scope="module")
def as_made(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan of all three networks, and the store of its run until validate."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "plan.toml").write_text(PLAN.format(place=place))
    run(read_plan(folder / "plan.toml"), Store(folder / ".trtforge"), "validate")
    return folder


@pytest.fixture
def plan(as_made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(as_made)
    return as_made / "plan.toml"


def test_why_knows_variants_of_other_networks(plan: Path, command: Command) -> None:
    told = command("why", plan)
    assert told.status == 0, told.err
    assert [line.partition(",")[0] for line in told.out.splitlines()] == [
        f"{name}@onnxruntime: up to date" for name in ("fp32", "int8", "pruned+fp32", "pruned+int8", "tuned+int8")
    ]
    changed = command("why", plan, "tuned+int8@onnxruntime", "--set", "prune.share=0.5")
    assert changed.out == "tuned+int8@onnxruntime: prune would be made: [prune] share 0.25 -> 0.5\n"


def test_a_bundle_of_one_network_alone_is_run_and_says_how_it_was_made(
    plan: Path, command: Command, tmp_path: Path
) -> None:
    only = plan.with_name("only.toml")
    only.write_text(plan.read_text().replace("[variants]\n", '[variants]\nnetworks = ["pruned", "tuned"]\n'))
    folder = unpacked(packed(command, only), tmp_path)
    told = command("run", folder / "plan.toml", "--store", tmp_path / "store")
    assert told.status == 0, told.err
    record = report_from_json(next(folder.glob("**/report.json")))
    assert [each.name for each in record.variants] == [
        "pruned+fp32@onnxruntime", "pruned+int8@onnxruntime", "tuned+int8@onnxruntime",
    ]  # fmt: skip
    assert sum(note.startswith("prune: ") for note in record.notes) == 1
    assert sum(note.startswith("tuned+int8@onnxruntime: tune: ") for note in record.notes) == 1


def test_lint_knows_samples_that_train_and_judge(plan: Path, command: Command) -> None:
    again = plan.with_name("again.toml")
    again.write_text(
        plan.read_text().replace(
            "evaluation = {", f'tuning = {{ path = "{plan.parent}/tuning.npz", labels = "y" }}\nevaluation = {{', 1
        )
    )
    place = Path(plan.read_text().split('calibration = { path = "')[1].split('"')[0])
    data = np.load(place)
    first = data["x"][:9]
    np.savez(plan.with_name("tuning.npz"), x=np.concatenate([first, first + 1]), y=np.arange(18) % 5)
    told = command("lint", again)
    assert told.status == 0, told.err
    assert (
        "warning\toverlap\t9 of 18 tuning samples are evaluation samples too: the accuracy of the networks that are "
        "trained on them is overestimated; keep them apart\n"
    ) in told.out


def test_a_key_has_another_value_for_one_call(plan: Path, command: Command) -> None:
    pruned = command("prune", plan, "--set", "prune.share=0.75")
    assert pruned.status == 0, pruned.err
    assert Path(pruned.out.strip()) != Path(command("prune", plan).out.strip())
    (note, *_) = json.loads(Path(pruned.out.strip()).with_name("notes.json").read_text())
    assert "(7" in note, "of a hundred weights"
    tuned = command("tune", plan, "--set", 'tune.loss="labels"', "--set", "calibrate.method='mse'")
    assert tuned.status == 0, tuned.err
    (line,) = tuned.out.splitlines()
    record = json.loads((Path(line.split("\t")[1]) / "training.json").read_text())
    assert record["loss"] == "labels"
    told = command("tune", plan, "--set", "tune.rates=0.1")
    assert (told.status, "did you mean 'rate'" in told.err) == (2, True), told.err


def test_a_tflite_file_is_tuned_for_who_takes_onnx_and_refused_for_litert(
    plan: Path, command: Command, tmp_path: Path
) -> None:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    net = save_linear(tmp_path / "net.tflite", batch=-1)
    random = np.random.default_rng(2)
    np.savez(tmp_path / "data.npz", x=random.normal(size=(64, 3)).astype(np.float32), y=np.arange(64) % 2)
    other = tmp_path / "plan.toml"
    text = PLAN.format(place=tmp_path).replace(f"{tmp_path}/net.onnx", str(net)).replace("[prune]\nshare = 0.25\n", "")
    other.write_text(text.replace("[lint]", "") + '[lint]\nallow = ["labels", "overlap", "few"]\n')
    tuned = command("tune", other)
    assert tuned.status == 0, tuned.err
    (line,) = tuned.out.splitlines()
    assert line.startswith("tuned+int8@onnxruntime\t")
    other.write_text(other.read_text().replace('backends = ["onnxruntime"]', 'backends = ["litert"]'))
    refused = command("tune", other)
    sentence = "of 'tuned' nothing is made; it needs int8 among the precisions and a backend that takes an ONNX model"
    assert (refused.status, sentence in refused.err) == (2, True), refused.err


@pytest.mark.parametrize("verb", ["tune", "prune", "quantize", "calibrate", "cast", "lint", "export", "tolerate"])
def test_a_file_has_no_keys(place: Path, command: Command, verb: str) -> None:
    told = command(verb, place / "net.onnx", "--set", "tune.rate=0.1")
    assert (told.status, told.err) == (2, "trtforge: --set tune.rate=0.1: has an effect only on a plan; drop it\n")
