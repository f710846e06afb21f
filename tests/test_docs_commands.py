"""Each page's commands run, in a folder with what the page's reader has; what cannot run is listed with the reason."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx
import pytest
from PIL import Image

from engines.backends import litert, tensorflow, tensorrt, tensorrt_rtx
from engines.torch_graph import library
from tests.made import QUICK_PROTOCOL, model_with_weights
from tests.pipeline.tasks.detectors_made import HEAD, make_detector
from tests.pipeline.tasks.detectors_made import network as detector_of
from tests.test_docs_pages import ROOT, commands, short

if TYPE_CHECKING:
    from tests.conftest import Command

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

ELSEWHERE = {
    "docs/data.md": ("tests/test_docs_data.py", "tests/pipeline/drafting/test_draft.py"),
    "docs/ranges.md": ("tests/test_docs_ranges.py",),
}
"""Pages whose commands other tests run, and which; those of README.md are run by tests/test_docs.py."""

CANNOT = {
    "scripts/environment": "makes .venv from the package index; scripts/test begins with it",
    "scripts/aarch64_wheels": "downloads from the package index",
    ".venv/bin/trtforge": "is the program of that environment; `trtforge doctor` runs on another page",
    "python3 -m venv": "makes an environment",
    ".venv/bin/pip": "installs from the package index; tests/test_wheel.py installs without one",
    ". .venv/bin/activate": "is for the environment made before it",
    "dask": "serves until it is stopped; tests/pipeline/workers starts scheduler and workers under TLS",
    "trtforge census": "asks such a scheduler; tests/pipeline/workers/test_census.py does",
    "cmake": "compiles for TensorRT; tests/pipeline/delivery compiles for ONNX Runtime",
    "build/trtforge_model": "runs on a GPU; tests/pipeline/delivery runs the program on ONNX Runtime",
    "trtforge deliver resnet.orin resnet.xavier": "takes engines of two Jetsons; tests/pipeline/delivery",
    "trtforge deliver yolo.orin": "takes an engine of TensorRT; tests/pipeline/delivery",
    "trtforge refit": "takes an engine of TensorRT; tests/pipeline/refitting",
}
"""How commands begin that do not run here, and why, or what runs instead."""

DEPENDS: Mapping[str, tuple[int, ...]] = {"advise": (0, 5, 6), "gate": (0, 5, 6), "nightly": (0, 5, 6), "run": (0, 5)}
"""Statuses of verbs that decide by made-up samples or on a busy machine; of others it is 0."""
UNAVAILABLE = 3
REFUSED = {"trtforge support network.onnx": 4}
"""What the page shows a refusal of."""

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,224,224] image) => (float[N,4] scores) {
  first = Conv <kernel_shape = [7, 7], strides = [8, 8]> (image, kernel, bias)
  head = Relu (first)
  second = Conv <kernel_shape = [3, 3], strides = [2, 2]> (head, middle, shift)
  active = Relu (second)
  pooled = GlobalAveragePool (active)
  flat = Flatten <axis = 1> (pooled)
  scores = Gemm (flat, weight, offset)
}
"""
WEIGHTS = {
    "kernel": (8, 3, 7, 7),
    "bias": (8,),
    "middle": (16, 8, 3, 3),
    "shift": (16,),
    "weight": (16, 4),
    "offset": (4,),
}
DET = '<ir_version: 8, opset_import: ["" : 17]> net (float[N,4,4] x) => (float[N] y) { r = Relu (x) y = Det (r) }'
SAVED = """
import sys, keras
keras.utils.set_random_seed(0)
image = keras.Input((224, 224, 3), name="image")
x = keras.layers.Conv2D(8, 7, strides=8, activation="relu")(image)
x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(x)
x = keras.layers.GlobalAveragePooling2D()(x)
keras.Model(image, keras.layers.Dense(4, activation="softmax")(x)).export(sys.argv[1], verbose=False)
"""
SETTINGS = (
    QUICK_PROTOCOL
    + """
[gate]
candidate = "int8@onnxruntime"
baseline = "fp32@onnxruntime"
sampled = false
max_other_load = 1.0
max_other_load_relative = 1.0
max_drift = inf
budgets = ["size_mib <= 4 x baseline"]
html = false
[tolerate]
num_samples = 8
num_draws = 4
[tune]
epochs = 1
[prune]
epochs = 1
[validate.int8]
max_metric_drop = 1.0
min_cosine = -1.0
[validate.dynamic]
max_metric_drop = 1.0
min_cosine = -1.0
[report]
html = false
"""
)
"""Whatever is measured is measured in a moment, and decides under any load."""
PLAN = (
    """
[model]
source = "model.onnx"
[data]
metric = "top1"
calibration = { path = "calibration.npz", labels = "y" }
evaluation = { path = "evaluation.npz", labels = "y" }
[variants]
precisions = ["fp32", "int8"]
networks = ["trained"]
[calibrate]
method = "minmax"
[advise]
bounds = ["metric_drop <= 0.99", "size_mib <= 0.9 x baseline"]
"""
    + SETTINGS
)
FLEET = '[fleet]\nplans = ["plan.toml"]\n[nightly]\nhtml = false\nbudgets = ["size_mib <= 4 x baseline"]\n'
LOADER = """
import numpy
def load_data():
    for sample in numpy.load("samples.npz")["image"]:
        yield {"image": sample[None]}
"""


