"""The plan: every field from TOML, every fault one sentence that names its place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.ranges.override import Override
from engines.contract import ShapeRange
from pipeline.errors import ConfigError
from pipeline.plan import STAGES, Plan, read_plan
from pipeline.stages.benchmark import Benchmark
from pipeline.stages.cast import KeptNodes
from pipeline.stages.validate import Validate
from tests.pipeline.plans import LEAST, refused, written

EVERYTHING = """
convert.batch_size = 4
pack = { backends = ["reference"], caches = ["8.5.2"], limit = 7 }
advise = { bounds = ["size_compressed_mib <= 2"], techniques = ["integer"], hardware = "edgetpu", minutes = 30, \
folder = "advised" }
support = { generation = "8.6", plugin_operators = ["GroupNormalization"] }
[model]
source = "saved"
signature = "classify"
float_source = "fp32"
inputs.image = { min = [1, 3, 8, 8], opt = [4, 3, 8, 8], max = [16, 3, 8, 8] }
[[model.profiles]]
image = { min = [32, 3, 8, 8], opt = [32, 3, 8, 8], max = [64, 3, 8, 8] }
[data]
metric = "top5"
output = "scores"
tuning = { path = "t", inputs = { image = "w" }, labels = "labels.csv", limit = 8, fold = "3-5/5" }
detector = { convention = "onnx_nms", boxes = "b", scores = "s", classes = "c", count = "n", indices = "i", corners = \
"center", units = "pixels", numbers = "id", first_class = 1, min_score = 0.05, max_overlap = 0.5 }
[data.calibration]
path = "c.npz"
inputs = { image = "x" }
labels = "y"
limit = 100
fold = "1/5"
[data.evaluation]
path = "e"
inputs = { image = "z" }
labels = "folders"
limit = 7
fold = "2/5"
[data.preprocess]
resize = [256, 256]
fit = "letterbox"
fill = 0.0
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
networks = ["trained", "tuned"]
[export]
opset = 15
equalize = true
allow = ["PyFunc", "Lambda"]
fold = false
fold_preprocess = true
[lint]
allow = ["range", "layout"]
min_samples = 100
max_scale_ratio = 50
max_imbalance = 2
num_labelled = 0
significance = 1e-6
runner = "reference"
num_threads = 3
[prune]
share = 0.75
pattern = "any"
method = "wanda"
exclude = ["stem"]
loss = "both"
distance = "kl"
epochs = 4
rate = 0.25
batch_size = 6
held_out = 0.125
seed = 12
answers = ["logits"]
device = "cpu"
num_threads = 5
[tune]
learn_ranges = false
loss = "labels"
distance = "mse"
epochs = 5
rate = 0.125
batch_size = 7
held_out = 0.5
seed = 13
answers = ["scores"]
device = "cuda"
num_threads = 6
[calibrate]
method = "mse"
percentile = 99
batch_size = 3
runner = "reference"
num_threads = 2
num_workers = 4
watch = "all"
stop = 0.25
[ptq]
precision = "dynamic"
per_channel = false
weight_bits = 4
exclude = ["SOFTMAX"]
edgetpu = true
io = "integer"
[cast]
keep_fp32 = ["head"]
[[cast.override]]
nodes = "head/*"
precision = "fp32"
[quantize]
precision = "dynamic"
target = "onnxruntime"
exclude = ["Gemm"]
attention = "fused"
small_products = "int8"
arithmetic = "s8s8"
placement = "timed"
weight_bits = 4
block_size = 128
rounding = "nearest"
min_sqnr_db = 25
max_metric_drop = 0.01
sensitivity = "metric"
rest = "fp16"
coarsen_to_symmetric = true
[[quantize.override]]
tensors = "features/*/relu6"
range = [0, 6]
[[quantize.override]]
nodes = "head/*"
precision = "fp32"
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
edgetpu = true
cuda_graph = false
sparse_weights = true
plugins = ["libmy.so"]
timing_cache = false
builds = 3
[infer]
batch_size = 5
num_threads = 3
[tolerate]
num_samples = 96
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
[validate.dynamic]
atol = 3.25
rtol = 3.5
min_cosine = 0.625
min_psnr_db = 40
min_sqnr_db = 40.5
derived = false
max_metric_drop = 0.75
[validate.int16x8]
atol = 4.25
rtol = 4.5
min_cosine = 0.75
min_psnr_db = 50
min_sqnr_db = 50.5
derived = false
max_metric_drop = 0.875
[validate.retrained]
atol = 5.25
rtol = 5.5
min_cosine = 0.875
min_psnr_db = 60
min_sqnr_db = 60.5
derived = true
max_metric_drop = 0.03125
[benchmark]
monitor_ms = 0
batch_sizes = [2, 4]
num_threads = 6
layers = true
trace_seconds = 1.5
largest_batch = "p50_ms <= 7.5"
largest_batch_seconds = 8.5
together = ["all"]
together_in = "threads"
power_mode = ["MAXN"]
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
num_remedies = 2
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
[packed]
manifest = "manifest.json"
[sign]
key_env = "KEY"
trusted = ["release.pub"]
"""


def leaves(record: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a dataclass that is no dataclass itself, by its place in the plan."""
    for one in fields(record):
        value = getattr(record, one.name)
        if is_dataclass(value):
            yield from leaves(value, f"{place}{one.name}.")
        elif "keys" in one.metadata:  # A mapping whose keys stand in the table itself.
            for name, tolerance in value.items():
                yield from leaves(tolerance, f"{place}{name}.")
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
    wanted["quantize.override"] = (
        Override(tensors="features/*/relu6", range=(0.0, 6.0)),
        Override(nodes="head/*", precision="fp32"),
    )
    wanted["cast.override"] = (KeptNodes("head/*", "fp32"),)
    wanted |= {"folder": tmp_path, "path": tmp_path / "plan.toml", "settings": (), "text": EVERYTHING}
    assert found == wanted


