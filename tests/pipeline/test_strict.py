"""TOML tables as records: unknown keys, missing ones and values of another type are named, each at its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.data.preprocess import Preprocess
from pipeline.errors import ConfigError
from pipeline.plan import STAGES, Plan
from pipeline.strict import record_from_table
from tests.pipeline.plans import LEAST, refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[quantise]\n", "unknown key 'quantise'; did you mean 'quantize'? known: model, data, variants, export, "),
        (
            "[quantize]\ntarge = 1",
            "[quantize] unknown key 'targe'; did you mean 'target'? known: precision, target, ",
        ),
        (
            "[quantize]\nzzz = 1",
            "[quantize] unknown key 'zzz'; known: precision, target, exclude, attention",
        ),
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
        ("[model]\nsource='m'\n[data]\nevaluation={paht='c'}", "[data.evaluation] unknown key 'paht'; did you mean "),
        ("[model]\nsource='m'\n[data]\nevaluatoin='c'", "[data] unknown key 'evaluatoin'; did you mean 'evaluation'? "),
        (
            "folder = 'x'\n[model]\n[data]",
            "unknown key 'folder'; the tables are model, data, variants, export, support, lint,",
        ),
        (
            "path = 'x'\n[model]\n[data]",
            "unknown key 'path'; the tables are model, data, variants, export, support, lint, convert, prune, calib",
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
            "[model]\nsource='m'\n[data]\ncalibration='c'",
            "[data] the key 'evaluation' is missing; write evaluation = …",
        ),
        (
            "[model]\nsource='m'\n[data]\nevaluation='e'\ncalibration={labels='y'}",
            "[data.calibration] the key 'path' is missing; write path = …",
        ),
        (
            "[model]\n[data]\nevaluation='e'\ncalibration='c'",
            "[model] has no source; name a SavedModel folder, a .keras, .h5, .onnx, .tflite or .pt2 file, or "
            "module:function",
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
        (
            "[calibrate]\npercentile = '?'",
            "[calibrate.percentile] is still the question '?'; answer it with a number, ",
        ),
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
        ("[benchmark]\nprotocol = 3", "[benchmark.protocol] is 3, a whole number, but takes a table of scenario, q"),
        ("[validate]\nint8 = 0.1", "[validate.int8] is 0.1, a number, but takes a table of atol, rtol, min_cosine,"),
        ("[[export]]\nopset = 17", "[export] is [{'opset': 17}], a list, but takes a table of opset, allow, fold"),
        ("[model.inputs]\nx = [1, 2]", "[model.inputs.x] is [1, 2], a list, but takes a table of min, opt, max"),
        ("[model.inputs.x]\nmin = [1.5]", "[model.inputs.x.min] is 1.5, a number, but takes a whole number"),
        ("[export]\nopset = 2024-01-01", "[export.opset] is datetime.date(2024, 1, 1), a date or time, but takes a"),
        ("[calibrate]\nmethod = 'entropie'", "[calibrate.method] is 'entropie'; did you mean 'entropy'? known: auto, "),
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
    assert (
        said == "[model] is 3, a whole number, but takes a table of source, signature, float_source, inputs, profiles"
    )
    said = refused(tmp_path, "[model]\nsource = 'm'\n[data]\ncalibration = 3\nevaluation = 'e'")
    assert said == "[data.calibration] is 3, a whole number, but takes a table of path, inputs, labels, limit, fold"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[data.preprocess]\nscale = 0", "[data.preprocess] scale is [0], a 0 in it leaves no signal; correct it"),
        ("[data.preprocess]\nmean = [nan]", "[data.preprocess.mean] is nan, but takes a number; "),
        ("[data.preprocess]\ncrop = [224]", "[data.preprocess] crop is [224], two (height, width) of at least 1 is "),
        (
            "[benchmark.protocol]\nmin_seconds = -1",
            "[benchmark.protocol] min_seconds is -1, but must be at least 0 and",
        ),
        (
            "[benchmark.protocol]\nnum_blocks = 1",
            "[benchmark.protocol] num_blocks is 1, but must be at least 4 and fin",
        ),
    ],
)
def test_what_a_record_refuses_itself_is_placed(tmp_path: Path, text: str, said: str) -> None:
    assert refused(tmp_path, LEAST + text).startswith(said)


def test_what_a_data_source_refuses_itself_is_placed(tmp_path: Path) -> None:
    said = refused(tmp_path, LEAST.replace('"calibration.npz"', '""'))
    assert said.startswith("[data.calibration] path is empty, ")
    said = refused(tmp_path, LEAST.replace('"calibration.npz"', "{ path = 'c.npz', limit = -1 }"))
    assert said == "[data.calibration] c.npz: limit is -1, 0 (all) or more is expected; correct it"


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


@settings(max_examples=50)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(["model", "data", *STAGES], JUNK)))
def test_any_table_is_a_plan_or_a_sentence(table: dict[str, Any]) -> None:
    whole = {"folder": ".", "path": ".", "model": {"source": "m"}, "data": {"calibration": "c", "evaluation": "e"}}
    try:
        record_from_table(whole | table, Plan, "plan.toml")
    except ConfigError as error:
        assert str(error).startswith("plan.toml: ")  # noqa: PT017  # Either is right.
