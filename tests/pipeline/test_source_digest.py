"""What of the program's source stands in a recipe: every statement that a stage runs, and nothing else."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.flow import run
from pipeline.machine import child_process
from pipeline.plan import read_plan
from pipeline.source_digest import NOT_IN_RECIPES, code_from_c, code_from_python, digest_of, sources_of
from pipeline.source_files import AT_START, PACKAGES, ROOT
from pipeline.store import Store, modules_of

STAGES = {
    "export": ("pipeline.stages.export", "pipeline.sources.savedmodel"),
    "support": ("pipeline.stages.support", "engines.backends.tensorrt_rtx"),
    "lint": ("pipeline.stages.lint", "engines.backends.onnxruntime"),
    "prune": ("pipeline.stages.prune", "engines.backends.onnxruntime"),
    "tune": ("pipeline.stages.tune", "engines.backends.onnxruntime"),
    "calibrate": ("pipeline.stages.calibrate", "engines.backends.onnxruntime"),
    "convert": ("pipeline.stages.convert", "engines.backends.tensorflow", "engines.backends.litert"),
    "cast": ("pipeline.stages.cast",),
    "quantize": ("pipeline.stages.quantize",),
    "ptq": ("pipeline.stages.ptq",),
    "tolerate": ("pipeline.stages.tolerate", "engines.backends.onnxruntime"),
    "build": ("pipeline.stages.build", "engines.backends.onnxruntime"),
    "build-trt": ("pipeline.stages.build", "engines.backends.tensorrt"),
    "infer": ("pipeline.stages.infer", "engines.backends.onnxruntime"),
    "infer-trt": ("pipeline.stages.infer", "engines.backends.tensorrt"),
    "validate": ("pipeline.stages.validate", "engines.backends.onnxruntime"),
}
"""The stages that the store serves, with the module of the backend that they run."""
RUNNING = {"lint", "prune", "tune", "calibrate", "tolerate", "infer", "infer-trt", "validate"}
"""Those that run an ONNX model."""
HISTOGRAMS = {*STAGES} - {"export", "support", "convert", "lint", "prune", "infer", "infer-trt"}
"""Those that read ranges from them."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program's source."""
    root = tmp_path_factory.mktemp("program")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return root


def digests(root: Path) -> dict[str, str]:
    return {name: digest_of(sources_of(*modules, root=root)) for name, modules in STAGES.items()}