def test_the_test_above_changes_every_default(tmp_path: Path) -> None:
    least = dict(leaves(read_plan(written(tmp_path, LEAST))))
    most = dict(leaves(read_plan(written(tmp_path, EVERYTHING))))
    only_offline = ["benchmark.protocol.num_streams", "gate.pairing.num_streams"]  # A rate is for server alone.
    same = [place for place in least if place in most and least[place] == most[place]]
    assert same == ["prune.pattern", *only_offline, "folder", "path", "settings"]  # 2:4 has no share.


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
    assert isinstance(plan.validate.tolerances["int8"].atol, float)
    assert isinstance(plan.data.preprocess.mean[0], float)


def test_infinity_is_a_number(tmp_path: Path) -> None:
    assert math.isinf(
        read_plan(written(tmp_path, LEAST + "[validate.int8]\natol = inf")).validate.tolerances["int8"].atol
    )


def test_a_part_of_a_tolerance_keeps_the_others(tmp_path: Path) -> None:
    validate = read_plan(written(tmp_path, LEAST + "[validate.int8]\nmax_metric_drop = 0.5")).validate
    assert validate.tolerances["int8"].max_metric_drop == 0.5
    assert validate.tolerances["int8"].min_cosine == Validate().tolerances["int8"].min_cosine > 0
    assert validate.tolerances["fp16"] == Validate().tolerances["fp16"]


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
        ("precisions = ['fp23']", "[variants] precisions: is 'fp23'; did you mean 'fp32'? known: fp32, fp16, int16x8"),
        ("backends = ['onnxrt']", "[variants] backends: is 'onnxrt'; did you mean 'onnxruntime'? known: litert, onnx"),
        ("backends = ['tensorflow']", "[variants] backends: is 'tensorflow'; did you mean 'tensorrt'? known: litert, "),
        ("precisions = []", "[variants] precisions is empty; name at least one of fp32, fp16, int16x8"),
        ("backends = []", "[variants] backends is empty; name at least one of litert, onnxruntime, onnxruntime_cuda"),
    ],
)
def test_unknown_variants_are_refused(tmp_path: Path, text: str, said: str) -> None:
    assert refused(tmp_path, f"{LEAST}[variants]\n{text}").startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("backends = ['tensorrtt']", "[pack] backends: is 'tensorrtt'; did you mean 'tensorrt'? known: litert, onnxr"),
        ("backends = []", "[pack] backends is empty; name at least one of litert, onnxruntime, onnxruntime_c"),
        ("caches = ['8.5']", "[pack] caches: TensorRT version '8.5': three numbers such as 8.5.2 are expected"),
        ("caches = ['11.0.0']", "[pack] caches: TensorRT version 11.0.0: reads no calibration caches"),
    ],
)
def test_what_cannot_be_packed_is_refused_under_the_name_of_its_table(tmp_path: Path, text: str, said: str) -> None:
    assert refused(tmp_path, f"{LEAST}[pack]\n{text}").startswith(said)


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


