"""Engines that several execution providers of ONNX Runtime share: one gets what it takes of the model, others the rest.

An engine is a folder with all that a session is made of: the model (or, where one provider took the whole of it, the
EP-context file that stands for it), the cache of compiled parts, and ``session.json``, which says how it is opened.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engines.contract import BuildOptions, EngineRecord
from engines.errors import EngineError, Unavailable
from engines.onnx_model import OnnxModelFacts, check_options, copy_model, facts_from_model, read_model
from engines.ort.compiled_nodes import check_uncompiled
from engines.ort.plugins import PLUGIN_PATHS, Libraries, name_nodes, name_plugins, plugin_options, records_of
from engines.ort.providers import LIBRARIES, preload, wheel
from engines.ort.session import CPU, OrtRunner, Providers, load_library, open_session, session_settings
from engines.plugin_library import FIELD, libraries_for, library_at
from engines.provider_share import ProviderShare, num_fallback_nodes

_LOG = logging.getLogger(__name__)

MODEL, CONTEXT, CACHE, DESCRIPTION = "model.onnx", "context.onnx", "engines", "session.json"
"""The files of an engine. The model's name is part of the names in TensorRT's cache, and never changes."""
RECORDS_ASSIGNMENT = "session.record_ep_graph_assignment_info"
NOT_LOADED = "Please install TensorRT libraries"
NO_PROFILE = "no associated shape profiles provided:"
NUM_NAMED = 3
"""Operators in a sentence."""


@dataclass(frozen=True)
class Sharing:
    """One way to share: a backend's."""

    name: str
    """The backend's."""
    providers: tuple[str, ...]
    """In the order in which they may take nodes; the first is whom the backend is for."""
    title: str
    """Of the first, in sentences."""
    compiles: bool
    """Whether the first compiles the parts that it gets, which are kept in the engine's folder."""
    optimizes: bool
    """Whether ONNX Runtime may rewrite the graph before it is divided."""
    versions: Callable[[], dict[str, str]]
    provider_options: Callable[[Path, BuildOptions], dict[str, str]] = field(default=lambda _model, _options: {})
    """Those of the first for a model."""


@dataclass(frozen=True)
class Description:
    """``session.json``."""

    model: str
    """The file that the session is made of."""
    options: Mapping[str, str]
    """Of the first provider."""
    shares: tuple[ProviderShare, ...]
    plugins: tuple[Mapping[str, Any], ...] = ()
    """Libraries of plugins that it was built with, as ``PluginLibrary.record`` has them; never their paths: which files
    may be loaded says who loads it."""


def build(sharing: Sharing, model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
    """Divide the model among the providers, compile what is to be compiled, and write the engine's folder.

    Raises:
        Unavailable: a provider does not load here.
        EngineError: ONNX Runtime or a provider refuses the model, or the first provider takes no node of it.
    """
    start = time.perf_counter()
    proto = read_model(model)
    model_facts = facts_from_model(proto, model)
    check_uncompiled(proto, model)
    check_options(model_facts, options, model)
    provider_options = sharing.provider_options(model, options)
    libraries = tuple(map(library_at, options.plugins))
    if engine.is_dir():  # Of an attempt that was killed.
        shutil.rmtree(engine)
    engine.mkdir(parents=True)
    try:
        copy_model(model, engine / MODEL)
        name_nodes(engine / MODEL)
        if libraries:
            name_plugins(engine / MODEL)
        (engine / CACHE).mkdir()
        shares = _divide(sharing, model, engine, {**provider_options, **plugin_options(libraries)}, options)
        if not _keep_context(sharing, engine, shares, libraries):
            _keep_compiled(sharing, engine, provider_options, shares, libraries)
    except BaseException:
        shutil.rmtree(engine)
        raise
    return EngineRecord(
        backend=sharing.name,
        precision=options.precision,
        size_bytes=sum(file.stat().st_size for file in engine.rglob("*") if file.is_file()),
        build_seconds=time.perf_counter() - start,
        versions=sharing.versions(),
        inputs=model_facts.inputs,
        outputs=model_facts.outputs,
        num_quantizable=model_facts.num_quantizable,
        num_int8=_num_int8(model_facts),
        num_4_bits=model_facts.num_4_bits,
        options={FIELD: list(records_of(libraries))} if libraries else {},
        notes=(share_sentence(sharing.title, shares),),
        providers=shares,
    )


def description_of(engine: Path) -> Description:
    """How an engine is opened, and who runs what of it.

    Raises:
        EngineError: it is no engine that several providers share.
    """
    try:
        data = json.loads((engine / DESCRIPTION).read_text(encoding="utf-8"))
        shares = tuple(
            ProviderShare(row["provider"], tuple(row["nodes"]), dict(row["operators"]), tuple(row["segments"]))
            for row in data["shares"]
        )
        plugins = tuple(dict(entry) for entry in data.get("plugins", ()))
        return Description(str(data["model"]), dict(data["options"]), shares, plugins)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{engine}: is no engine that ONNX Runtime's providers share ({DESCRIPTION} cannot be read: "
            f"{' '.join(str(error).split())}); build it again"
        ) from error