def stages_changed_by(addition: str, file: str, root: Path) -> set[str]:
    """The stages that are made again when this is added to the file's end."""
    before, source = digests(root), (root / file).read_text()
    try:
        (root / file).write_text(source + addition)
        after = digests(root)
    finally:
        (root / file).write_text(source)
    return {name for name in STAGES if before[name] != after[name]}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("pipeline/artifact.py", {*STAGES}),
        ("pipeline/engine_runner.py", RUNNING),
        ("pipeline/flow.py", set()),
        ("pipeline/store.py", set()),
        ("pipeline/__init__.py", set()),  # the version
        ("pipeline/accuracy/bisection.py", {"validate"}),
        ("pipeline/accuracy/comparison.py", {"lint", "infer", "infer-trt", "validate"}),
        ("pipeline/advice/recommendation.py", set()),
        ("pipeline/builder/retries.py", {"build", "build-trt"}),
        ("pipeline/command/cli.py", set()),
        ("pipeline/command/verbs/engines/build.py", set()),
        ("pipeline/gate/decide.py", set()),
        ("pipeline/latency/paired.py", set()),
        ("pipeline/machine/jetson.py", {"build", "build-trt"}),  # the power mode
        ("pipeline/machine/child_process.py", set()),
        ("pipeline/machine/progress.py", set()),
        ("pipeline/page/svg.py", set()),
        ("pipeline/placing/channels.py", set()),
        ("pipeline/placing/decided.py", set()),
        ("pipeline/preflight/operators.py", set()),
        ("pipeline/delivery/contents.py", set()),
        ("pipeline/delivery/cpp.py", set()),
        ("pipeline/nightly/line.py", set()),
        ("pipeline/release/bundle_writer.py", set()),
        ("pipeline/remote/job.py", set()),
        ("pipeline/retention/pins.py", set()),
        ("pipeline/remedies/trials.py", set()),
        ("pipeline/report/write.py", set()),
        ("pipeline/sources/contract.py", {"export"}),
        ("pipeline/sources/savedmodel.py", {"export"}),
        ("pipeline/sources/keras.py", set()),
        ("pipeline/sources/onnx.py", set()),
        ("pipeline/signing/statement.py", set()),
        ("pipeline/stages/cast.py", {"cast"}),
        ("pipeline/stages/build.py", {"build", "build-trt"}),
        ("pipeline/stats/bootstrap.py", set()),
        ("pipeline/trained/networks.py", set()),
        ("pipeline/training/loop.py", {"prune", "tune"}),
        ("pipeline/training/simulation.py", {"tune"}),
        ("pipeline/ladder/steps.py", set()),
        ("pipeline/drafting/draft.py", set()),
        ("pipeline/tasks/segmentation.py", {"prune", "tune", "validate"}),
        ("pipeline/techniques/catalogue.py", set()),
        ("calibration/weights/masks.py", {"prune"}),
        ("calibration/quantized/symmetric.py", {"quantize"}),
        ("calibration/plugins/efficient_nms.py", set()),  # of ONNX sources alone
        ("calibration/errors.py", {*STAGES}),
        ("calibration/file_digest.py", set()),
        ("calibration/analysis/rounding.py", {"calibrate", "tolerate", "validate"}),
        ("calibration/data/batches.py", RUNNING | {"build", "build-trt"}),  # native INT8 reads samples
        ("calibration/data/labels/pairs.py", RUNNING | {"build", "build-trt"}),
        ("calibration/graph/fold.py", {"export", "quantize", "calibrate", "tolerate", "tune", "validate"}),
        ("calibration/graph/weightless.py", {*STAGES}),
        ("calibration/histogram/methods.py", HISTOGRAMS),
        ("calibration/histogram/accumulate.py", {"calibrate", "prune", "tolerate", "validate"}),
        ("calibration/lint/findings.py", {"lint"}),
        ("calibration/precision/qdq.py", {"quantize", "tune"}),
        ("calibration/precision/placement_tensorrt.py", {"quantize", "calibrate", "tolerate", "tune", "validate"}),
        ("calibration/ranges/convergence.py", {"calibrate"}),
        ("calibration/ranges/ort_table.py", {"build", "build-trt"}),  # native INT8 is given a table
        ("calibration/ranges/merge.py", set()),
        ("engines/__init__.py", set()),  # which backends there are
        ("engines/precision.py", {*STAGES}),
        ("engines/contract.py", {*STAGES} - {"cast", "quantize"}),
        ("engines/backends/onnxruntime.py", RUNNING - {"infer-trt"} | {"build"}),
        ("engines/backends/tensorflow.py", {"export", "convert"}),
        ("engines/backends/litert.py", {"convert", "calibrate", "lint", "ptq"}),
        ("engines/litert/facts.py", {"convert", "calibrate", "lint", "ptq"}),
        ("engines/litert/quantizer.py", {"calibrate", "ptq"}),
        ("engines/backends/tensorrt.py", {"build-trt", "infer-trt"}),
        ("engines/elsewhere/worker.py", {"build-trt", "infer-trt"}),
        ("engines/backends/tensorrt_rtx.py", {"support"}),
        ("engines/backends/reference.py", set()),
        ("engines/support/by_list.py", {"support"}),
        ("engines/support/answers.py", {*STAGES} - {"cast", "quantize", "export"}),
        ("engines/cuda/device.py", {"build-trt", "infer-trt", "support"}),
        ("engines/nvinfer/allocator.py", {"build-trt", "infer-trt", "support"}),
        ("engines/nvinfer/progress.py", set()),
        ("engines/refit/network.py", {"build", "build-trt", "infer-trt"}),
        ("engines/refit/refitter.py", {"build-trt", "infer-trt"}),
        ("pipeline/refitting/refit.py", set()),
        ("pipeline/refitting/origin.py", set()),
        ("engines/signing/trust.py", set()),
        ("pipeline/workers/depot.py", set()),
        ("engines/torch_graph/network.py", {"prune", "tune"}),
        ("engines/ort/profile.py", RUNNING - {"infer-trt"} | {"build"}),
    ],
)
def test_a_changed_statement_changes_the_stages_that_run_it(copy: Path, file: str, stages: set[str]) -> None:
    assert stages_changed_by("\n_X = 1\n", file, copy) == stages


def test_changed_c_changes_the_stages_that_count_with_it(copy: Path) -> None:
    counting = {"calibrate", "prune", "tolerate", "validate"}
    assert stages_changed_by("\nint x;\n", "calibration/histogram/histogram.c", copy) == counting
    assert stages_changed_by("\n// x\n/* y\nz */\n", "calibration/histogram/histogram.c", copy) == set()