@pytest.mark.parametrize(
    ("file", "table", "folders"),
    [
        ("plan.toml", "", ("trtforge-report", "trtforge-gate")),
        ("lite.toml", "", ("trtforge-report-lite", "trtforge-gate-lite")),
        ("lite.toml", '[report]\nfolder = "here"\n[gate]\nfolder = "there"\n', ("here", "there")),
    ],
)
def test_plans_in_one_folder_do_not_overwrite_each_others_output(
    tmp_path: Path, file: str, table: str, folders: tuple[str, str]
) -> None:
    (tmp_path / file).write_text(f"[model]\nsource = 'm'\n[data]\nevaluation = 'e'\ncalibration = 'c'\n{table}")
    plan = read_plan(tmp_path / file)
    assert (plan.output_folder(plan.report).name, plan.output_folder(plan.gate).name) == folders


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[validate.int8]\nmin_cosine = nan", r"\[validate.int8.min_cosine\] is nan, but takes a number"),
        ("[report]\nmax_metric_drop = nan", r"\[report.max_metric_drop\] is nan"),
        ("[report]\nmax_metric_drop = inf", "max_metric_drop is inf, but must be at least"),
        ('[report]\nfolder = "a\\u0000"', "which has a NUL character"),
        ("x = " + "[" * 100_000, "is not TOML: it is nested too deeply"),
        ("x = " + "9" * 5000, "is not TOML: "),
        ("a" + ".a" * 50_000 + " = 1", "is not TOML: a key has more than 64 dots"),
    ],
)
def test_what_no_plan_means(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        read_plan(written(tmp_path, LEAST + text))


def test_a_key_may_get_another_value_for_one_call(tmp_path: Path) -> None:
    file = written(tmp_path, LEAST + "[build]\nworkspace_mib = 64\n")
    plan = read_plan(file, ["build.workspace_mib=2048", "calibrate.method=mse", 'variants.precisions = ["fp32"]'])
    assert (plan.build.workspace_mib, plan.calibrate.method, plan.variants.precisions) == (2048, "mse", ("fp32",))
    assert plan.digest() != read_plan(file).digest(), "a report says that it is not the file's plan alone"
    for text in ("workspace_mib", "workspace_mib=3", "=3", "a.b.c"):
        with pytest.raises(ConfigError, match=r"is not TABLE\.KEY=VALUE; write for example --set build\.workspace"):
            read_plan(file, [text])
    with pytest.raises(ConfigError, match=r"with --set build\.workspace=3: \[build\] unknown key 'workspace'"):
        read_plan(file, ["build.workspace=3"])
    with pytest.raises(ConfigError, match=r"--set build\.workspace_mib=lots: \[build.workspace_mib\]"):
        read_plan(file, ["build.workspace_mib=lots"])
