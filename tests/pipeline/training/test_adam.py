"""Our Adam against torch's, which is loaded in a process of its own: it brings torch's compiler, and Triton with it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

from engines.torch_graph.library import load_torch
from pipeline.training.adam import Adam

ROOT = Path(__file__).resolve().parents[3]

BESIDE_TORCH = """
import sys
import numpy as np, torch
from pipeline.training.adam import Adam

random = np.random.default_rng(0)
begin = [random.normal(size=size).astype(np.float32) for size in ((4, 3), (5,))]
ours, theirs = ([torch.tensor(each, requires_grad=True) for each in begin] for _ in range(2))
num_steps, rates = 12, [0.01, 0.1]
adam = Adam(ours, rates, num_steps)
assert "torch._dynamo" not in sys.modules
other = torch.optim.Adam([{"params": [each], "lr": rate} for each, rate in zip(theirs, rates)])
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(other, num_steps)
for step in range(num_steps):
    for tensors, forget in ((ours, adam.forget_gradients), (theirs, other.zero_grad)):
        forget()
        sum(((each - step / 10) ** 2).sum() for each in tensors).backward()
    adam.step()
    other.step()
    schedule.step()
for first, second in zip(ours, theirs):
    np.testing.assert_allclose(first.detach().numpy(), second.detach().numpy(), rtol=1e-5, atol=1e-6)
"""


def test_its_steps_are_those_of_torch() -> None:
    done = subprocess.run([sys.executable, "-c", BESIDE_TORCH], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_goes_on_from_its_state() -> None:
    torch = load_torch()
    whole, part = (torch.ones(3, requires_grad=True) for _ in range(2))
    first, second = Adam([whole], [0.1], 6), Adam([part], [0.1], 6)
    for step in range(6):
        if step == 3:
            later = Adam([part], [0.1], 6)
            later.restore(second.state())
            second = later
        for tensor, adam in ((whole, first), (part, second)):
            adam.forget_gradients()
            (tensor**2 * math.pi).sum().backward()
            adam.step()
    assert whole.tolist() == part.tolist()