def network(seed: int, text: str = NET) -> onnx.ModelProto:
    """With a node of a name that a page has."""
    model = model_with_weights(text, seed, **WEIGHTS)
    model.graph.node[0].name = "head/convolution"
    return model


def arrays_in(folder: Path, shape: tuple[int, ...], *names: str) -> None:
    """Sixteen samples of four classes in each `.npz`, none the same as another."""
    random = np.random.default_rng(0)
    for name in names:
        (folder / name).unlink(missing_ok=True)
        np.savez(folder / name, image=random.uniform(-1, 1, (16, *shape)).astype(np.float32), y=np.arange(16) % 4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: networks, samples, photos, a plan, a SavedModel; and a store that serves all pages."""
    folder = tmp_path_factory.mktemp("pages")
    for name, seed in {"model": 1, "old": 1, "new": 1, "best": 1, "retrained": 2}.items():
        onnx.save(network(seed), folder / f"{name}.onnx")
    onnx.save(onnx.parser.parse_model(DET), folder / "network.onnx")
    arrays_in(folder, (3, 224, 224), "calibration.npz", "evaluation.npz", "samples.npz")
    random = np.random.default_rng(1)
    for number in range(20):
        path = folder / "photos" / "abcd"[number % 4] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (240, 250, 3), dtype=np.uint8)).save(path)
    if not tensorflow.why_not_run():
        quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        program = [sys.executable, "-c", SAVED, str(folder / "my_savedmodel")]
        subprocess.run(program, env=quiet, check=True, capture_output=True)
    (folder / "plan.toml").write_text(PLAN)
    (folder / "fleet.toml").write_text(FLEET)
    (folder / "data_loader.py").write_text(LOADER)
    (folder / ".trtforge").mkdir()
    return folder


def call(command: Command, line: str) -> None:
    done = command(*shlex.split(line))
    assert done.status == 0, f"{line}\n{done.err}"


def replaced(path: str, old: str, new: str) -> None:
    """A file with another text in place of one; the base's, of which it is a link, stays."""
    text = Path(path).read_text()
    assert old in text, f"{path}: {old}"
    Path(path).unlink()
    Path(path).write_text(text.replace(old, new))


def cache(command: Command) -> None:
    """A calibration cache, as trtexec reads one."""
    call(command, "calibrate model.onnx --data samples.npz -o ranges_of_old")
    call(command, "ranges convert ranges_of_old -o calibration.cache --tensorrt 8.5.2")


def channels_last(_: Command) -> None:
    """A SavedModel's samples have their channels last."""
    arrays_in(Path(), (224, 224, 3), "samples.npz")


def detector(_: Command) -> None:
    """A detector with one of YOLO's heads, pictures, and a text file of boxes for each."""
    Path("detector").mkdir()
    make_detector(Path("detector"))
    Path("best.onnx").unlink()
    Path("plan.toml").unlink()
    onnx.save(detector_of(HEAD), "best.onnx")
    Path("detector/pictures").rename("images")
    Path("detector/boxes").rename("labels")


def gated(command: Command) -> None:
    """A gate that another engine passed, stored as the baseline of the page."""
    call(command, 'gate --candidate retrained.onnx --data evaluation.npz --budget "size_mib <= 40"')
    call(command, "baseline set last-good trtforge-gate")


def passed(command: Command) -> None:
    """A gate that passes on any machine: that of the page is of a latency."""
    call(command, 'gate --candidate new.onnx --baseline old.onnx --data evaluation.npz --budget "size_mib <= 40"')


def released(command: Command) -> None:
    """A baseline of an engine for batches of 1, and its plan."""
    for name in ("old.onnx", "new.onnx"):
        Path(name).unlink()
        onnx.save(network(1, NET.replace("[N,", "[1,")), name)
    call(command, 'gate --candidate new.onnx --baseline old.onnx --data evaluation.npz --budget "size_mib <= 40"')
    call(command, "baseline set resnet.orin trtforge-gate")
    Path("resnet").mkdir()
    for name in ("plan.toml", "model.onnx", "calibration.npz", "evaluation.npz"):
        shutil.copy(name, "resnet")


def signed(command: Command) -> None:
    """An engine that passed its gate."""
    Path("model.onnx").rename("engine.plan")
    call(command, 'gate --candidate engine.plan --data evaluation.npz --budget "size_mib <= 40"')


def plugin(_: Command) -> None:
    """A library, and an engine of before; what reads them is not reached without TensorRT."""
    shutil.copy(sys.executable, "libmy.so")
    Path("retrained.plan").write_text("no engine")


def engine(_: Command) -> None:
    """What stands for an engine of TensorRT."""
    Path("model.engine").write_text("no engine")


def nothing_there(_: Command) -> None:
    """A new project."""
    Path("plan.toml").unlink()
    Path(".trtforge").unlink()


def quantized_elsewhere(_: Command) -> None:
    """A file that somebody else quantized."""
    shutil.copy("int8.tflite", "their_int8.tflite")


def answered(_: Command) -> None:
    """What `init` asks is answered, and measuring is quick."""
    text = Path("plan.toml").read_text()
    asked = re.sub(r'^scale = "\?"$', "scale = 0.0078431372549\nmean = [1.0]", text, flags=re.MULTILINE)
    asked = asked.replace('fit = "?"', 'fit = "letterbox"')
    asked = asked.replace("[variants]", '[variants]\nnetworks = ["trained"]')
    Path("plan.toml").write_text(asked + SETTINGS)


def advised(_: Command) -> None:
    """What is advised stands in the plan, as the page says."""
    text = Path("plan.toml").read_text()
    changed = re.sub(r"^precisions = .*$", 'precisions = ["fp32", "dynamic"]', text, flags=re.MULTILINE)
    Path("plan.toml").write_text(re.sub(r"^backends = .*$", 'backends = ["litert"]', changed, flags=re.MULTILINE))
    replaced("plan.toml", "int8@onnxruntime", "dynamic@litert")
    replaced("plan.toml", "fp32@onnxruntime", "fp32@litert")


Step: TypeAlias = Callable[["Command"], None]
BEFORE: Mapping[str, Step] = {
    "docs/deliver.md": released,
    "docs/engines.md": plugin,
    "docs/gate.md": gated,
    "docs/how-to/coming-from.md#From trtexec": cache,
    "docs/how-to/coming-from.md#From Polygraphy": engine,
    "docs/how-to/coming-from.md#From the TFLite converter": channels_last,
    "docs/how-to/coming-from.md#From TF-TRT": channels_last,
    "docs/how-to/coming-from.md#From Ultralytics": detector,
    "docs/litert.md": channels_last,
    "docs/signing.md": signed,
    "docs/tutorial/first-decision.md": nothing_there,
    "docs/untrusted.md": nothing_there,
}
"""What else the reader of a page has."""
AFTER: Mapping[tuple[str, str], Step] = {
    ("docs/gate.md", "trtforge gate --candidate"): passed,
    ("docs/how-to/coming-from.md#From Ultralytics", "trtforge init"): answered,
    ("docs/litert.md", "trtforge ptq"): quantized_elsewhere,
    ("docs/tutorial/first-decision.md", "trtforge init"): answered,
    ("docs/tutorial/first-decision.md", "trtforge advise"): advised,
}
"""What the page tells its reader to do after a command."""
NEEDS: Mapping[str, Callable[[], str]] = {
    "my_savedmodel": tensorflow.why_not_run,
    "litert": litert.why_not_run,
    ".tflite": litert.why_not_run,
    "trtforge tune": library.why_not,
    "trtforge prune": library.why_not,
    "--all": library.why_not,
    "network.onnx": tensorrt_rtx.why_not_build,
}


def parts() -> Iterator[tuple[str, str]]:
    """Name and text of each page; of the page for those who come from other tools, each section, read by itself."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        sections = text.split("\n## ") if page.stem == "coming-from" else [text]
        for section in sections:
            head = f"#{section.splitlines()[0]}" if len(sections) > 1 else ""
            if list(commands(section)) and short(page) not in ELSEWHERE:
                yield short(page) + head, section


PARTS = dict(parts())


def statuses(line: str) -> tuple[int, ...]:
    """Those that a command may end with here."""
    if "--backend tensorrt " in line and tensorrt.why_not_build():
        return (UNAVAILABLE,)
    return (REFUSED[line],) if line in REFUSED else DEPENDS.get(line.split()[1], (0,))


def run_by_shell(line: str, folder: Path) -> None:
    """What is no command of ours alone, or writes into the home folder: with the program on the path."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "trtforge").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipeline "$@"\n')
    (folder / "bin" / "trtforge").chmod(0o755)
    (folder / ".config" / "fish" / "completions").mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    program = ["bash", "-euo", "pipefail", "-c", line]
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stderr}"


