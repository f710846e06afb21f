"""A pretended TensorRT that refits, for our own part of it: what is asked, set, refused and written. No proof of a GPU.

A plan is JSON: the weights that it lets be replaced, by name, and those of layers, by name and role; whether it may be
refitted, and whether it holds any. What a builder folds is not among them.
"""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
from onnx import numpy_helper

from engines.contract import Array

HEADER = b"ftrt" + bytes(20) + bytes((10, 3, 0, 30))
ROLES = ("KERNEL", "BIAS", "SCALE", "SHIFT", "CONSTANT")


def plan_of(**parts: Any) -> bytes:
    """A plan with these parts beside what all have."""
    whole = {"refittable": True, "names": {"w": [0.0] * 8}, "layers": {"w/CONSTANT": [0.0] * 8}, "kept": False, **parts}
    return HEADER + json.dumps(whole).encode()


def parts_of(plan: bytes) -> dict[str, Any]:
    """What is in a plan."""
    return dict(json.loads(plan[len(HEADER) :]))


class _Engine:
    def __init__(self, parts: dict[str, Any], calls: list[str], stays: bool) -> None:
        self.parts, self._calls, self._stays = parts, calls, stays

    @property
    def refittable(self) -> bool:
        return bool(self.parts["refittable"])

    def serialize(self) -> bytes:
        return plan_of(**self.parts)

    def create_serialization_config(self) -> Any:
        flags = {"EXCLUDE_WEIGHTS"}
        return SimpleNamespace(flags=flags, clear_flag=flags.discard, set_flag=flags.add)

    def serialize_with_config(self, config: Any) -> bytes:
        self._calls.append(f"written with {sorted(config.flags)}")
        stays = "INCLUDE_REFIT" in config.flags or self._stays
        return plan_of(**{**self.parts, "refittable": self.refittable and stays})


class _Refitter:
    """Reads what was set when it refits, as the real one does: whoever set it must still have it."""

    def __init__(self, engine: _Engine, _log: object) -> None:
        self._engine, self._set = engine, dict[str, Any]()
        self.owner: Any = None
        self.fails = False

    def get_all_weights(self) -> list[str]:
        return list(self._engine.parts["names"])

    def get_all(self) -> tuple[list[str], list[Any]]:
        pairs = [key.rsplit("/", 1) for key in self._engine.parts["layers"]]
        return [name for name, _ in pairs], [role_named(role) for _, role in pairs]

    def get_missing_weights(self) -> list[str]:
        lacking = set(self._engine.parts["names"]) - {key.partition("/")[0] for key in self._set}
        return sorted(lacking - {key.partition("/")[0] for key in self._engine.parts["layers"] if key in self._set})

    def set_named_weights(self, name: str, values: Array) -> bool:
        self._set[name] = weakref.ref(values)
        return True

    def set_weights(self, name: str, role: Any, values: Array) -> bool:
        key = f"{name}/{role.name}"
        if values.size != len(self._engine.parts["layers"][key]):
            return False
        self._set[key] = weakref.ref(values)
        return True

    def refit_cuda_engine(self) -> bool:
        gc.collect()
        values = {key: values() for key, values in self._set.items()}
        assert all(array is not None for array in values.values()), "freed before it was read"
        for key, array in values.items():
            part = "layers" if "/" in key else "names"
            self._engine.parts[part][key] = array.reshape(-1).tolist()
        return not self._engine.parts.get("breaks", False)


def role_named(name: str) -> Any:
    return _ROLES[name]


_ROLES = {name: type("Role", (), {"name": name})() for name in ROLES}


def _parser_refitter(calls: list[str]) -> type[Any]:
    class OnnxParserRefitter:
        """Owns the weights that it sets."""

        def __init__(self, refitter: _Refitter, _log: object) -> None:
            self._refitter = refitter
            self._errors: list[str] = []
            self._arrays: dict[str, Array] = {}

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> Any:
            return SimpleNamespace(desc=lambda: self._errors[index])

        def refit_from_file(self, path: str) -> bool:
            calls.append(f"read {Path(path).name}")
            tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
            for name in self._refitter.get_all_weights():
                if name in tensors:
                    self._arrays[name] = array = tensors[name].copy()
                    self._refitter.set_named_weights(name, array)
            if len(self._arrays) < len(self._refitter.get_all_weights()):
                self._errors.append("Failed to refit all the weights.")
            return not self._errors

    return OnnxParserRefitter


def refitting_trt(*, has_parser: bool, keeps: bool = True) -> tuple[ModuleType, list[str]]:
    """A module with as much as the refitter touches, of 10 and later or of before; and what was done with it."""
    calls: list[str] = []
    trt = ModuleType("tensorrt")

    class Logger:
        ERROR, INTERNAL_ERROR, WARNING = (SimpleNamespace(name=name) for name in ("ERROR", "INTERNAL", "WARNING"))

    def load(plan: bytes) -> Any:
        parts = parts_of(plan)
        return None if parts.get("damaged") else _Engine(parts, calls, stays=not keeps)

    vars(trt).update(
        ILogger=Logger,
        Runtime=lambda _log: SimpleNamespace(deserialize_cuda_engine=load),
        Refitter=_Refitter,
        WeightsRole=SimpleNamespace(**_ROLES),
        init_libnvinfer_plugins=lambda _log, _namespace: True,
        __version__="10.3.0" if has_parser else "8.5.2",
    )
    if has_parser:
        later = {"INCLUDE_REFIT": "INCLUDE_REFIT"} if keeps else {}
        flags = SimpleNamespace(EXCLUDE_WEIGHTS="EXCLUDE_WEIGHTS", **later)
        vars(trt).update(OnnxParserRefitter=_parser_refitter(calls), SerializationFlag=flags)
    return trt, calls
