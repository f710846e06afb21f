"""What a network is written in."""

from __future__ import annotations

from typing import Literal

ModelFormat = Literal["onnx", "tflite", "savedmodel"]
"""An ONNX file, a TFLite file, or a SavedModel folder."""
