"""What a runtime answers when it is asked node by node whether it takes a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from engines.contract import Backend

if TYPE_CHECKING:
    from typing import TypeAlias

NodeState = Literal["runs", "folded", "unsupported"]
"""Whether the runtime computes a node, needs not to since it depends on constants alone, or does not take it."""
InputShapes: TypeAlias = "Mapping[str, tuple[int, ...]]"
"""By input: the shape that work is counted at."""


@dataclass(frozen=True)
class NodeAnswer:
    """One node of the model, those in the bodies of loops and branches with the node that holds them."""

    name: str
    """Its own, or where it has none that of the tensor that it makes."""
    operator: str
    """As ``Conv``; of a domain that is not ONNX's with it, as ``com.microsoft.Gelu``."""
    state: NodeState
    reason: str = ""
    """Why it is not taken, and what to do; empty for what is."""
    runs_on: str = ""
    """Whose kernels it runs in, where the runtime has several."""
    flops: int = 0
    """For the shapes that were asked for: floating-point operations, or the integer ones in their place."""


@dataclass(frozen=True)
class Partition:
    """What would run where if all that is taken went to the runtime and the rest stayed outside."""

    segments: tuple[tuple[int, ...], ...]
    """The numbers of the nodes of each part that the runtime would get, in order; what is folded is in none."""
    outside: tuple[int, ...]
    num_crossings: int
    """Tensors that leave a segment or enter one, inputs and outputs of the model left out; each once for each side."""
    flops_share: float
    """Of the work, that in the segments: 0 to 1."""


@dataclass(frozen=True)
class SupportAnswer:
    """All of a model."""

    source: str
    """Who answers, such as ``the parser of tensorrt_rtx 1.7.1``."""
    nodes: tuple[NodeAnswer, ...]
    """In the file's order."""
    partition: Partition
    refusals: tuple[str, ...] = ()
    """Half sentences about the model, such as ``is in opset 21, …``: why it is not taken whatever its nodes are."""
    notes: tuple[str, ...] = ()

    @property
    def unsupported(self) -> tuple[NodeAnswer, ...]:
        """Those that are not taken."""
        return tuple(node for node in self.nodes if node.state == "unsupported")

    @property
    def is_whole(self) -> bool:
        """Whether the runtime takes the model as it is."""
        return not self.refusals and not self.unsupported

    def sentence(self) -> str:
        """Why it does not, with the first node that is not taken; empty if it does."""
        nodes = (f"node '{node.name}', {node.operator}: {node.reason}" for node in self.unsupported)
        reasons = [*self.refusals, *nodes]
        if not reasons:
            return ""
        more = f" (and {len(reasons) - 1} more: `trtforge support` lists them)" if len(reasons) > 1 else ""
        return f"{reasons[0]}{more}"


@runtime_checkable
class AskableBackend(Backend, Protocol):
    """One that can be asked node by node whether it takes a model, before anything is built."""

    REFUSES_NODES: bool
    """Whether there are operators of trained networks that it does not take: a run asks it before all else."""
    HAS_LISTS: bool
    """Whether the operators that its releases take are listed here, for machines without it."""

    def why_not_ask(self) -> str:
        """Empty if it can be asked on this machine; else one sentence."""
        ...

    def ask(self, model: Path, shapes: InputShapes) -> SupportAnswer:
        """What it says of each node of the model file. ``shapes``: of inputs with dynamic dimensions, to count work at.

        Raises:
            Unavailable: it cannot be asked here.
            EngineError: the file is no model.
        """
        ...
