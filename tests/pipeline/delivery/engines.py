"""Made-up engines with their records: what a delivery reads of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.contract import ShapeRange, TensorSpec
from pipeline.delivery.contents import Delivered

IMAGE = TensorSpec("image", "float32", (-1, 3, 224, 224))
SCORES = TensorSpec("scores", "float32", (-1, 1000))


def profile(largest: int) -> dict[str, ShapeRange]:
    return {"image": ShapeRange((1, 3, 224, 224), (largest, 3, 224, 224), (largest, 3, 224, 224))}


def engine(folder: Path, name: str = "resnet.orin", gpu: str = "8.7", **changes: Any) -> Delivered:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.plan"
    path.write_bytes(f"engine {name}".encode())
    values: dict[str, Any] = {
        "name": name, "path": path, "backend": "tensorrt", "precision": "int8",
        "inputs": (IMAGE,), "outputs": (SCORES,), "profiles": (profile(8),), "compute_capability": gpu, "max_batch": 8,
    }  # fmt: skip
    return Delivered(**(values | changes))


def write_record(path: Path, **changes: Any) -> None:
    """The record of an engine's file, as the build leaves it beside it."""
    record = {
        "backend": "tensorrt",
        "precision": "int8",
        "inputs": [asdict(IMAGE)],
        "outputs": [asdict(SCORES)],
        "versions": {"compute_capability": "8.7"},
        "options": {"profiles": [{"image": {"min": [1, 3, 2, 2], "opt": [4, 3, 2, 2], "max": [8, 3, 2, 2]}}]},
        "max_batch": 8,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    path.with_name(f"{path.name}.json").write_text(json.dumps(record | changes))
