"""TensorFlow: where models come from. Runs SavedModels, reads their signatures, turns Keras files into SavedModels.

It builds no engine: its "engine" is a SavedModel folder. TensorFlow runs on the CPU here, also where there is a GPU, so
that it does not take the memory that TensorRT needs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from engines import cpu
from engines.contract import (
    DYNAMIC,
    Array,
    BuildOptions,
    EngineRecord,
    LayerTimes,
    Placement,
    Runner,
    RunnerFacts,
    TensorSpec,
)
from engines.errors import EngineError, Unavailable
from engines.feed import FeedCheck
from engines.keras_file import custom_code, is_hdf5, is_keras_2, lambda_layer
from engines.left_out import left_out
from engines.model_format import ModelFormat
from engines.quiet import quiet

NAME = "tensorflow"
TAKES: ModelFormat = "savedmodel"
PLACEMENT: Placement = "none"
CAN_BUILD = False
GPU = False
STREAMS = False
NEEDS_RANGES = False
OBEYS: frozenset[str] = frozenset()
SUFFIX = ""
INSTALL = "pip install 'trtforge[tensorflow]'"

DEFAULT_SIGNATURE = "serving_default"

NO_PARTS_OF_A_RUN = ("matplotlib", "pandas", "sklearn")
"""What Keras imports where it is installed, for drawing and training: a third of the time that TensorFlow takes."""


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of one signature of a SavedModel, by the names that the signature gives them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def why_not_build() -> str:
    """Never empty: TensorFlow is where models come from."""
    return "tensorflow: runs trained networks only, it builds no engines; choose another backend to build"


def why_not_run() -> str:
    """Empty if tensorflow is installed."""
    if importlib.util.find_spec("tensorflow") is None:
        return f"tensorflow: is not installed; {INSTALL}"
    return ""


def versions() -> dict[str, str]:
    """Versions of TensorFlow and Keras, and the CPU. Asks the installed packages: loading TensorFlow takes seconds."""
    if reason := why_not_run():
        raise Unavailable(reason)
    packages = importlib.metadata.packages_distributions()
    distributions = {name: packages[name][0] for name in ("tensorflow", "keras") if name in packages}
    return {
        name: importlib.metadata.version(distribution) for name, distribution in distributions.items()
    } | cpu.versions()


def refuse(options: BuildOptions) -> None:
    """Raise Unavailable, always: it builds nothing."""
    raise Unavailable(why_not_build())


def build(model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
    """Builds nothing.

    Raises:
        Unavailable: always.
    """
    raise Unavailable(why_not_build())


def load(engine: Path, *, num_threads: int) -> Runner:
    """A runner for the SavedModel folder ``engine``: its only signature, or of several ``serving_default``."""
    return _SavedModelRunner(engine, "", num_threads)


def load_signature(engine: Path, signature: str, *, num_threads: int) -> Runner:
    """A runner for one signature of the SavedModel folder ``engine``."""
    return _SavedModelRunner(engine, signature, num_threads)


def signatures(path: Path) -> dict[str, Signature]:
    """What the SavedModel folder ``path`` can be called with. Reads the protocol buffer, loads no graph.

    Raises:
        Unavailable: tensorflow is not installed.
        EngineError: it is not a SavedModel folder, or a signature has an input of unknown rank.
    """
    graph = serving_graph(path)
    return {
        name: Signature(_specs(signature.inputs, path), _specs(signature.outputs, path))
        for name, signature in sorted(graph.signature_def.items())
        if not name.startswith("__")
    }


def serving_graph(path: Path) -> Any:
    """The ``MetaGraphDef`` for serving in the SavedModel folder ``path``. Reads the protocol buffer, loads no graph.

    Raises:
        Unavailable: tensorflow is not installed.
        EngineError: it is not a SavedModel folder, or none of its graphs is for serving.
    """
    _import()
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    file = path / "saved_model.pb"
    if not file.is_file():
        raise EngineError(
            f"{path}: is not a SavedModel, there is no saved_model.pb in it; give the folder that has one"
        )
    try:
        proto.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise EngineError(f"{file}: cannot be read ({error}); save the model again") from error
    graphs = [graph for graph in proto.meta_graphs if "serve" in graph.meta_info_def.tags]
    if not graphs:
        raise EngineError(f"{path}: no graph is tagged 'serve'; save the model for serving")
    return graphs[0]


def savedmodel_from_keras(source: Path, folder: Path, *, allow_lambda: bool = False) -> None:
    """Write the Keras model file ``source`` (``.keras`` or ``.h5``) as SavedModel into ``folder``.

    The SavedModel has the one signature ``serving_default`` with the model's own input and output names, and each
    weight once. (``model.export`` of Keras 3 writes two signatures and each weight twice.) A Lambda layer holds Python
    bytecode, which is run only if ``allow_lambda``.

    Raises:
        Unavailable: tensorflow is not installed, or the file is of Keras 2 and tf_keras is not installed.
        EngineError: the file cannot be read, or has a Lambda layer that is not allowed.
    """
    tf = _import()
    model = _keras_model(tf, source, allow_lambda)
    takes = [tf.TensorSpec(value.shape, value.dtype, name=value.name.partition(":")[0]) for value in model.inputs]
    gives = list(getattr(model, "output_names", ())) or [model.layers[-1].name]  # a Sequential of Keras 3 has none
    for word, names in (("inputs", [spec.name for spec in takes]), ("outputs", gives)):
        if len(set(names)) != len(names):
            raise EngineError(f"{source}: two {word} of the model have one name ({', '.join(names)}); rename one")
    module = tf.Module()
    module.model = model
    weights = {id(weight) for weight in model.weights}
    # Seeds of augmentation and dropout, which Keras 3 does not track as TensorFlow does.
    module.seeds = [getattr(v, "value", v) for v in model.variables if id(v) not in weights]

    @tf.function(input_signature=takes, autograph=False)  # type: ignore[untyped-decorator]
    def serve(*values: Any) -> dict[str, Any]:
        result = model(_arranged(model, values), training=False)
        return dict(result) if isinstance(result, dict) else dict(zip(gives, tf.nest.flatten(result), strict=True))

    with quiet():
        tf.saved_model.save(module, str(folder), signatures={DEFAULT_SIGNATURE: serve})


def tflite_from_savedmodel(path: Path, name: str, batch_size: int) -> bytes:
    """The float `.tflite` file of a signature of the SavedModel folder ``path``, for batches of that size alone.

    Tensor names are the converter's, inputs and outputs are named by the signature.

    Raises:
        Unavailable: tensorflow is not installed.
        EngineError: another dimension than the batch is dynamic, or an operator is not TensorFlow Lite's.
    """
    tf = _import()
    module = tf.Module()
    module.loaded = _load(tf, path)
    call = module.loaded.signatures[name]
    takes = {}
    for spec in signatures(path)[name].inputs:
        if DYNAMIC in spec.shape[1:]:
            raise EngineError(
                f"{path}: input '{spec.name}' is {spec.shape}, -1 for a dynamic dimension; only the first may be, the "
                "batch: save the network with fixed shapes"
            )
        shape = (batch_size, *spec.shape[1:]) if spec.shape[:1] == (DYNAMIC,) else spec.shape
        takes[spec.name] = tf.TensorSpec(shape, spec.dtype, name=spec.name)
    module.serve = tf.function(lambda **values: call(**values), autograph=False)
    fixed = module.serve.get_concrete_function(**takes)
    with tempfile.TemporaryDirectory(prefix="trtforge-") as folder, quiet():
        tf.saved_model.save(module, folder, signatures={DEFAULT_SIGNATURE: fixed})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[DEFAULT_SIGNATURE])
        try:
            return bytes(converter.convert())
        except Exception as error:  # ConverterError is of no public module; whatever it is, it becomes one sentence.
            operators = sorted(set(re.findall(r"'tf\.(\w+)' op is neither a custom op nor a flex op", str(error))))
            what = f"has no {', '.join(operators)}" if operators else f"does not convert it ({_words(error)})"
            raise EngineError(
                f"{path}: TensorFlow Lite {what}; replace that in the network, or take onnxruntime"
            ) from error


def layer_times(engine: Path, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
    """It does not tell."""
    return LayerTimes()


class _SavedModelRunner:
    """Calls one signature."""

    def __init__(self, engine: Path, signature: str, num_threads: int) -> None:
        self._engine, self._signature, self._num_threads = engine, signature, num_threads
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()

    def __enter__(self) -> Runner:
        tf = _import()
        _set_threads(tf, self._num_threads)
        all_signatures = signatures(self._engine)
        name = self._signature or _only(all_signatures)
        if name not in all_signatures:
            raise EngineError(
                f"{self._engine}: has no signature '{name}', it has {', '.join(map(repr, all_signatures)) or 'none'}; "
                "name one of them, or save the model with signatures"
            )
        self._loaded = _load(tf, self._engine)  # kept: a signature does not keep its variables alive
        self._call = self._loaded.signatures[name]
        self._constant = tf.constant
        self.inputs, self.outputs = all_signatures[name].inputs, all_signatures[name].outputs
        self._check = FeedCheck(self._engine, self.inputs)
        self._error = tf.errors.OpError
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._call, self._loaded

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        self._check(feed)
        try:
            values = self._call(**{name: self._constant(array) for name, array in feed.items()})
        except self._error as error:
            raise EngineError(f"{self._engine}: TensorFlow failed ({_words(error)})") from error
        return {spec.name: values[spec.name].numpy() for spec in self.outputs}

    def device_ms(self) -> float | None:
        return None

    def facts(self) -> RunnerFacts:
        return RunnerFacts()


def _import() -> Any:
    """TensorFlow, quiet and on the CPU."""
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        with quiet(), left_out(NO_PARTS_OF_A_RUN):
            import tensorflow as tf

            tf.config.set_visible_devices([], "GPU")
    except ImportError as error:
        raise Unavailable(f"tensorflow: cannot be imported ({_words(error)}); {INSTALL}") from error
    tf.get_logger().setLevel("ERROR")
    return tf


def _load(tf: Any, path: Path) -> Any:
    try:
        with quiet():
            return tf.saved_model.load(str(path))
    except AttributeError as error:
        if "add_slot" not in str(error):
            raise
        minor = ".".join(tf.__version__.split(".")[:2])
        raise Unavailable(
            f"{path}: was saved by TensorFlow 2 together with its optimizer, reading it takes tf_keras; "
            f"pip install 'tf_keras=={minor}.*'"
        ) from error
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        raise EngineError(f"{path}: TensorFlow cannot load it ({_words(error)}); save the model again") from error


def _keras_model(tf: Any, source: Path, allow_lambda: bool) -> Any:
    """The Keras model, read by the Keras that wrote it."""
    if not source.is_file():
        raise EngineError(f"{source}: there is no such file; give a .keras or .h5 file")
    if is_hdf5(source) and not allow_lambda and (name := lambda_layer(source)):
        raise EngineError(
            f"{source}: layer '{name}' is a Lambda, which holds Python code that reading the file would run; if you "
            'trust the file, write [export] allow = ["Lambda"], or --allow Lambda'
        )
    keras = _keras_2(tf, source) if is_keras_2(source) else tf.keras
    try:
        with quiet():
            model = keras.models.load_model(str(source), compile=False, safe_mode=not allow_lambda)
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        if sentence := custom_code(source, str(error)):
            raise EngineError(sentence) from error
        raise EngineError(
            f"{source}: Keras {keras.__version__} cannot read it ({_words(error)}); save it again, or give a SavedModel"
        ) from error
    if not getattr(model, "inputs", None):
        raise EngineError(f"{source}: the model has no input shape; call it once on data before you save it")
    return model


def _arranged(model: Any, values: tuple[Any, ...]) -> Any:
    """The values of ``model.inputs`` in the form in which the model was written: one tensor, a list or a dictionary."""
    form = getattr(model, "input", None)  # a Sequential has none
    if isinstance(form, dict):
        by_name = {tensor.name: value for tensor, value in zip(model.inputs, values, strict=True)}
        return {key: by_name[tensor.name] for key, tensor in form.items()}
    return list(values) if isinstance(form, (list, tuple)) else values[0]


def _keras_2(tf: Any, source: Path) -> Any:
    try:
        with quiet():
            import tf_keras
    except ImportError as error:
        minor = ".".join(tf.__version__.split(".")[:2])
        raise Unavailable(
            f"{source}: was written by Keras 2, reading it takes tf_keras; pip install 'tf_keras=={minor}.*'"
        ) from error
    return tf_keras


def _set_threads(tf: Any, num_threads: int) -> None:
    """TensorFlow's threads are set once for the whole process."""
    threading = tf.config.threading
    if threading.get_intra_op_parallelism_threads() == num_threads:
        return
    try:
        threading.set_intra_op_parallelism_threads(num_threads)
        threading.set_inter_op_parallelism_threads(1 if num_threads else 0)
    except RuntimeError as error:
        raise EngineError(
            f"tensorflow: {num_threads} threads are requested, this process already runs it with "
            f"{threading.get_intra_op_parallelism_threads() or 'its default'}; use one number in one process"
        ) from error


def _only(all_signatures: Mapping[str, Signature]) -> str:
    return next(iter(all_signatures)) if len(all_signatures) == 1 else DEFAULT_SIGNATURE


def _specs(tensors: Mapping[str, Any], path: Path) -> tuple[TensorSpec, ...]:
    """Sorted by name: the protocol buffer's map has no order of its own."""
    import tensorflow as tf

    specs = []
    for name in sorted(tensors):
        info = tensors[name]
        if info.tensor_shape.unknown_rank:
            raise EngineError(f"{path}: '{name}' has no known number of dimensions; save it with a fixed rank")
        shape = tuple(DYNAMIC if dim.size < 0 else int(dim.size) for dim in info.tensor_shape.dim)
        specs.append(TensorSpec(name, np.dtype(tf.dtypes.as_dtype(info.dtype).as_numpy_dtype).name, shape))
    return tuple(specs)


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else text[:400] + " …"
