"""Whether the backends of a plan take its model: asked before anything is made for them."""

from __future__ import annotations

from engines import backend
from engines.contract import Backend, ChoosyBackend, SharingBackend
from engines.support.answers import AskableBackend
from pipeline.artifact import OnnxModel, SupportTable
from pipeline.errors import EngineError
from pipeline.plan import Plan
from pipeline.results import Network
from pipeline.stages.support import answer_from
from pipeline.store import Store
from pipeline.trained.networks import model_for_backend


def check_operators(plan: Plan, store: Store, network: Network, until: str) -> dict[str, SupportTable]:
    """That the model is in an opset that the backends read, and that they take each of its nodes; by backend.

    Of a network that came quantized that file is asked about, as it is built for each. Where no engines are built here,
    the list of [support] generation is asked for the device that builds them.

    Raises:
        Unavailable: a backend does not read the model as it is; the sentence says what brings it down.
        EngineError: it does not take a node of it.
    """
    needs_engines = plan.stage(until).NEEDS_ENGINES
    tables: dict[str, SupportTable] = {}
    for name in plan.variants.backends:
        runtime = backend(name)
        is_asked = _is_asked(runtime) and runtime.TAKES == network.fp32.FORMAT
        is_asked = is_asked and (needs_engines or (_has_lists(runtime) and bool(plan.support.generation)))
        reads = needs_engines and isinstance(runtime, ChoosyBackend)
        if not is_asked and not reads:
            continue
        model = model_for_backend(plan, store, network, name, until)
        if reads and isinstance(runtime, ChoosyBackend):
            runtime.refuse_model(model.path)
        if is_asked:
            tables[name] = _ask(plan, store, model, name)
            if not isinstance(runtime, SharingBackend):
                raise_refusal(model, name, tables[name])
    return tables


def _is_asked(runtime: Backend) -> bool:
    """Whether it refuses nodes, or leaves them to others, so that what it takes is worth to be known before."""
    return isinstance(runtime, AskableBackend) and (runtime.REFUSES_NODES or isinstance(runtime, SharingBackend))


def _has_lists(runtime: Backend) -> bool:
    return isinstance(runtime, AskableBackend) and runtime.HAS_LISTS


def ask_all(plan: Plan, store: Store, network: Network) -> dict[str, SupportTable]:
    """What each backend of the plan that builds from ONNX answers; none is refused.

    Raises:
        Unavailable: one cannot be asked here.
    """
    takers = (name for name in plan.variants.backends if backend(name).TAKES == network.fp32.FORMAT)
    models = {name: model_for_backend(plan, store, network, name, "support") for name in takers}
    return {name: _ask(plan, store, model, name) for name, model in models.items()}


def _ask(plan: Plan, store: Store, model: OnnxModel, name: str) -> SupportTable:
    """What a backend answers."""
    with store.about(name):
        return store.run(plan.support, model, plan.support.whom(name, plan.model.inputs))


def raise_refusal(model: OnnxModel, name: str, table: SupportTable) -> None:
    """EngineError with the first thing that stands against the model, where the backend does not take all of it."""
    if sentence := answer_from(table).sentence():
        raise EngineError(f"{model.path}: {name} cannot take the model: {sentence}")
