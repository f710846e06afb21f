"""A C++17 program with CMake for one engine: its tensors, its preprocessing, its digest, its runtime.

All that is of the engine stands in ``engine_config.cpp``, which is written here; the other sources are the same for
every engine, and lie in ``cpp_program/``. The engine comes first and ``engine_config.cpp`` last, each by one rename: a
program that was built before refuses the new engine by its SHA-256, until it is built again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.data.preprocess import Preprocess
from calibration.data.source import DYNAMIC
from engines.contract import TensorSpec
from engines.plugin_library import plugins_in, sha256_of_library
from engines.signing.envelope import PublicKey
from engines.signing.trust import ENDING, sha256_of, signature_of
from pipeline.delivery.contents import Delivered, make_folder
from pipeline.delivery.cpp_text import literal, preprocess_lines, shape_literal, type_literal
from pipeline.errors import ConfigError
from pipeline.output import put, work_folder
from pipeline.refitting.refit import STRIPPED

CONFIG = "engine_config.cpp"
WRITTEN = "// Written by `trtforge deliver`"
"""How that begins."""
EXAMPLE = "main.cpp"
"""What users change: it is written once."""
SOURCES = Path(__file__).with_name("cpp_program")
RUNTIME_SOURCES = SOURCES / "runtimes"
COMMON = (
    "CMakeLists.txt", "engine_config.hpp", "json.cpp", "json.hpp", "model.cpp", "model.hpp", "npy.cpp", "npy.hpp",
    "preprocess.cpp", "preprocess.hpp", "resize.cpp", "resize.hpp", "signature.cpp", "signature.hpp", "tensor.cpp",
    "tensor.hpp",
)  # fmt: skip
RUNTIME = "runtime.cmake"


@dataclass(frozen=True)
class CppRuntime:
    """What of the sources runs the engines of a backend."""

    engine: str
    """The name of the engine's file."""
    cmake: str
    """What is written as ``runtime.cmake``."""
    sources: tuple[str, ...]


NVINFER = ("cuda_memory.hpp", "nvinfer.cmake", "nvinfer_library.cpp", "nvinfer_library.hpp", "runtime_nvinfer.cpp")
RUNTIMES: Mapping[str, CppRuntime] = {
    "onnxruntime": CppRuntime("model.onnx", "runtime_onnxruntime.cmake", ("runtime_onnxruntime.cpp",)),
    "tensorrt": CppRuntime("engine.plan", "runtime_tensorrt.cmake", NVINFER),
    "tensorrt_rtx": CppRuntime("engine.rtx.plan", "runtime_tensorrt_rtx.cmake", NVINFER),
}
"""By backend."""


@dataclass(frozen=True)
class CppProgram:
    """What is written: the engine, what it needs beside it, and what is done to its samples."""

    engine: Delivered
    runtime: CppRuntime
    preprocess: Preprocess
    plugins: tuple[Path, ...]
    trusted: tuple[PublicKey, ...]
    """Keys of which one must have signed the engine; empty: none is asked for."""


def cpp_program(
    engine: Delivered, preprocess: Preprocess, libraries: Sequence[Path], trusted: Sequence[PublicKey]
) -> CppProgram:
    """What is to be delivered, checked.

    Args:
        engine: what is run.
        preprocess: of the plan that it was built by.
        libraries: that are named for TensorRT's plugins.
        trusted: keys that the machine trusts.

    Raises:
        ConfigError: there is no program for this backend, the engine has no weights, a library of its plugins is not
            among those named, or preprocessing does not make what the engine takes.
    """
    if engine.backend not in RUNTIMES:
        raise ConfigError(
            f"{engine.name}: is an engine of {engine.backend}, and C++ programs are written for those of "
            f"{', '.join(RUNTIMES)}; gate one of these"
        )
    if engine.options.get("weights") == STRIPPED:
        raise ConfigError(f"{engine.name}: has no weights, and the program does not fill them in; refit it first")
    check_preprocess(engine, preprocess)
    for spec in (*engine.inputs, *engine.outputs):
        type_literal(spec)
    plugins = tuple(_library(engine, entry, libraries) for entry in _plugins(engine))
    return CppProgram(engine, RUNTIMES[engine.backend], preprocess, plugins, tuple(trusted))


