"""The plan: every field from TOML, every fault one sentence that names its place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from engines.contract import ShapeRange
from pipeline.errors import ConfigError, exit_status
from pipeline.plan import STAGES, Plan, read_plan
from pipeline.spelling import nearest
from pipeline.stages.benchmark import Benchmark
from pipeline.stages.validate import Validate
from pipeline.strict import record_from_table

LEAST = """
[model]
source = "model.onnx"
[data]
calibration = "calibration.npz"
evaluation = "evaluation.npz"
"""

EVERYTHING = """
[model]
source = "saved"
signature = "classify"
[model.inputs.image]
min = [1, 3, 8, 8]
opt = [4, 3, 8, 8]
max = [16, 3, 8, 8]
[[model.profiles]]
image = { min = [32, 3, 8, 8], opt = [32, 3, 8, 8], max = [64, 3, 8, 8] }

[data]
metric = "top5"
output = "scores"
[data.calibration]
path = "c.npz"
inputs = { image = "x" }
labels = "y"
limit = 100
[data.evaluation]
path = "e"
inputs = { image = "z" }
labels = "folders"
limit = 7
[data.preprocess]
resize = [256]
crop = [224, 224]
interpolation = "bicubic"
channels = "bgr"
scale = 0.5
mean = [0.1, 0.2, 0.3]
std = [2]
layout = "nchw"
dtype = "float32"
inputs = ["image"]

[variants]
precisions = ["int8"]
backends = ["reference", "tensorrt"]

[export]
opset = 15
fold = false

[lint]
allow = ["range", "layout"]
min_samples = 100
max_scale_ratio = 50
max_imbalance = 2
num_labelled = 0
significance = 1e-6
runner = "reference"
num_threads = 3

[calibrate]
method = "mse"
percentile = 99
batch_size = 3
runner = "reference"
num_threads = 2
num_workers = 4
watch = "all"

[cast]
keep_fp32 = ["head"]

[quantize]
target = "onnxruntime"
exclude = ["Gemm"]
arithmetic = "s8s8"
rest = "fp16"

[build]
workspace_mib = 64
optimization_level = 5
compute_capabilities = ["8.6", "8.9"]
int8 = "native"
native_scales = "tensorrt"
native_batch_size = 4
hardware = "ampere_plus"
version_compatible = true
weights = "refittable"
dla_core = 0
external_kernels = false
cuda_graph = false
timing_cache = false

[infer]
batch_size = 5
num_threads = 3

[tolerate]
num_samples = 64
num_draws = 8
num_deviations = 3
seed = 5
runner = "reference"
num_threads = 2

[validate]
reference = "reference"
num_bisected = 4
[validate.fp32]
atol = 0.25
rtol = 0.5
min_cosine = 0.125
min_psnr_db = 10
min_sqnr_db = 10.5
derived = false
max_metric_drop = 0.0625
[validate.fp16]
atol = 1.25
rtol = 1.5
min_cosine = 0.25
min_psnr_db = 20
min_sqnr_db = 20.5
derived = false
max_metric_drop = 0.25
[validate.int8]
atol = 2.25
rtol = 2.5
min_cosine = 0.5
min_psnr_db = 30
min_sqnr_db = 30.5
derived = false
max_metric_drop = 0.5

[benchmark]
monitor_ms = 0
batch_sizes = [2, 4]
num_threads = 6
layers = true
trace_seconds = 1.5
[benchmark.protocol]
warmup_queries = 1
warmup_seconds = 2
min_queries = 3
min_seconds = 4.5
num_blocks = 5
settle_queries = 6
max_spread = 0.75
max_drift = 0.875
seed = 9
scenario = "server"
queries_per_s = 12.5
arrivals = "fixed"
num_streams = 2

[report]
folder = "out"
html = false
max_metric_drop = 0.125

