"""The file that tells whose kernels a runtime has."""

from __future__ import annotations

import numpy as np
import pytest

from engines.litert.probe import relu_model
from engines.quiet import quiet

lite = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")


def test_it_runs() -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated

    with quiet():
        interpreter = lite.Interpreter(model_content=relu_model(schema_py_generated, flatbuffers))
        interpreter.allocate_tensors()
    for value, expected in ((-1.0, 0.0), (2.0, 2.0)):
        interpreter.set_tensor(0, np.array([value], np.float32))
        interpreter.invoke()
        assert interpreter.get_tensor(1).tolist() == [expected]
