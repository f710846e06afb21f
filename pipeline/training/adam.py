"""Adam, with a rate for each tensor that falls along a cosine.

Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), algorithm 1. ``torch.optim`` has it too, but loads
torch's compiler for it, three seconds and a hundred MiB that nothing here uses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from engines.torch_graph.library import load_torch

FIRST, SECOND, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """The state of an optimization; its tensors are changed in place."""

    def __init__(self, parameters: Sequence[Any], rates: Sequence[float], num_steps: int) -> None:
        """``rates``: one for each of ``parameters``, at the beginning; at the end of ``num_steps`` they are 0."""
        torch = load_torch()
        self._parameters, self._rates, self._num_steps = list(parameters), list(rates), max(num_steps, 1)
        self._first = [torch.zeros_like(each) for each in self._parameters]
        self._second = [torch.zeros_like(each) for each in self._parameters]
        self._num_done = 0

    def forget_gradients(self) -> None:
        """Before each step."""
        for each in self._parameters:
            each.grad = None

    def step(self) -> None:
        """Take a step against the gradients; a tensor that has none stays."""
        self._num_done += 1
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, (self._num_done - 1) / self._num_steps)))
        first_bias, second_bias = 1 - FIRST**self._num_done, 1 - SECOND**self._num_done
        with load_torch().no_grad():
            for each, rate, first, second in zip(self._parameters, self._rates, self._first, self._second):
                if each.grad is None:
                    continue
                first.lerp_(each.grad, 1 - FIRST)
                second.mul_(SECOND).addcmul_(each.grad, each.grad, value=1 - SECOND)
                spread = (second / second_bias).sqrt_().add_(EPSILON)
                each.addcdiv_(first, spread, value=-rate * fall / first_bias)

    def state(self) -> dict[str, Any]:
        """All that is needed to go on, as tensors and plain data."""
        return {"num_done": self._num_done, "first": self._first, "second": self._second}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._num_done = int(state["num_done"])
        for ours, theirs in zip((*self._first, *self._second), (*state["first"], *state["second"]), strict=True):
            ours.copy_(theirs)