def test_every_room_is_tried() -> None:
    (rooms,) = (mark.args[1] for mark in test_a_changed_statement_changes_the_stages_that_run_it.pytestmark)  # type: ignore[attr-defined]
    tried = {Path(file).parent for file, _ in rooms}
    there = {Path(file).parent for file in AT_START if file.endswith(".py") and not file.endswith("__init__.py")}
    assert {str(room) for room in there - tried} <= {"pipeline/command/verbs/models", "pipeline/command/verbs/plans"}


def test_a_comment_changes_nothing(copy: Path) -> None:
    for file in ("calibration/errors.py", "engines/contract.py", "pipeline/artifact.py"):
        assert stages_changed_by('\n# A comment.\n"""And a sentence."""\n', file, copy) == set()


@pytest.mark.parametrize(
    "written",
    [
        """
x = 1  # one


def f(a, b):
  return (a +
     b)
class C:
    y: str = "z"
    def g(self): return f"{self.y!r:>8}"
""",
        '''"""A module."""
x = 0x1
"""One."""
def f(a, b,):
    """A function."""
    return a + b

class C:
    """A class."""

    y: str = u'z'
    """A field."""

    def g(self):
        return f'{self.y!r:>8}'
''',
    ],
)
def test_form_does_not_count_and_every_python_finds_the_same(written: str) -> None:
    expected = "8b4d985092ce3ed0ff90e2fb03eaf022718b2265b69fcae6fa5943fdf7b72731"
    assert code_from_python(written.encode()).digest == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = True"),
        ("x = None", "x = ''"),
        ("x = 'ab'", "x = b'ab'"),
        ("f(a, b)", "f(a, *b)"),
        ("f(a)(b)", "f(a, b)"),
        ("{**a}", "{None: a}"),
        ("def f(a, /): pass", "def f(a): pass"),
        ("if a:\n  b\nc", "if a:\n  b\n  c"),
        ("async def f(): pass", "def f(): pass"),
        ("x = a < b < c", "x = (a < b) < c"),
        ("try:\n  a\nfinally:\n  b", "try:\n  a\nexcept:\n  b"),
        ("match a:\n  case None: b", "match a:\n  case True: b"),
        ("f'{a}'", "f'{a!s}'"),
        ("from a import b", "from a import b as c"),
        ("return_ = 'x'", "return_ = 'X'"),
    ],
)
def test_what_is_written_counts(one: str, other: str) -> None:
    assert code_from_python(one.encode()).digest != code_from_python(other.encode()).digest


def test_comments_of_c_are_told_from_strings() -> None:
    assert code_from_c(b'a = "/* b */"; // c').digest == code_from_c(b'a =  "/* b */";').digest
    assert code_from_c(b'a = "/* b */";').digest != code_from_c(b'a = "";').digest
    assert code_from_c(b"a = '\"'; /* x */ b = '\"';").digest == code_from_c(b"a = '\"';  b = '\"';").digest


def test_what_is_in_no_recipe() -> None:
    """Each line here was thought about: what it does cannot change the bytes of a result."""
    assert NOT_IN_RECIPES == (
        "pipeline",
        "engines",
        "calibration.file_digest",
        "pipeline.machine.packages",
        "pipeline.machine.child_process",
        "pipeline.machine.progress",
        "pipeline.machine.user_cache",
        "engines.nvinfer.progress",
        "engines.signing",
        "engines.signing.envelope",
        "engines.signing.trust",
    )
    for module in NOT_IN_RECIPES:
        base = module.replace(".", "/")
        assert {f"{base}.py", f"{base}/__init__.py"} & AT_START.keys(), module


def test_a_stage_that_takes_a_backend_by_name_names_its_module() -> None:
    for stage, (module, *_) in STAGES.items():
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        methods = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        takes_one = {"backend", "runner_of"} & imported
        assert not takes_one or "modules" in methods or stage == "export", "export names tensorflow in an import"