[gate]
candidate = "int8@reference"
baseline = "last-good"
budgets = ["size_mib <= 40"]
folder = "gated"
html = false
pays = false
cold_starts = 5
max_other_load = 0.5
max_other_load_relative = 0.6
max_drift = 0.3
sampled = false
[gate.pairing]
max_seconds = 10
confidence = 0.9
reload = false
load_seconds = 0.5
warmup_queries = 3
warmup_seconds = 1
block_ms = 20
min_block_queries = 3
settle_queries = 2
seed = 4
scenario = "server"
queries_per_s = 30
arrivals = "fixed"
num_streams = 2
min_seconds = 7

[pack]
backends = ["reference"]
caches = ["8.5.2"]
limit = 7

[packed]
manifest = "manifest.json"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str) -> str:
    """The one sentence about a plan that cannot be read, without the file's path."""
    path = written(folder, text)
    with pytest.raises(ConfigError) as caught:
        read_plan(path)
    assert exit_status(caught.value) == 2
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(f"{path}: ")
    return said.removeprefix(f"{path}: ")


def leaves(record: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a dataclass that is no dataclass itself, by its place in the plan."""
    for one in fields(record):
        value = getattr(record, one.name)
        if is_dataclass(value):
            yield from leaves(value, f"{place}{one.name}.")
        else:
            yield f"{place}{one.name}", value


def values_in(table: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a TOML table, lists as tuples; the two tables that are mappings stay whole."""
    for key, value in table.items():
        if isinstance(value, dict) and f"{place}{key}" != "model.inputs" and key != "inputs":
            yield from values_in(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", tuple(value) if isinstance(value, list) else value


def test_every_field_can_be_set(tmp_path: Path) -> None:
    import pipeline.plan

    plan = read_plan(written(tmp_path, EVERYTHING))
    found = dict(leaves(plan))
    wanted = dict(values_in(pipeline.plan.tomllib.loads(EVERYTHING)))
    wanted["model.inputs"] = {"image": ShapeRange((1, 3, 8, 8), (4, 3, 8, 8), (16, 3, 8, 8))}
    wanted["model.profiles"] = ({"image": ShapeRange((32, 3, 8, 8), (32, 3, 8, 8), (64, 3, 8, 8))},)
    wanted |= {"folder": tmp_path, "path": tmp_path / "plan.toml"}
    assert found == wanted


def test_the_test_above_changes_every_default(tmp_path: Path) -> None:
    least = dict(leaves(read_plan(written(tmp_path, LEAST))))
    most = dict(leaves(read_plan(written(tmp_path, EVERYTHING))))
    only_offline = ["benchmark.protocol.num_streams", "gate.pairing.num_streams"]  # A rate is for server alone.
    assert [place for place in least if least[place] == most[place]] == [*only_offline, "folder", "path"]


def test_the_least_plan_has_the_stages_own_defaults(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, LEAST))
    assert plan.data.calibration == DataSource("calibration.npz")
    assert plan.data.preprocess == Preprocess()
    assert plan.validate == Validate()
    assert plan.benchmark == Benchmark()
    assert plan.variants.precisions == ("fp32", "fp16", "int8")
    assert plan.variants.backends == ("onnxruntime",)


def test_numbers_become_the_fields_type(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, LEAST + "[validate.int8]\natol = 1\n[data.preprocess]\nmean = [1]"))
    assert isinstance(plan.validate.int8.atol, float)
    assert isinstance(plan.data.preprocess.mean[0], float)


def test_infinity_is_a_number(tmp_path: Path) -> None:
    assert math.isinf(read_plan(written(tmp_path, LEAST + "[validate.int8]\natol = inf")).validate.int8.atol)


def test_a_part_of_a_tolerance_keeps_the_others(tmp_path: Path) -> None:
    validate = read_plan(written(tmp_path, LEAST + "[validate.int8]\nmax_metric_drop = 0.5")).validate
    assert validate.int8.max_metric_drop == 0.5
    assert validate.int8.min_cosine == Validate().int8.min_cosine > 0
    assert validate.fp16 == Validate().fp16


def test_paths_are_relative_to_the_plan(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, LEAST))
    assert plan.resolved(plan.model.source) == tmp_path / "model.onnx"
    assert plan.resolved("/absolute") == Path("/absolute")