class SharedRunner(OrtRunner):
    """A session on several providers, all of which have to be there."""

    def __init__(
        self, sharing: Sharing, engine: Path, num_threads: int, libraries: Libraries = (), *, profile: str = ""
    ) -> None:
        """``libraries``: of plugins, where they were named for the build; else those of its record that are named.

        ``profile``: a folder for the library's own profile; empty for none.
        """
        super().__init__(engine, num_threads, profile=profile)
        self._sharing, self._libraries = sharing, libraries

    def _settings(self, ort: Any) -> Any:
        return as_divided(super()._settings(ort), ort, self._sharing)

    def _opened(self, path: Path, settings: Any) -> Any:
        description = description_of(path)
        libraries = self._libraries or libraries_for(path, {"options": {FIELD: description.plugins}})
        options = {name: value for name, value in description.options.items() if name != PLUGIN_PATHS}
        options.update(plugin_options(libraries))
        if self._sharing.compiles and description.model == MODEL:
            options.update(cache_options(path / CACHE))
        before = _compiled(path)
        load_providers(self._sharing)
        session = opened(self._sharing, path / description.model, settings, options)
        if new := [file for file in _compiled(path) if file not in before]:
            for file in new:
                file.unlink()
            raise EngineError(
                f"{path}: its compiled parts do not fit this machine ({sharing_words(self._sharing)} compiled "
                f"{len(new)} again); build it here again"
            )
        return session


def load_providers(sharing: Sharing) -> None:
    """Load what the providers link.

    Raises:
        Unavailable: something of it does not load.
    """
    for provider in sharing.providers:
        if provider in LIBRARIES:
            preload(provider)


def opened(sharing: Sharing, model: Path, settings: Any, options: Mapping[str, str]) -> Any:
    """A session on all of the providers; ``options`` are of the first.

    Raises:
        Unavailable: one of them is not there: ONNX Runtime would go on without it.
        EngineError: the model is refused.
    """
    first, *others = sharing.providers
    providers: Providers = ((first, options), *((other, {}) for other in others))
    available = load_library().get_available_providers()
    if lacks := [name for name in sharing.providers if name not in available]:
        raise Unavailable(_not_there(sharing, lacks[0]))
    try:
        session = open_session(model, settings, providers)
    except EngineError as error:
        if NOT_LOADED in str(error):
            raise Unavailable(_not_there(sharing, first)) from error
        raise _explained(error, model) from error
    if lacks := [name for name in sharing.providers if name not in session.get_providers()]:
        raise Unavailable(_not_there(sharing, lacks[0]))
    return session


def _not_there(sharing: Sharing, provider: str) -> str:
    return (
        f"{sharing.name}: {provider} of {wheel()} does not load on this machine, and is not gone on without; `trtforge "
        "doctor` says what it links"
    )


def shares_of(session: Any, sharing: Sharing) -> tuple[ProviderShare, ...]:
    """Who runs which nodes of a session that recorded it, the providers in their order; those without nodes too."""
    parts = [(str(part.ep_name), [(str(n.name), _operator(n)) for n in part.get_nodes()]) for part in _parts(session)]
    shares = []
    others = dict.fromkeys(name for name, _ in parts if name not in sharing.providers)
    for number, provider in enumerate((*sharing.providers, *others)):
        nodes = [node for name, part in parts if name == provider for node in part]
        sizes = tuple(len(part) for name, part in parts if name == provider)
        operators = dict(Counter(operator for _, operator in nodes).most_common())
        segments = sizes if sharing.compiles and not number else ()
        shares.append(ProviderShare(provider, tuple(name for name, _ in nodes), operators, segments))
    return tuple(shares)


def share_sentence(title: str, shares: Sequence[ProviderShare]) -> str:
    """``214 of 218 nodes run on TensorRT, in 2 segments; 4 do not: NonZero (2), … on the CPU.``"""
    total = sum(len(share.nodes) for share in shares)
    first, *others = shares
    number = len(first.segments)
    segments = f", in {number} segment{'s' if number > 1 else ''}" if number else ""
    rest = "; ".join(f"{_operators(share)} on {place(share.provider)}" for share in others if share.nodes)
    fallback = f"; {num_fallback_nodes(shares)} do not: {rest}" if rest else ""
    return f"{len(first.nodes)} of {total} nodes run on {title}{segments}{fallback}."


def sharing_words(sharing: Sharing) -> str:
    """The providers, for a sentence."""
    return f"{sharing.title} of {wheel()}"


def cache_options(folder: Path) -> dict[str, str]:
    """So that what TensorRT compiles is kept in, and taken from, a folder."""
    return {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(folder.resolve())}