def deliver_to_cpp(program: CppProgram, folder: Path) -> Path:
    """Write it all, the engine first and its configuration last; the configuration's path is returned.

    ``main.cpp`` is written where there is none: it is an example, which users change.

    Raises:
        ConfigError: the folder cannot be written, or files of somebody else in it would be replaced.
        Unavailable: the disk is full.
    """
    files = list(_files(program))
    make_folder(folder, [*(name for _, name in files), CONFIG])
    _check_replaceable(files, folder)
    with work_folder(folder / CONFIG) as work:
        for source, name in files:
            if _stays(source, folder / name):
                continue
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, work / name)
            put(work / name, folder / name, work)
        (work / CONFIG).write_text(config_text(program), encoding="utf-8")
        put(work / CONFIG, folder / CONFIG, work)
    return folder / CONFIG


def _check_replaceable(files: Sequence[tuple[Path, str]], folder: Path) -> None:
    """That what would be replaced is of a program that was delivered there before, also of one that was not finished.

    Raises:
        ConfigError: it is not: a model or sources of somebody's have the names of ours.
    """
    config = folder / CONFIG
    was_killed = any(folder.glob(f".{CONFIG}.????????"))  # As `work_folder` names where it works.
    if was_killed or (config.is_file() and config.read_bytes().startswith(WRITTEN.encode())):
        return
    targets = [config, *(folder / name for source, name in files if not _stays(source, folder / name))]
    if in_the_way := [target for target in targets if target.exists()]:
        raise ConfigError(
            f"{in_the_way[0]}: is not of a program that was delivered there, and would be replaced; name a folder of "
            "its own"
        )


def _stays(source: Path, target: Path) -> bool:
    """Whether nothing is written: it is the same already, so that nothing is compiled again, or it is the user's."""
    return target.is_file() and (target.name == EXAMPLE or sha256_of(target) == sha256_of(source))


def is_changed(folder: Path) -> bool:
    """Whether the example there is another than the one that would be written."""
    example = folder / EXAMPLE
    return example.is_file() and example.read_bytes() != (SOURCES / EXAMPLE).read_bytes()


def config_text(program: CppProgram) -> str:
    """The text of engine_config.cpp."""
    return "\n".join(_config(program)) + "\n"


def check_preprocess(engine: Delivered, preprocess: Preprocess) -> None:
    """That what preprocessing makes is what the engine takes, as far as both tell.

    Raises:
        ConfigError: naming the option and the input.
    """
    names = {spec.name for spec in engine.inputs}
    if unknown := [name for name in preprocess.inputs if name not in names]:
        raise ConfigError(
            f"[data.preprocess] inputs: '{unknown[0]}' is none of {engine.name}, which takes {', '.join(sorted(names))}"
            "; give the plan that it was built by"
        )
    done_to = _preprocessed(engine, preprocess)
    for spec in engine.inputs:
        if spec.name in done_to and not _makes(preprocess, spec):
            raise ConfigError(
                f"[data.preprocess]: {preprocess.describe()} does not make what input '{spec.name}' of {engine.name} "
                f"takes, {spec.dtype} {spec.shape}; give the plan that it was built by"
            )


def _makes(preprocess: Preprocess, spec: TensorSpec) -> bool:
    """Whether it may make arrays of this type and shape of some samples."""
    is_normalized = bool(preprocess.scale != 1.0 or preprocess.mean or preprocess.std)
    dtype = preprocess.dtype if preprocess.dtype != "keep" else "float32" if is_normalized else spec.dtype
    if dtype != spec.dtype:
        return False
    takes_pictures = bool(preprocess.resize or preprocess.crop or preprocess.layout != "keep")
    if not takes_pictures and preprocess.channels == "keep":
        return True
    sizes = _picture(preprocess)
    return len(spec.shape) == 4 and all(
        DYNAMIC in (size, taken) or size == taken for size, taken in zip(sizes, spec.shape[1:])
    )


def _picture(preprocess: Preprocess) -> tuple[int, int, int]:
    """The sizes of what is made, without the batch and in the order of the layout."""
    last = preprocess.crop or (preprocess.resize if len(preprocess.resize) == 2 else (DYNAMIC, DYNAMIC))
    channels = {"keep": DYNAMIC, "gray": 1}.get(preprocess.channels, 3)
    return (channels, last[0], last[1]) if preprocess.layout == "nchw" else (last[0], last[1], channels)