def test_the_digest_is_of_the_file(tmp_path: Path) -> None:
    before = read_plan(written(tmp_path, LEAST)).digest()
    assert read_plan(written(tmp_path, LEAST + "# more")).digest() != before
    assert read_plan(written(tmp_path, LEAST)).digest() == before


def test_the_verbs_are_fields_of_the_plan() -> None:
    assert [f.name for f in fields(Plan) if f.name in STAGES] == sorted(
        STAGES, key=[f.name for f in fields(Plan)].index
    )
    assert len({f.name for f in fields(Plan)} & set(STAGES)) == len(STAGES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[quantise]\n", "unknown key 'quantise'; did you mean 'quantize'? known: model, data, variants, export, "),
        ("[quantize]\ntarge = 1", "[quantize] unknown key 'targe'; did you mean 'target'? known: target, exclude, "),
        ("[quantize]\nzzz = 1", "[quantize] unknown key 'zzz'; known: target, exclude, arithmetic"),
        ("[benchmark.protocol]\nmin_second = 1", "[benchmark.protocol] unknown key 'min_second'; did you mean 'min_s"),
        ("[benchmark.protocoll]\nseed = 1", "[benchmark] unknown key 'protocoll'; did you mean 'protocol'? known: ba"),
        ("[validate.int4]\natol = 1", "[validate] unknown key 'int4'; did you mean 'int8'? known: reference, fp32, "),
        ("[validate.int8]\natoll = 1", "[validate.int8] unknown key 'atoll'; did you mean 'atol'? known: atol, rtol"),
        ("[data.preprocess]\nresise = [1]", "[data.preprocess] unknown key 'resise'; did you mean 'resize'? known: "),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(tmp_path: Path, text: str, said: str) -> None:
    assert refused(tmp_path, LEAST + text).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[model]\nsourse = 'm'\n[data]\ncalibration = 'c'\nevaluation = 'e'", "[model] unknown key 'sourse'; did you"),
        ("[model.inputs.x]\nmin=[1]\nopt=[1]\nmxa=[1]\n[data]\n", "[model.inputs.x] unknown key 'mxa'; did you mean '"),
        ("[model]\nsource='m'\n[data]\ncalibration={paht='c'}", "[data.calibration] unknown key 'paht'; did you mean "),
        ("[model]\nsource='m'\n[data]\nevaluatoin='c'", "[data] unknown key 'evaluatoin'; did you mean 'evaluation'? "),
        ("folder = 'x'\n[model]\n[data]", "unknown key 'folder'; the tables are model, data, variants, export, lint,"),
        (
            "path = 'x'\n[model]\n[data]",
            "unknown key 'path'; the tables are model, data, variants, export, lint, calib",
        ),
    ],
)
def test_an_unknown_key_in_the_needed_tables(tmp_path: Path, text: str, said: str) -> None:
    assert refused(tmp_path, text).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the table [model] is missing; `examples/` has a whole plan"),
        ("[model]\nsource = 'm'", "the table [data] is missing; `examples/` has a whole plan"),
        (
            "[model]\nsource='m'\n[data]\nevaluation='e'",
            "[data] the key 'calibration' is missing; write calibration = …",
        ),
        (
            "[model]\nsource='m'\n[data]\ncalibration='c'",
            "[data] the key 'evaluation' is missing; write evaluation = …",
        ),
        (
            "[model]\nsource='m'\n[data]\nevaluation='e'\ncalibration={labels='y'}",
            "[data.calibration] the key 'path' is missing; write path = …",
        ),
        (
            "[model]\n[data]\nevaluation='e'\ncalibration='c'",
            "[model] has no source; name a SavedModel folder, .keras, .h5 or .onnx file",
        ),
        (
            "[model]\nsource='m'\n[model.inputs.x]\nmin=[1]\nopt=[1]\n[data]\nevaluation='e'\ncalibration='c'",
            "[model.inputs.x] the key 'max' is missing; write max = …",
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, text: str, said: str) -> None:
    assert refused(tmp_path, text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[export]\nopset = true", "[export.opset] is true, a truth value, but takes a whole number"),
        ("[export]\nopset = '17'", "[export.opset] is '17', a text, but takes a whole number"),
        ("[export]\nopset = 17.0", "[export.opset] is 17.0, a number, but takes a whole number"),
        ("[export]\nfold = 1", "[export.fold] is 1, a whole number, but takes true or false"),
        ("[export]\nfold = 'yes'", "[export.fold] is 'yes', a text, but takes true or false"),
        ("[report]\nfolder = 3", "[report.folder] is 3, a whole number, but takes a text in quotes"),
        ("[calibrate]\npercentile = '99'", "[calibrate.percentile] is '99', a text, but takes a number"),
        ("[calibrate]\npercentile = true", "[calibrate.percentile] is true, a truth value, but takes a number"),
        ("[calibrate]\npercentile = [99]", "[calibrate.percentile] is [99], a list, but takes a number"),
        ("[validate.int8]\natol = false", "[validate.int8.atol] is false, a truth value, but takes a number"),
        ("[cast]\nkeep_fp32 = 'head'", "[cast.keep_fp32] is 'head', a text, but takes a list in [brackets]"),
        ("[cast]\nkeep_fp32 = ['a', 1]", "[cast.keep_fp32] is 1, a whole number, but takes a text in quotes"),
        ("[variants]\nbackends = 'reference'", "[variants.backends] is 'reference', a text, but takes a list in [br"),
        ("[variants]\nprecisions = 'fp32'", "[variants.precisions] is 'fp32', a text, but takes a list in [bracket"),
        ("[data.preprocess]\nresize = 32", "[data.preprocess.resize] is 32, a whole number, but takes a list in [b"),
        ("[data.preprocess]\nmean = { r = 1 }", "[data.preprocess.mean] is {'r': 1}, a table, but takes a list in"),
        ("[benchmark]\nbatch_sizes = [1, true]", "[benchmark.batch_sizes] is true, a truth value, but takes a whol"),
        ("[benchmark]\nprotocol = 3", "[benchmark.protocol] is 3, a whole number, but takes a table of warmup_quer"),
        ("[validate]\nint8 = 0.1", "[validate.int8] is 0.1, a number, but takes a table of atol, rtol, min_cosine,"),
        ("[[export]]\nopset = 17", "[export] is [{'opset': 17}], a list, but takes a table of opset, fold"),
        ("[model.inputs]\nx = [1, 2]", "[model.inputs.x] is [1, 2], a list, but takes a table of min, opt, max"),
        ("[model.inputs.x]\nmin = [1.5]", "[model.inputs.x.min] is 1.5, a number, but takes a whole number"),
        ("[export]\nopset = 2024-01-01", "[export.opset] is datetime.date(2024, 1, 1), a date or time, but takes a"),
        ("[calibrate]\nmethod = 'entropie'", "[calibrate.method] is 'entropie'; did you mean 'entropy'? known: ent"),
        ("[quantize]\ntarget = 8", "[quantize.target] is 8; known: tensorrt, onnxruntime"),
        ("[data.preprocess]\nlayout = 'nhcw'", "[data.preprocess.layout] is 'nhcw'; did you mean 'nhwc'? known: k"),
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path: Path, text: str, said: str) -> None:
    head, data = LEAST.split("[data]")
    text = head + (text if text.startswith("[model.") else "") + "\n[data]" + data + text * ("[model." not in text)
    assert refused(tmp_path, text).startswith(said)


