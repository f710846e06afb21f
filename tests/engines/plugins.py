"""Real shared libraries of plugins for the tests, compiled here; skipped aloud without a C++ compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

GIVES = """
#include <cstdint>

// The interfaces of NvInfer, without its headers, that a library gives a creator by from TensorRT 10 on.
struct InterfaceInfo { char const* kind; int32_t major, minor; };
struct IVersionedInterface {
    virtual int32_t getAPILanguage() const noexcept { return 0; }
    virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
    virtual ~IVersionedInterface() noexcept = default;
};
struct Fields { int32_t number; void const* fields; };
struct Creator : IVersionedInterface {
    Fields none{0, nullptr};
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN CREATOR_V3ONE", 1, 0}; }
    virtual void* createPlugin(char const*, Fields const*, int32_t) noexcept { return nullptr; }
    virtual Fields const* getFieldNames() noexcept { return &none; }
    virtual char const* getPluginName() const noexcept { return NAME; }
    virtual char const* getPluginVersion() const noexcept { return "1"; }
    virtual char const* getPluginNamespace() const noexcept { return ""; }
};
static Creator creator;
static IVersionedInterface* creators[] = {&creator};
extern "C" IVersionedInterface* const* getCreators(int32_t& number) { number = 1; return creators; }
extern "C" void setLoggerFinder(void*) {}
"""
"""TensorRT asks it for a creator of the plugin NAME, which makes none when it is asked to."""
REGISTERS = """
#include <cstdlib>
struct Registration { Registration() { setenv("PRETENDED_PLUGINS", NAME, 1); } };
static Registration registration;
"""
"""Registers NAME as it is loaded, in the registry of the pretended TensorRT, which is a variable of the environment."""
GETTER = 'extern "C" void const* const* getPluginCreators(int& number) { number = 0; return nullptr; }'
"""Gives no creator when it is asked."""
NOTHING = 'extern "C" int answer() { return 42; }'
LACKS = 'extern "C" int of_another_version(); extern "C" int answer() { return of_another_version(); }'
"""Calls what no library has."""
E_MACHINE_AT = 18
AARCH64, X86_64 = 183, 62


def plugin_library(folder: Path, source: str, name: str = "libmy.so", plugin: str = "Doubled") -> Path:
    """A library of that source."""
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("no C++ compiler (g++) is installed, so that no plugin can be compiled")
    folder.mkdir(exist_ok=True)
    file, text = folder / name, folder / f"{name}.cpp"
    text.write_text(source)
    words = [compiler, "-std=c++17", "-shared", "-fPIC", f'-DNAME="{plugin}"', "-o", file, text]
    subprocess.run(list(map(str, words)), check=True)
    text.unlink()
    return file


def for_another_processor(library: Path) -> Path:
    """The library with another architecture in its head."""
    data = bytearray(library.read_bytes())
    data[E_MACHINE_AT] = AARCH64 if data[E_MACHINE_AT] == X86_64 else X86_64
    library.write_bytes(data)
    return library