def _preprocessed(engine: Delivered, preprocess: Preprocess) -> tuple[str, ...]:
    """Names of the inputs that it is done to; empty where nothing is done."""
    if preprocess.describe() == Preprocess().describe():
        return ()
    return tuple(spec.name for spec in engine.inputs if spec.name in (preprocess.inputs or (spec.name,)))


def _plugins(engine: Delivered) -> list[Mapping[str, object]]:
    """What the record has of libraries that the engine has no copy of in it."""
    return [entry for entry in plugins_in({"options": engine.options}) if not entry.get("is_inside")]


def _library(engine: Delivered, entry: Mapping[str, object], libraries: Sequence[Path]) -> Path:
    """The very file, for whatever processor it is: it goes to the device with the engine."""
    alike = [file for file in libraries if file.name == entry["name"]]
    for file in alike:
        if sha256_of_library(file) == entry["sha256"]:
            return file
    if alike:
        raise ConfigError(
            f"{alike[0]}: is another file than {engine.name} was built with (SHA-256 differs); name that one in "
            "[build] plugins"
        )
    raise ConfigError(
        f"{engine.name}: was built with the plugins of {entry['name']}, which is not there; name it in [build] plugins"
    )


def _files(program: CppProgram) -> Iterator[tuple[Path, str]]:
    """What is copied, and under which names, in this order."""
    engine, name = program.engine, program.runtime.engine
    yield engine.path, name
    yield from ((weights, place) for place, weights in _weights(engine).items())
    yield from ((file, file.name) for file in program.plugins)
    signature = signature_of(engine.path) if program.trusted else None
    if signature is not None:
        yield signature, f"{name}{ENDING}"
    yield RUNTIME_SOURCES / program.runtime.cmake, RUNTIME
    yield from ((RUNTIME_SOURCES / source, source) for source in program.runtime.sources)
    yield from ((SOURCES / source, source) for source in (*COMMON, EXAMPLE))


def _weights(engine: Delivered) -> dict[str, Path]:
    """The files of weights, by their place beside the engine's."""
    _, *files = engine.files()
    return {file.relative_to(engine.path.parent).as_posix(): file for file in files}


def _config(program: CppProgram) -> Iterator[str]:
    engine, options = program.engine, program.engine.options
    yield f"{WRITTEN} of baseline '{_line(engine.name)}': what the program knows of its engine."
    yield '#include "engine_config.hpp"'
    yield ""
    yield "namespace trtforge {"
    yield "namespace {"
    yield ""
    yield "EngineConfig written() {"
    yield "  EngineConfig config;"
    yield f"  config.name = {literal(engine.name)};"
    yield f"  config.engine = {literal(program.runtime.engine)};"
    yield f"  config.sha256 = {literal(sha256_of(engine.path))};"
    for place, file in _weights(engine).items():
        yield f"  config.weights.push_back({{{literal(place)}, {literal(sha256_of(file))}}});"
    for file in program.plugins:
        yield f"  config.plugins.push_back({{{literal(file.name)}, {literal(sha256_of(file))}}});"
    for key in program.trusted:
        yield f"  config.trusted_keys.push_back({{{', '.join(f'0x{byte:02x}' for byte in key.raw)}}});"
    for field, specs in (("inputs", engine.inputs), ("outputs", engine.outputs)):
        for spec in specs:
            values = f"{literal(spec.name)}, {type_literal(spec)}, {shape_literal(spec.shape)}"
            yield f"  config.{field}.push_back({{{values}}});"
    for name in _preprocessed(engine, program.preprocess):
        yield f"  config.preprocessed.push_back({literal(name)});"
    yield from (f"  config.preprocess.{line};" for line in preprocess_lines(program.preprocess))
    yield f"  config.dla_core = {int(options.get('dla_core', -1))};"
    yield f"  config.cuda_graph = {str(bool(options.get('cuda_graph', True))).lower()};"
    yield f"  config.version_compatible = {str(bool(options.get('version_compatible', False))).lower()};"
    yield "  return config;"
    yield "}"
    yield ""
    yield "}  // namespace"
    yield ""
    yield "const EngineConfig& engine_config() {"
    yield "  static const EngineConfig config = written();"
    yield "  return config;"
    yield "}"
    yield ""
    yield "}  // namespace trtforge"


def _line(text: str) -> str:
    """For a comment of one line."""
    return " ".join(text.split())
