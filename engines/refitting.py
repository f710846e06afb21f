"""What a backend offers, beside the verbs of all, whose engines can be given other weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from engines.contract import Backend, LayerFacts

if TYPE_CHECKING:
    from typing import TypeAlias

ChangedWeights: TypeAlias = "Mapping[str, tuple[tuple[str, str], ...]]"
"""Name of a weight that has other values than in the engine -> name and operator of the nodes that read it."""


@dataclass(frozen=True)
class RefitOutcome:
    """What a backend says about a refit."""

    size_bytes: int
    """Of the new engine."""
    seconds: float
    num_weights: int
    """So many the engine lets be replaced; all of them were."""
    is_refittable: bool
    """Whether the new engine can be refitted in its turn."""
    num_int8: int = -1
    """As of ``EngineRecord``, like what follows; only of an engine that had no weights before."""
    layers: tuple[LayerFacts, ...] = ()
    layers_from: str = ""
    notes: tuple[str, ...] = ()
    """Sentences for the report."""


@runtime_checkable
class RefittingBackend(Backend, Protocol):
    """One whose engines can be refitted, where they were built for that."""

    def refit(self, engine: Path, model: Path, target: Path, changed: ChangedWeights) -> RefitOutcome:
        """Write ``target``: the engine with the weights of ``model``, an ONNX file of the graph that it was built from.

        Raises:
            Unavailable: the runtime or a GPU is not there, or the engine is another GPU's or version's.
            EngineError: the engine cannot be refitted, or not all of ``changed`` can be replaced in it.
            NotTrusted: keys are named that engines have to be signed by, and none of them signed this one.
        """
        ...
