"""Whether the backends of a plan take its model: asked before anything is made for them."""

from __future__ import annotations

from collections.abc import Mapping

from engines import backend
from engines.contract import Backend, ChoosyBackend, SharingBackend
from engines.support.answers import AskableBackend
from pipeline.artifact import OnnxModel, SupportTable
from pipeline.errors import EngineError
from pipeline.plan import Plan
from pipeline.stages.support import answer_from
from pipeline.store import Store


def check_operators(plan: Plan, store: Store, fp32: OnnxModel, until: str) -> dict[str, SupportTable]:
    """That the model is in an opset that the backends read, and that they take each of its nodes; by backend.

    Where no engines are built here, the list of [support] generation is asked for the device that builds them.

    Raises:
        Unavailable: a backend does not read the model as it is; the sentence says what brings it down.
        EngineError: it does not take a node of it.
    """
    needs_engines = plan.stage(until).NEEDS_ENGINES
    tables: dict[str, SupportTable] = {}
    predictions: dict[str, SupportTable] = {}
    for name in plan.variants.backends:
        runtime = backend(name)
        if needs_engines and isinstance(runtime, ChoosyBackend):
            runtime.refuse_model(fp32.path)
        if not _is_asked(runtime) or runtime.TAKES != fp32.FORMAT:
            continue
        if needs_engines or (_has_lists(runtime) and plan.support.generation):
            asked = predictions if isinstance(runtime, SharingBackend) else tables
            asked[name] = _ask(plan, store, fp32, name)
    return {**raise_refusals(fp32, tables), **predictions}


def _is_asked(runtime: Backend) -> bool:
    """Whether it refuses nodes, or leaves them to others, so that what it takes is worth to be known before."""
    return isinstance(runtime, AskableBackend) and (runtime.REFUSES_NODES or isinstance(runtime, SharingBackend))


def _has_lists(runtime: Backend) -> bool:
    return isinstance(runtime, AskableBackend) and runtime.HAS_LISTS


def ask_all(plan: Plan, store: Store, fp32: OnnxModel) -> dict[str, SupportTable]:
    """What each backend of the plan that builds from ONNX answers; none is refused.

    Raises:
        Unavailable: one cannot be asked here.
    """
    takers = (name for name in plan.variants.backends if backend(name).TAKES == fp32.FORMAT)
    return {name: _ask(plan, store, fp32, name) for name in takers}


def _ask(plan: Plan, store: Store, fp32: OnnxModel, name: str) -> SupportTable:
    """What a backend answers."""
    with store.about(name):
        return store.run(plan.support, fp32, plan.support.whom(name, plan.model.inputs))


def raise_refusals(fp32: OnnxModel, tables: Mapping[str, SupportTable]) -> dict[str, SupportTable]:
    """The same tables, if all take the whole model; else EngineError with the first thing that stands against it."""
    for name, table in tables.items():
        if sentence := answer_from(table).sentence():
            raise EngineError(f"{fp32.path}: {name} cannot take the model: {sentence}")
    return dict(tables)