def test_top_level_values_are_no_tables(tmp_path: Path) -> None:
    said = refused(tmp_path, "model = 3\ndata = 'x'")
    assert said == "[model] is 3, a whole number, but takes a table of source, signature, inputs, profiles"
    said = refused(tmp_path, "[model]\nsource = 'm'\n[data]\ncalibration = 3\nevaluation = 'e'")
    assert said == "[data.calibration] is 3, a whole number, but takes a table of path, inputs, labels, limit"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[data.preprocess]\nscale = 0", "[data.preprocess] scale is [0], a 0 in it leaves no signal; correct it"),
        ("[data.preprocess]\nmean = [nan]", "[data.preprocess] mean is [nan], finite numbers are expected; correct "),
        ("[data.preprocess]\ncrop = [224]", "[data.preprocess] crop is [224], two (height, width) of at least 1 is "),
        ("[benchmark.protocol]\nmin_seconds = -1", "[benchmark.protocol] min_seconds is -1.0, must be at least 0; r"),
        ("[benchmark.protocol]\nnum_blocks = 1", "[benchmark.protocol] num_blocks is 1, must be at least 4; raise it"),
    ],
)
def test_what_a_record_refuses_itself_is_placed(tmp_path: Path, text: str, said: str) -> None:
    assert refused(tmp_path, LEAST + text).startswith(said)


