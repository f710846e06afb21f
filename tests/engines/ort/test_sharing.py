"""Engines that providers share, with the providers that are here: the CPU's, and one that takes no node (Azure's)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from engines.backends import onnxruntime
from engines.contract import BuildOptions, TensorSpec
from engines.errors import EngineError, Unavailable
from engines.ort import sharing
from engines.ort.providers import CUDA, TENSORRT
from engines.ort.session import CPU, load_library, open_session, session_settings
from engines.ort.sharing import (
    CACHE,
    CONTEXT,
    DESCRIPTION,
    MODEL,
    SharedRunner,
    Sharing,
    build,
    description_of,
    shares_of,
)
from engines.provider_share import ProviderShare, num_fallback_nodes

if onnxruntime.why_not_build():
    pytest.skip(onnxruntime.why_not_build(), allow_module_level=True)

SaveModel = Callable[[str], Path]
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
AZURE = "AzureExecutionProvider"
TEXT = f"""{HEAD} g (float[N, 3] x) => (float[N, 3] y, int64[2, K] where)
{{ [first] a = Relu(x) y = Neg(a) [non] where = NonZero(y) }}"""


def by(*providers: str, compiles: bool = False, optimizes: bool = False) -> Sharing:
    return Sharing("theirs", providers, "the first", compiles, optimizes, lambda: {"onnxruntime": "1"})


@pytest.fixture
def model(save_model: SaveModel) -> Path:
    return save_model(TEXT)


def test_an_engine_is_built_described_and_runs(model: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine.session"
    record = build(by(CPU), model, engine, BuildOptions())
    share = ProviderShare(CPU, ("first", "node_of_y", "non"), {"Relu": 1, "Neg": 1, "NonZero": 1})
    assert record.providers == description_of(engine).shares == (share,)
    assert record.notes == ("3 of 3 nodes run on the first.",)
    assert record.size_bytes == sum(file.stat().st_size for file in engine.rglob("*") if file.is_file())
    assert record.inputs == (TensorSpec("x", "float32", (-1, 3)),)
    with SharedRunner(by(CPU), engine, 1) as runner:
        assert runner.inputs == record.inputs
        np.testing.assert_array_equal(runner.infer({"x": np.array([[1, -2, 3]], np.float32)})["y"], [[-1, 0, -3]])
    assert sorted(file.name for file in engine.iterdir()) == [CACHE, MODEL, DESCRIPTION]


@pytest.mark.parametrize("inner", [False, True])
def test_a_model_that_holds_an_engine_is_not_built(inner: bool, save_model: SaveModel, tmp_path: Path) -> None:
    head = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[1] x, bool[1] b) => (float[1] y)'
    node = 'com.microsoft.EPContext <embed_mode = 0, ep_cache_context = "theirs.engine"> (x)'
    body = f"y = {node}"
    if inner:
        other = "e () => (float[1] q) { q = Neg (x) }"
        body = f"y = If (b) <then_branch = t () => (float[1] p) {{ p = {node} }}, else_branch = {other}>"
    with pytest.raises(EngineError, match="is EPContext, an engine that was compiled elsewhere; build from the ONNX"):
        build(by(CPU), save_model(f"{head} {{ {body} }}"), tmp_path / "engine.session", BuildOptions())
    assert not (tmp_path / "engine.session").exists()


def test_the_record_names_nodes_of_the_file_and_optimized_ones_where_it_may_rewrite(
    model: Path, tmp_path: Path
) -> None:
    text = (
        f"{HEAD} g (float[N, 3] x) => (float[N, 3] y) {{ [one] a = Identity(x) [two] b = Relu(a) [three] y = Neg(b) }}"
    )
    onnx.save(onnx.parser.parse_model(text), model)
    (share,) = build(by(CPU), model, tmp_path / "asis", BuildOptions()).providers
    assert share.nodes == ("one", "two", "three")
    (share,) = build(by(CPU, optimizes=True), model, tmp_path / "rewritten", BuildOptions()).providers
    assert share.nodes == ("two", "three")


def test_none_of_whose_nodes_goes_to_the_first_is_an_error(model: Path, tmp_path: Path) -> None:
    if AZURE not in load_library().get_available_providers():
        pytest.skip(f"this onnxruntime has no {AZURE}")
    with pytest.raises(
        EngineError, match=r"no node runs on the first, and Relu, Neg, NonZero would run elsewhere; `trt"
    ):
        build(by(AZURE, CPU), model, tmp_path / "engine", BuildOptions())
    assert not (tmp_path / "engine").exists()


def test_a_provider_that_is_not_there_is_not_gone_on_without(model: Path, tmp_path: Path) -> None:
    if CUDA in load_library().get_available_providers():
        pytest.skip("this onnxruntime has CUDA's provider")
    with pytest.raises(
        Unavailable, match=r"^theirs: CUDAExecutionProvider of onnxruntime .* does not load on this mach"
    ):
        build(by(CUDA, CPU), model, tmp_path / "engine", BuildOptions())


def parts(*assigned: tuple[str, tuple[tuple[str, str], ...]]) -> Any:
    """What a session tells that recorded who took what."""
    told = [
        SimpleNamespace(
            ep_name=name,
            get_nodes=lambda nodes=nodes: [SimpleNamespace(name=n, op_type=o, domain="") for n, o in nodes],
        )
        for name, nodes in assigned
    ]
    return SimpleNamespace(get_provider_graph_assignment_info=lambda: told)


TWO_SEGMENTS = (
    (TENSORRT, (("a", "Conv"), ("b", "Relu"), ("c", "Conv"))),
    (TENSORRT, (("e", "Conv"),)),
    (CPU, (("d", "NonZero"),)),
    (CUDA, (("f", "Gather"),)),
    (CUDA, (("g", "Gather"),)),
)


def test_segments_and_what_runs_elsewhere() -> None:
    shares = shares_of(parts(*TWO_SEGMENTS), by(TENSORRT, CUDA, CPU, compiles=True))
    assert shares == (
        ProviderShare(TENSORRT, ("a", "b", "c", "e"), {"Conv": 3, "Relu": 1}, (3, 1)),
        ProviderShare(CUDA, ("f", "g"), {"Gather": 2}),
        ProviderShare(CPU, ("d",), {"NonZero": 1}),
    )
    assert num_fallback_nodes(shares) == 3
    assert sharing.share_sentence("TensorRT", shares) == (
        "4 of 7 nodes run on TensorRT, in 2 segments; 3 do not: Gather (2) on CUDA; NonZero on the CPU."
    )


def test_a_provider_that_nobody_asked_for_is_told_too() -> None:
    shares = shares_of(parts((AZURE, (("a", "Conv"),))), by(CPU))
    assert [share.provider for share in shares] == [CPU, AZURE]


def test_an_older_library_cannot_tell() -> None:
    with pytest.raises(Unavailable, match=r"does not tell which provider runs which node, as 1\.24 and later do; pip"):
        shares_of(SimpleNamespace(), by(CPU))


def test_the_same_words_as_a_real_session(model: Path) -> None:
    settings = session_settings(load_library(), 1)
    settings.add_session_config_entry(sharing.RECORDS_ASSIGNMENT, "1")
    (share,) = shares_of(open_session(model, settings), by(CPU))
    assert share.operators == {"Relu": 1, "Neg": 1, "NonZero": 1}


# The engine's folder


@pytest.fixture
def engine(model: Path, tmp_path: Path) -> Path:
    build(by(CPU), model, tmp_path / "engine", BuildOptions())
    return tmp_path / "engine"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model": "model.onnx"}', '{"model": 1, "options": {}, "shares": [1]}']
)
def test_a_damaged_description(engine: Path, text: str) -> None:
    (engine / DESCRIPTION).write_text(text)
    with pytest.raises(
        EngineError, match=r"engine: is no engine that ONNX Runtime's providers share \(session.json can"
    ):
        description_of(engine)


def test_an_engine_that_would_be_compiled_again_is_refused_and_left_as_it_was(engine: Path) -> None:
    (engine / CACHE / "kept_sm90.engine").write_bytes(b"1")

    class Compiling(SharedRunner):
        def _settings(self, ort: Any) -> Any:
            (engine / CACHE / "other_sm87.engine").write_bytes(b"2")  # As the provider does while the session opens.
            return super()._settings(ort)

    assert sharing._compiled(engine) == [engine / CACHE / "kept_sm90.engine"]
    runner = Compiling(by(CPU), engine, 1)
    before = sharing._compiled
    with pytest.MonkeyPatch.context() as patch:
        seen = iter([before(engine), [*before(engine), engine / CACHE / "other_sm87.engine"]])
        patch.setattr(sharing, "_compiled", lambda _engine: next(seen))
        with pytest.raises(
            EngineError, match=r"its compiled parts do not fit this machine .* compiled 1 again\); build it"
        ):
            runner.__enter__()
    assert [file.name for file in (engine / CACHE).iterdir()] == ["kept_sm90.engine"]


def test_the_context_is_the_engine_where_one_part_is_all(engine: Path) -> None:
    (engine / MODEL).rename(engine / CONTEXT)
    onnx.save(onnx.load(engine / CONTEXT), engine / MODEL)
    whole = (ProviderShare(CPU, ("first", "node_of_y", "non"), {}, (3,)),)
    assert sharing._keep_context(by(CPU), engine, whole)
    assert sorted(file.name for file in engine.iterdir()) == [CONTEXT, DESCRIPTION]
    with SharedRunner(by(CPU), engine, 1) as runner:
        assert runner.infer({"x": np.ones((1, 3), np.float32)})["y"].shape == (1, 3)


@pytest.mark.parametrize("others", [((2, 1), ()), ((2,), ("d",))])
def test_the_context_of_the_last_of_several_parts_is_not(
    engine: Path, others: tuple[tuple[int, ...], tuple[str, ...]]
) -> None:
    (engine / CONTEXT).write_bytes(b"the last part alone")
    segments, elsewhere = others
    shares = (ProviderShare(TENSORRT, ("a", "b"), {}, segments), ProviderShare(CPU, elsewhere, {}))
    assert not sharing._keep_context(by(CPU), engine, shares)
    assert not (engine / CONTEXT).exists()


def test_a_context_that_does_not_open_is_said_and_not_used(engine: Path, caplog: pytest.LogCaptureFixture) -> None:
    (engine / CONTEXT).write_bytes(b"damaged")
    assert not sharing._keep_context(by(CPU), engine, (ProviderShare(CPU, ("a",), {}, (1,)),))
    assert "the model and its compiled part are the engine instead" in caplog.text
    assert (engine / MODEL).is_file()


def test_parts_that_were_not_kept_are_an_error(engine: Path) -> None:
    shares = (ProviderShare(CPU, ("a", "b"), {}, (1, 1)),)
    with pytest.raises(
        EngineError, match="kept 0 of the 2 parts that it compiled, and would compile the others at each"
    ):
        sharing._keep_compiled(by(CPU, compiles=True), engine, {}, shares)


def test_a_size_that_depends_on_values_has_a_sentence() -> None:
    refused = EngineError(
        "m.onnx: ONNX Runtime refuses the model ([ONNXRuntimeError] : 11 : EP_FAIL : User needs to provide all the "
        "dynamic shape inputs. Following input(s) has no associated shape profiles provided: boxes,scores); export it "
        "again"
    )
    assert str(sharing._explained(refused, Path("m.onnx"))) == (
        "m.onnx: TensorRT would read 'boxes', 'scores', whose sizes depend on values, so that no shape range can be "
        "given; cut the model there, or build for onnxruntime_cuda, which needs none"
    )
    other = EngineError("m.onnx: ONNX Runtime refuses the model (no such operator); export it again")
    assert sharing._explained(other, Path("m.onnx")) is other


def test_what_a_session_is_told_is_in_the_folder(engine: Path) -> None:
    assert json.loads((engine / DESCRIPTION).read_text())["model"] == MODEL
    assert sharing.cache_options(engine / CACHE) == {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str((engine / CACHE).resolve()),
    }
    assert sharing.timing_options(BuildOptions()) == {}
    told = sharing.timing_options(BuildOptions(timing_cache=engine / "abc.timing"))
    assert told == {"trt_timing_cache_enable": "True", "trt_timing_cache_path": str(engine / "abc")}
    assert (engine / "abc").is_dir()