def _divide(
    sharing: Sharing, model: Path, engine: Path, session_options: Mapping[str, str], options: BuildOptions
) -> tuple[ProviderShare, ...]:
    """Open the model as it is built, and tell who took what."""
    load_providers(sharing)
    ort = load_library()
    settings = as_divided(session_settings(ort, 1), ort, sharing)
    settings.add_session_config_entry(RECORDS_ASSIGNMENT, "1")
    if sharing.compiles:
        session_options = {**session_options, **context_options(engine), **timing_options(options)}
    session = opened(sharing, engine / MODEL, settings, session_options)
    shares = shares_of(session, sharing)
    if not shares[0].nodes:
        raise EngineError(
            f"{model}: no node runs on {sharing.title}, and {_operators(*shares[1:])} would run elsewhere; `trtforge "
            "support` says why; build for onnxruntime, which runs them as well"
        )
    return shares


def context_options(engine: Path) -> dict[str, str]:
    """So that what is compiled is kept in the engine's folder, and in an EP-context file besides."""
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": CACHE,  # From where the context is written; an absolute path is refused there.
        "trt_dump_ep_context_model": "True",
        "trt_ep_context_embed_mode": "1",
        "trt_ep_context_file_path": str((engine / CONTEXT).resolve()),
    }


def timing_options(options: BuildOptions) -> dict[str, str]:
    """So that kernels that were timed once are not timed again."""
    if options.timing_cache is None:
        return {}
    folder = options.timing_cache.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    return {"trt_timing_cache_enable": "True", "trt_timing_cache_path": str(folder)}


def _keep_context(sharing: Sharing, engine: Path, shares: tuple[ProviderShare, ...], libraries: Libraries = ()) -> bool:
    """Let the EP-context file be the engine, where one part is all of it: with several it is of the last alone.

    Whether it is. One that does not open is a warning, and is not.
    """
    context = engine / CONTEXT
    if not context.is_file():
        return False
    if len(shares[0].segments) > 1 or num_fallback_nodes(shares):
        context.unlink()
        return False
    try:
        _write(sharing, engine, Description(CONTEXT, {}, shares, records_of(libraries)), libraries)
    except EngineError as error:
        _LOG.warning("%s; the model and its compiled part are the engine instead", error)
        context.unlink()
        return False
    for file in [*engine.iterdir()]:
        if file.is_dir():
            shutil.rmtree(file)
        elif file.name not in (CONTEXT, DESCRIPTION):
            file.unlink()
    return True


def _keep_compiled(
    sharing: Sharing,
    engine: Path,
    provider_options: Mapping[str, str],
    shares: tuple[ProviderShare, ...],
    libraries: Libraries = (),
) -> None:
    """Let the model with what was compiled of it be the engine.

    Raises:
        EngineError: not all that was compiled is there, or it is compiled again.
    """
    if sharing.compiles and len(_compiled(engine)) < len(shares[0].segments):
        raise EngineError(
            f"{engine}: {sharing_words(sharing)} kept {len(_compiled(engine))} of the {len(shares[0].segments)} parts "
            "that it compiled, and would compile the others at each start; build for tensorrt, or for onnxruntime"
        )
    _write(sharing, engine, Description(MODEL, provider_options, shares, records_of(libraries)), libraries)


def _write(sharing: Sharing, engine: Path, description: Description, libraries: Libraries) -> None:
    """Write how it is opened, and open it so: it has to open as it stands, without anything being compiled again."""
    (engine / DESCRIPTION).write_text(json.dumps(asdict(description), indent=1), encoding="utf-8")
    with SharedRunner(sharing, engine, 0, libraries):
        pass


def as_divided(settings: Any, ort: Any, sharing: Sharing) -> Any:
    """Settings of a session, with whether the graph is rewritten before it is divided."""
    if not sharing.optimizes:  # So that the nodes are those of the file, and the types that it was written in.
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return settings


def _parts(session: Any) -> Any:
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise Unavailable(
            f"{wheel()}: does not tell which provider runs which node, as 1.24 and later do; pip install --upgrade "
            "onnxruntime-gpu"
        )
    return session.get_provider_graph_assignment_info()


def _compiled(engine: Path) -> list[Path]:
    return sorted((engine / CACHE).glob("*.engine"))


def _explained(error: EngineError, model: Path) -> EngineError:
    """With the way out, where a segment reads a tensor whose sizes depend on values."""
    _, marker, after = str(error).partition(NO_PROFILE)
    if not marker:
        return error
    names = after.split("; export it again")[0].strip(" )")
    return EngineError(
        f"{model}: TensorRT would read {', '.join(map(repr, names.split(',')))}, whose sizes depend on values, so that "
        "no shape range can be given; cut the model there, or build for onnxruntime_cuda, which needs none"
    )


def _num_int8(model_facts: OnnxModelFacts) -> int:
    """Its kernels are told of by nobody."""
    return -1 if model_facts.num_quantized else 0


def _operator(node: Any) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else str(node.op_type)


def _operators(*shares: ProviderShare) -> str:
    operators: Counter[str] = Counter()
    for share in shares:
        operators.update(share.operators)
    texts = [f"{name} ({number})" if number > 1 else name for name, number in operators.most_common(NUM_NAMED)]
    return ", ".join(texts) + (", …" if len(operators) > NUM_NAMED else "")


def place(provider: str) -> str:
    """Where a provider's nodes run, for a sentence."""
    return "the CPU" if provider == CPU else provider.replace("ExecutionProvider", "")