def test_what_a_data_source_refuses_itself_is_placed(tmp_path: Path) -> None:
    said = refused(tmp_path, LEAST.replace('"calibration.npz"', '""'))
    assert said.startswith("[data.calibration] path is empty, ")
    said = refused(tmp_path, LEAST.replace('"calibration.npz"', "{ path = 'c.npz', limit = -1 }"))
    assert said == "[data.calibration] c.npz: limit is -1, 0 (all) or more is expected; correct it"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("precisions = ['fp23']", "[variants.precisions] is 'fp23'; did you mean 'fp32'? known: fp32, fp16, int8"),
        ("backends = ['onnxrt']", "[variants] unknown backend 'onnxrt'; did you mean 'onnxruntime'? known: onnxrun"),
        ("backends = ['tensorflow']", "[variants] unknown backend 'tensorflow'; did you mean 'tensorrt'? known: on"),
        ("precisions = []", "[variants] precisions is empty; name at least one of fp32, fp16, int8"),
        ("backends = []", "[variants] backends is empty; name at least one of onnxruntime, reference, tensorrt, te"),
    ],
)
def test_unknown_variants_are_refused(tmp_path: Path, text: str, said: str) -> None:
    assert refused(tmp_path, f"{LEAST}[variants]\n{text}").startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[model\n", "is not TOML: "),
        (b"[model]\nsource = 'a'\n[model]\n", "is not TOML: "),
        (b"a = = 1", "is not TOML: Invalid value (at line 1, column 5)"),
        ("[model]\nsource = 'Käse'".encode("latin-1"), "is not text in UTF-8; give the path of a plan, or save it in"),
        (b"\x08\x07\x12\xa3\xff", "is not text in UTF-8; "),
    ],
)
def test_what_is_not_toml(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_plan(path)
    assert str(caught.value).startswith(f"{path}: {said}")


def test_no_plan_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read \(No such file or directory\); give the path"):
        read_plan(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\); give the path of a plan"):
        read_plan(tmp_path)


def test_names_in_other_scripts_are_kept(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, LEAST.replace("model.onnx", "モデル.onnx")))
    assert plan.model.source == "モデル.onnx"


def test_nearest_offers_one_name_and_lists_all() -> None:
    assert nearest("fp61", ["fp32", "fp16"]) == "; did you mean 'fp16'? known: fp32, fp16"
    assert nearest("xyz", ("fp32", "fp16")) == "; known: fp32, fp16"


def test_a_bug_of_ours_stays_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_self: Preprocess) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Preprocess, "__post_init__", broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        record_from_table({"scale": 2}, Preprocess, "--preprocess")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["path", "min", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(["model", "data", *STAGES], JUNK)))
def test_any_table_is_a_plan_or_a_sentence(table: dict[str, Any]) -> None:
    whole = {"folder": ".", "path": ".", "model": {"source": "m"}, "data": {"calibration": "c", "evaluation": "e"}}
    try:
        record_from_table(whole | table, Plan, "plan.toml")
    except ConfigError as error:
        assert str(error).startswith("plan.toml: ")  # noqa: PT017  # Either is right.
