"""What a network is written in."""

from __future__ import annotations

from typing import Literal

ModelFormat = Literal["onnx", "tflite", "savedmodel", "pt2"]
"""An ONNX file, a TFLite file, a SavedModel folder, or a program that torch exported."""
