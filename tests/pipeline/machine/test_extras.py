"""The extras of the package: which are here, and the line that installs the others."""

from __future__ import annotations

from importlib.metadata import version

from pipeline.machine.extras import Extra, extras, extras_from

CLICK = version("click")


def test_what_is_installed_and_what_is_not() -> None:
    lines = [
        "numpy>=1.26",
        'tomli>=2; python_version < "3.11"',
        'click>=8; extra == "shown"',
        'click>=8; extra == "half"',
        'surely-not-there>=3; extra == "half"',
        'click>=999; (python_version >= "3") and extra == "newer"',
        'click>=8; python_version < "3" and extra == "never"',
    ]
    assert extras_from(lines) == (
        Extra("shown", {"click": CLICK}, ()),
        Extra("half", {"click": CLICK}, ("surely-not-there>=3",)),
        Extra("newer", {}, (f"click>=999, not {CLICK},",)),
    )


def test_each_is_a_line() -> None:
    assert Extra("litert", {"ai-edge-litert": "2.3"}, ()).line() == "extra litert: ai-edge-litert 2.3"
    assert Extra("tune", {"zstandard": "0.25"}, ("torch>=2.4",)).line() == (
        "extra tune: torch>=2.4 not installed (here: zstandard 0.25); pip install 'trtforge[tune]'"
    )
    assert Extra("gpu", {}, ("pycuda>=2025.1.2",)).line().startswith("extra gpu: pycuda>=2025.1.2 not installed; pip")


def test_those_of_this_package_are_told() -> None:
    names = [extra.name for extra in extras()]
    assert not names or {"tensorflow", "onnxruntime", "litert", "tune", "report"} <= set(names)
