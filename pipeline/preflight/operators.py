"""Whether the backends of a plan take its model: asked before anything is made for them."""

from __future__ import annotations

from collections.abc import Mapping

from engines import backend
from engines.contract import ChoosyBackend
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
    for name in plan.variants.backends:
        runtime = backend(name)
        if needs_engines and isinstance(runtime, ChoosyBackend):
            runtime.refuse_model(fp32.path)
        if not isinstance(runtime, AskableBackend) or not runtime.REFUSES_NODES or runtime.TAKES != fp32.FORMAT:
            continue
        if needs_engines or (runtime.HAS_LISTS and plan.support.generation):
            tables[name] = _ask(plan, store, fp32, name)
    return raise_refusals(fp32, tables)


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
