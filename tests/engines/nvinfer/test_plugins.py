"""Real libraries of plugins: what the real registry of TensorRT for RTX makes of them, and a pretended one of 8.5."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

from engines import backend
from engines.contract import BuildOptions
from engines.errors import EngineError, NotTrusted, Unavailable
from engines.nvinfer import plugins
from engines.nvinfer.plugins import can_be_inside, load_plugins
from engines.plugin_library import NAMED, PluginLibrary, libraries_for, library_at, name_libraries, sha256_of_library
from engines.signing.trust import TRUSTED
from tests.engines.nvinfer.pretended import PretendedGpu, feed, runner_of
from tests.engines.plugins import GETTER, GIVES, LACKS, NOTHING, REGISTERS, for_another_processor, plugin_library

MODEL = '<ir_version: 8, opset_import: ["": 17]> g (float[2, 2] x) => (float[2, 2] y) { y = %s(x) }'


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins as a process does."""
    monkeypatch.setattr(plugins, "_LOADED", {})
    monkeypatch.setenv(NAMED, "")
    monkeypatch.setenv(TRUSTED, "")
    ctypes.CDLL(None).unsetenv(b"PRETENDED_PLUGINS")


def with_registry(trt: ModuleType, *, asks: bool = False) -> ModuleType:
    """The pretended TensorRT with a registry: of 8.5, or one that asks libraries for their plugins."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p

    class Registry:
        @property
        def plugin_creator_list(self) -> list[Any]:
            name = getenv(b"PRETENDED_PLUGINS")
            return [SimpleNamespace(name=name, plugin_version="1", plugin_namespace="")] if name else []

    class AskingRegistry(Registry):
        def load_library(self, path: str) -> Any:
            return ctypes.CDLL(path) if hasattr(ctypes.CDLL(path), "getCreators") else None

    kind = AskingRegistry if asks else Registry
    vars(trt).update(IPluginRegistry=kind, get_plugin_registry=kind)
    return trt


def record_of(*libraries: Path, is_inside: bool = False) -> dict[str, Any]:
    return {"plugins": [library_at(file).record(is_inside=is_inside) for file in libraries]}


def test_the_real_registry_asks_a_library_for_its_plugins_and_the_parser_finds_them(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    library = plugin_library(tmp_path, GIVES, plugin="TrtforgeDoubled")
    model = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(MODEL % "TrtforgeDoubled"), model)

    def refusal(*files: Path) -> str:
        with pytest.raises(EngineError) as caught:
            backend("tensorrt_rtx").build(model, tmp_path / "engine", BuildOptions(plugins=files))
        return str(caught.value)

    unknown = refusal()
    name_libraries([library])
    assert "TrtforgeDoubled" not in [each.name for each in trt.get_plugin_registry().all_creators]
    asked = refusal(library)
    assert "TrtforgeDoubled" in [each.name for each in trt.get_plugin_registry().all_creators]
    assert unknown != asked, "the parser asked the library's creator, which makes none"
    assert can_be_inside(library_at(library))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (GETTER, r"libmy\.so: gives tensorrt_rtx\w* 1\.\S+ no plugins \(.+\); compile it for this version"),
        (NOTHING, r"libmy\.so: registers no plugin as it is loaded, and exports neither getCreators nor getPluginCr"),
        (LACKS, r"libmy\.so: cannot be loaded \(.*undefined symbol: of_another_version\); link what it misses"),
    ],
)
def test_what_the_real_registry_gets_no_plugin_from(tmp_path: Path, source: str, words: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    library = library_at(plugin_library(tmp_path, source))
    with pytest.raises(EngineError, match=words):
        load_plugins(trt, [library], lambda: "it gave no reason")


def test_backends_refuse_what_is_no_library_of_this_machine(tmp_path: Path) -> None:
    runtime = backend("tensorrt_rtx")
    if reason := runtime.why_not_build():
        pytest.skip(reason)
    (tmp_path / "text.so").write_text("no library")
    other = for_another_processor(plugin_library(tmp_path, NOTHING))
    for file, kind, words in (
        (
            other,
            Unavailable,
            r"libmy\.so: is compiled for \w+, this machine is \w+; name the library that was",
        ),
        (tmp_path / "text.so", EngineError, r"text\.so: is no shared library \(ELF\)"),
        (tmp_path / "none.so", EngineError, r"none\.so: cannot be read"),
    ):
        with pytest.raises(kind, match=words):
            runtime.refuse(BuildOptions(plugins=(file,)))


def test_a_library_that_registers_as_it_is_loaded_serves_8_5(trt: ModuleType, tmp_path: Path) -> None:
    with_registry(trt)
    library = library_at(plugin_library(tmp_path, REGISTERS))
    load_plugins(trt, [library], str)
    assert [each.name for each in trt.get_plugin_registry().plugin_creator_list] == [b"Doubled"]
    load_plugins(trt, [library], str)  # Once for all.
    assert not can_be_inside(library)


def test_8_5_cannot_ask_a_library(trt: ModuleType, tmp_path: Path) -> None:
    library = library_at(plugin_library(tmp_path, GIVES))
    with pytest.raises(Unavailable, match=r"pretended 0\.1 cannot ask it for them as 8\.6 and later do"):
        load_plugins(with_registry(trt), [library], str)


def test_one_process_has_one_library_of_a_name(trt: ModuleType, tmp_path: Path) -> None:
    with_registry(trt)
    first = library_at(plugin_library(tmp_path, REGISTERS))
    load_plugins(trt, [first], str)
    second = library_at(plugin_library(tmp_path / "new", REGISTERS, plugin="Tripled"))
    with pytest.raises(EngineError, match=r"new/libmy\.so: another libmy\.so is loaded in this process"):
        load_plugins(trt, [second], str)


def test_an_engine_gets_the_library_that_it_was_built_with(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    library = plugin_library(tmp_path, REGISTERS)
    name_libraries([library])
    with runner_of(gpu, tmp_path, with_registry(trt), options=record_of(library)) as runner:
        assert runner.infer(feed(2))["y"].tolist() == [[0, 2], [4, 6]]
    assert [each.name for each in trt.get_plugin_registry().plugin_creator_list] == [b"Doubled"]


def test_no_other_library_is_loaded_and_none_unasked(gpu: PretendedGpu, trt: ModuleType, tmp_path: Path) -> None:
    library = plugin_library(tmp_path, REGISTERS)
    options, sha256 = record_of(library), sha256_of_library(library)
    with pytest.raises(EngineError, match=r"engine\.plan: was built with the plugins of libmy\.so, which is not loade"):
        runner_of(gpu, tmp_path, with_registry(trt), options=options).__enter__()
    name_libraries([plugin_library(tmp_path, REGISTERS, plugin="Tripled")])
    words = rf"libmy\.so: is another file than .*engine\.plan was built with \(SHA-256 \w+… instead of {sha256[:12]}…\)"
    with pytest.raises(EngineError, match=words):
        runner_of(gpu, tmp_path, trt, options=options).__enter__()
    name_libraries([for_another_processor(library)])
    with pytest.raises(Unavailable, match=r"is compiled for"):
        runner_of(gpu, tmp_path, trt, options=options).__enter__()
    assert trt.get_plugin_registry().plugin_creator_list == []
    assert "load" not in gpu.calls
    with runner_of(gpu, tmp_path, trt, options={}):
        assert trt.get_plugin_registry().plugin_creator_list == [], "its record has none"


def test_an_engine_with_its_plugins_inside_needs_none_here(tmp_path: Path) -> None:
    library = plugin_library(tmp_path, GIVES)
    record = {"options": record_of(library, is_inside=True)}
    assert libraries_for(tmp_path / "engine", record) == ()


def test_an_engine_of_others_gets_what_is_named_but_not_where_keys_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = plugin_library(tmp_path, REGISTERS)
    assert libraries_for(tmp_path / "engine", {}) == ()
    name_libraries([library])
    assert os.environ[NAMED] == str(library)
    assert libraries_for(tmp_path / "engine", {}) == (PluginLibrary(library, sha256_of_library(library)),)
    monkeypatch.setenv(TRUSTED, "release.pub")
    with pytest.raises(NotTrusted, match=r"engine: has no record that was signed with it and says which plugins"):
        libraries_for(tmp_path / "engine", {})


@pytest.mark.parametrize("name", ["onnxruntime", "reference", "litert"])
def test_others_refuse_plugins(name: str, tmp_path: Path) -> None:
    runtime = backend(name)
    assert "plugins" not in runtime.OBEYS
    if name != "litert":
        with pytest.raises(Unavailable, match=r"plugins is requested, only TensorRT has it"):
            runtime.refuse(BuildOptions(plugins=(tmp_path / "libmy.so",)))
