"""Plugins for the provider of TensorRT: which libraries it is told to load, and when; its nodes in their domain."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest

from engines.backends import onnxruntime, onnxruntime_tensorrt
from engines.contract import BuildOptions
from engines.errors import EngineError, Unavailable
from engines.ort import sharing
from engines.ort.plugins import PLUGIN_PATHS, name_plugins, plugin_options
from engines.ort.providers import TENSORRT, library_of
from engines.ort.session import CPU
from engines.plugin_library import PluginLibrary, name_libraries, sha256_of_library
from tests.engines.plugins import NOTHING, for_another_processor, plugin_library

SaveModel = Callable[[str], Path]
TEXT = """<ir_version: 8, opset_import: ["" : 17, "my" : 1, "local" : 1]>
g (float[2] x) => (float[2] y, float[2] z) {
    a = Relu (x)
    b = my.Sharpen (a)
    y = Blur_TRT (b)
    c = local.twice (y)
    z = EfficientNMS_TRT (c)
}
<domain: "local", opset_import: ["" : 17]> twice (p) => (q) { q = Add (p, p) }
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real one; nothing is named yet."""
    monkeypatch.setenv("TRTFORGE_PLUGINS", "")
    return plugin_library(tmp_path / "libs", NOTHING)


def test_operators_that_onnx_does_not_have_come_into_the_domain_of_plugins(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "m.onnx")
    name_plugins(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    assert [(node.domain, node.op_type) for node in model.graph.node] == [
        ("", "Relu"), ("trt.plugins", "Sharpen"), ("trt.plugins", "Blur_TRT"), ("local", "twice"),
        ("", "EfficientNMS_TRT"),  # ONNX Runtime has that one in ONNX's own domain.
    ]  # fmt: skip
    assert [(entry.domain, entry.version) for entry in model.opset_import][-1] == ("trt.plugins", 1)
    before = (tmp_path / "m.onnx").read_bytes()
    name_plugins(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == before


def test_paths_stand_one_behind_the_other() -> None:
    libraries = PluginLibrary(Path("/a/lib1.so"), "1"), PluginLibrary(Path("/b/lib2.so"), "2")
    assert plugin_options(libraries) == {PLUGIN_PATHS: "/a/lib1.so;/b/lib2.so"}
    assert plugin_options(()) == {}
    with pytest.raises(EngineError, match=r"/a;b/lib\.so: ONNX Runtime takes no path with a semicolon"):
        plugin_options((PluginLibrary(Path("/a;b/lib.so"), "1"),))


def test_the_option_and_the_domain_are_those_of_the_real_library() -> None:
    if (file := library_of(TENSORRT)) is None:
        pytest.skip("onnxruntime-gpu is not installed here: its option cannot be held against the real library")
    text = file.read_bytes()
    assert PLUGIN_PATHS.encode() in text
    assert b"trt.plugins" in text


def test_a_library_of_another_processor_is_refused_first(library: Path) -> None:
    assert "plugins" in onnxruntime_tensorrt.OBEYS
    with pytest.raises(Unavailable, match=r"libmy\.so: is compiled for "):
        onnxruntime_tensorrt.refuse(BuildOptions(plugins=(for_another_processor(library),)))


Told = list[Mapping[str, str]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What the first provider is told at each session; here it is the CPU's, which has no such option."""
    if onnxruntime.why_not_build():
        pytest.skip(onnxruntime.why_not_build())
    seen: Told = []
    opened = sharing.opened

    def telling(by: sharing.Sharing, model: Path, settings: Any, options: Mapping[str, str]) -> Any:
        seen.append(dict(options))
        return opened(by, model, settings, {})

    monkeypatch.setattr(sharing, "opened", telling)
    return seen


BY = sharing.Sharing("theirs", (CPU,), "the first", False, False, lambda: {"onnxruntime": "1"})


def built(linear: Path, folder: Path, library: Path) -> Path:
    """An engine with that library; its record has the digest."""
    record = sharing.build(BY, linear, folder / "e.session", BuildOptions(plugins=(library,)))
    assert record.options == {
        "plugins": [{"name": "libmy.so", "sha256": sha256_of_library(library), "is_inside": False}]
    }
    return folder / "e.session"


def test_a_build_loads_the_libraries_of_its_options_and_writes_no_path(
    linear: Path, tmp_path: Path, library: Path, told: Told
) -> None:
    engine = built(linear, tmp_path, library)
    assert told == [{PLUGIN_PATHS: str(library.resolve())}] * 2  # As it is divided, and as it is opened as it stands.
    text = (engine / sharing.DESCRIPTION).read_text()
    assert str(library.parent) not in text
    assert sha256_of_library(library) in text


def test_an_engine_loads_what_is_named_and_is_the_very_file(
    linear: Path, tmp_path: Path, library: Path, told: Told
) -> None:
    engine = built(linear, tmp_path, library)
    with pytest.raises(EngineError, match=r"was built with the plugins of libmy\.so, which is not loaded unasked"):
        sharing.SharedRunner(BY, engine, 1).__enter__()
    name_libraries([library])
    told.clear()
    with sharing.SharedRunner(BY, engine, 1):
        assert told == [{PLUGIN_PATHS: str(library.resolve())}]
    name_libraries([plugin_library(tmp_path / "others", NOTHING.replace("42", "43"))])
    with pytest.raises(EngineError, match=r"is another file than .* was built with"):
        sharing.SharedRunner(BY, engine, 1).__enter__()


def test_a_path_in_an_engine_of_somebody_else_is_not_loaded(
    linear: Path, tmp_path: Path, library: Path, told: Told
) -> None:
    engine = tmp_path / "e.session"
    sharing.build(BY, linear, engine, BuildOptions())
    description = json.loads((engine / sharing.DESCRIPTION).read_text())
    description["options"][PLUGIN_PATHS] = str(library)
    (engine / sharing.DESCRIPTION).write_text(json.dumps(description))
    told.clear()
    with sharing.SharedRunner(BY, engine, 1):
        assert told == [{}]