def here(line: str, folder: Path) -> str:
    """A command with this machine's names in it."""
    group = subprocess.run(["id", "-gn"], capture_output=True, text=True, check=True).stdout.strip()
    return line.replace("/srv/", f"{folder}/srv/").replace("chgrp vision", f"chgrp {group}")


def built_ahead(command: Command, words: list[str]) -> None:
    """The same by TensorRT for RTX, which builds without a GPU; and a file of the engine's name, which is no engine."""
    Path(words[words.index("-o") + 1]).write_text("no engine")
    if not tensorrt_rtx.why_not_build() and not {"--plugins", "--weights"} & {*words}:
        options = [{"tensorrt": "tensorrt_rtx"}.get(word, word) for word in words[1:-1]]
        done = command(*options, "ahead.engine")
        assert done.status == 0, f"{options}\n{done.err}"


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_its_commands_run(part: str, base: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = base.parent / "readers" / re.sub(r"\W", "_", part)
    shutil.copytree(base, folder, copy_function=os.link, ignore=shutil.ignore_patterns(".trtforge"))
    (folder / ".trtforge").symlink_to(base / ".trtforge")
    monkeypatch.chdir(folder)
    lines = [line for line in commands(PARTS[part]) if not line.startswith(tuple(CANNOT))]
    if part in BEFORE:
        BEFORE[part](command)
    for line in lines:
        if any(lacks() for word, lacks in NEEDS.items() if word in line):
            continue
        if not line.startswith("trtforge ") or " > " in line:
            run_by_shell(here(line, folder), folder)
            continue
        words = shlex.split(here(line, folder), comments=True)
        done = command(*words[1:])
        if done.status == UNAVAILABLE and words[1] == "build":
            built_ahead(command, words)
        assert done.status in statuses(line), f"{line}\n{done.err}"
        assert "Traceback" not in done.err
        for (name, begin), step in AFTER.items():
            if name == part and line.startswith(begin):
                step(command)


def test_what_is_listed_is_on_a_page() -> None:
    lines = [line for text in PARTS.values() for line in commands(text)]
    assert [begin for begin in (*CANNOT, *REFUSED) if not any(line.startswith(begin) for line in lines)] == []
    assert {*BEFORE, *(part for part, _ in AFTER)} <= {*PARTS}
    assert [test for tests in ELSEWHERE.values() for test in tests if not (ROOT / test).is_file()] == []