def test_what_a_stage_executes_is_in_its_recipe(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is run in this process, and every function of ours that is called is held to its stage's recipe."""

    def here(_log: Path, _what: str, function: Callable[..., object], *args: object) -> object:
        return function(*args)

    def here_and_heard(log: Path, what: str, hear: object, function: Callable[..., object], *args: object) -> object:
        return function(hear, *args)

    monkeypatch.setattr(child_process, "call", here)
    monkeypatch.setattr(child_process, "call_with_progress", here_and_heard)
    executed: dict[tuple[str, ...], set[str]] = {}

    def watch(stage: type[Any]) -> None:
        call = stage.__call__

        def watched(self: Any, out: Path, *args: Any) -> Any:
            files = executed.setdefault(modules_of(self, *args), set())
            sys.setprofile(lambda frame, _event, _argument: files.add(frame.f_code.co_filename))
            try:
                return call(self, out, *args)
            finally:
                sys.setprofile(None)

        monkeypatch.setattr(stage, "__call__", watched)

    images = np.random.default_rng(9).normal(size=(64, 4, 8, 8)).astype(np.float32)  # Enough to derive tolerances.
    np.savez("data.npz", image=images, y=np.arange(64) % 3)
    trains = "[prune]\nepochs = 1\n[tune]\nepochs = 1\n"
    plan.write_text(plan.read_text().replace('"int8"', '"fp16", "int8"') + trains)
    opened = read_plan(plan)
    for name in STAGES:
        if not name.endswith("-trt"):
            watch(type(getattr(opened, name)))
    for until in ("support", "validate"):
        run(opened, Store(tmp_path / "store"), until)
    of_tflite = {"pipeline.stages.convert", "pipeline.stages.ptq"}  # They need a SavedModel.
    assert {modules[0] for modules in executed} == {modules[0] for modules in STAGES.values()} - of_tflite
    nowhere = {f"{module.replace('.', '/')}{end}.py" for module in NOT_IN_RECIPES for end in ("", "/__init__")}
    for modules, files in executed.items():
        ours = {
            Path(file).relative_to(ROOT).as_posix() for file in files if file.startswith(f"{ROOT}/")
        } & AT_START.keys()
        assert ours - nowhere <= sources_of(*modules).keys(), modules
        assert f"{modules[0].replace('.', '/')}.py" in ours


ASKED = """
import sys
from pathlib import Path
from pipeline import source_files
source_files.TAKEN_NS += 10**10  # Every file counts as settled.
import pipeline.stages.cast
from calibration.file_digest import remember_in
from pipeline import source_digest as asked
from pipeline.errors import Unavailable
from pipeline.machine.digest_table import DigestTable

table = DigestTable(Path("table.sqlite"))
remember_in(table)


def change(file, addition="\\n_X = 1\\n"):
    with Path(file).open("a") as stream:
        stream.write(addition)


def told(ask):
    try:
        return ask("pipeline.stages.cast")
    except Unavailable as error:
        return str(error)

"""
"""What the programs below begin with: one stage is loaded."""


def told_by(copy: Path, program: str) -> list[str]:
    """What a program on the copy prints, line by line."""
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, "-c", ASKED + program]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_process_says_nothing_of_code_that_was_changed_after_it_was_loaded(copy: Path) -> None:
    (told,) = told_by(copy, "change('calibration/errors.py'); print(told(asked.source_digest))")
    assert told.startswith(f"{copy}/calibration/errors.py: was changed after this process began")
    assert told.endswith("run again: what was finished is kept")


def test_a_digest_stays_that_of_the_code_that_was_loaded(copy: Path) -> None:
    program = """
print(told(asked.source_digest))
change("calibration/graph/editing.py")
print(told(asked.source_digest))
print(told(asked.check_unchanged))
"""
    before, after, checked = told_by(copy, program)
    assert before == after
    assert "editing.py: was changed after this process began" in checked
    (anew,) = told_by(copy, "print(told(asked.source_digest))")
    assert anew != before


def test_a_change_elsewhere_does_not_matter(copy: Path) -> None:
    program = "change('pipeline/report/write.py'); print(told(asked.source_digest)); print(told(asked.check_unchanged))"
    digest, checked = told_by(copy, program)
    assert len(digest) == 64
    assert checked == "None"


def test_a_file_that_is_gone(copy: Path) -> None:
    gone = copy / "calibration" / "ranges" / "span.py"
    source = gone.read_text()
    try:
        (told,) = told_by(copy, f"Path({str(gone)!r}).unlink(); print(told(asked.source_digest))")
    finally:
        gone.write_text(source)
    assert f"{gone}: was changed after this process began" in told


def test_the_next_process_reads_no_source(copy: Path) -> None:
    (first,) = told_by(copy, "print(told(asked.source_digest)); table.save()")
    unread = "asked.sources_of = None; "
    assert told_by(copy, unread + "print(told(asked.source_digest)); print(told(asked.check_unchanged))") == [
        first,
        "None",
    ]
    os.utime(copy / "calibration" / "errors.py")
    with pytest.raises(subprocess.CalledProcessError):
        told_by(copy, unread + "print(told(asked.source_digest))")
    assert told_by(copy, "print(told(asked.source_digest))") == [first], "the statements are what they were"
