"""`trtforge deliver --to cpp`: what is written, what is refused; programs are compiled in the files beside this one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from calibration.data.preprocess import Preprocess
from engines import BACKENDS
from engines.contract import TensorSpec
from engines.signing.envelope import PublicKey
from pipeline.delivery.cpp import (
    COMMON,
    EXAMPLE,
    RUNTIMES,
    SOURCES,
    config_text,
    cpp_program,
    deliver_to_cpp,
    is_changed,
)
from pipeline.delivery.cpp_text import TYPES, literal, preprocess_lines
from pipeline.delivery.triton import TYPES as TRITON_TYPES
from pipeline.errors import ConfigError
from pipeline.output import put
from tests.pipeline.delivery.engines import engine

IMAGENET: dict[str, Any] = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
STEPS = Preprocess(resize=(256,), crop=(224, 224), channels="bgr", layout="nchw", **IMAGENET)


def test_the_configuration_says_what_the_record_says(tmp_path: Path) -> None:
    delivered = engine(tmp_path, options={"cuda_graph": False, "version_compatible": True, "dla_core": 1})
    text = config_text(cpp_program(delivered, STEPS, (), [PublicKey(tmp_path / "release.pub", bytes(range(32)))]))
    digest = hashlib.sha256(delivered.path.read_bytes()).hexdigest()
    lines = [line.strip() for line in text.splitlines() if line.startswith("  config.")]
    key = ", ".join(f"0x{byte:02x}" for byte in range(32))
    assert lines == [
        'config.name = "resnet.orin";',
        'config.engine = "engine.plan";',
        f'config.sha256 = "{digest}";',
        f"config.trusted_keys.push_back({{{key}}});",
        'config.inputs.push_back({"image", Type::kFloat32, {-1, 3, 224, 224}});',
        'config.outputs.push_back({"scores", Type::kFloat32, {-1, 1000}});',
        'config.preprocessed.push_back("image");',
        "config.preprocess.resize = {256};",
        "config.preprocess.crop = {224, 224};",
        "config.preprocess.interpolation = Interpolation::kBilinear;",
        "config.preprocess.channels = Channels::kBgr;",
        "config.preprocess.scale = 0.003921569f;",
        "config.preprocess.mean = {0.485f, 0.456f, 0.406f};",
        "config.preprocess.std = {0.229f, 0.224f, 0.225f};",
        "config.preprocess.is_nchw = true;",
        "config.dla_core = 1;",
        "config.cuda_graph = false;",
        "config.version_compatible = true;",
    ]


def test_the_engine_comes_first_and_the_configuration_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def noted(made: Path, target: Path, aside: Path) -> None:
        names.append(target.name)
        put(made, target, aside)

    monkeypatch.setattr("pipeline.delivery.cpp.put", noted)
    folder = tmp_path / "program"
    program = cpp_program(engine(tmp_path), STEPS, (), ())
    assert deliver_to_cpp(program, folder) == folder / "engine_config.cpp"
    assert (names[0], names[-1]) == ("engine.plan", "engine_config.cpp")
    assert {file.name for file in folder.iterdir()} == set(names)
    sources = {"runtime.cmake", *RUNTIMES["tensorrt"].sources, *COMMON, EXAMPLE}
    assert set(names[1:-1]) == sources
    names.clear()
    deliver_to_cpp(program, folder)
    assert names == ["engine_config.cpp"], "what is the same stays, so that nothing is compiled again"


def test_an_example_that_was_changed_stays(tmp_path: Path) -> None:
    program, folder = cpp_program(engine(tmp_path), STEPS, (), ()), tmp_path / "program"
    deliver_to_cpp(program, folder)
    assert not is_changed(folder)
    (folder / EXAMPLE).write_text("int main() {}\n")
    (folder / "model.cpp").write_text("")
    deliver_to_cpp(program, folder)
    assert is_changed(folder)
    assert (folder / EXAMPLE).read_text() == "int main() {}\n"
    assert (folder / "model.cpp").read_bytes() == (SOURCES / "model.cpp").read_bytes()


@pytest.mark.parametrize("name", ["engine.plan", "CMakeLists.txt", "tensor.cpp", "engine_config.cpp"])
def test_files_of_somebody_else_are_not_replaced(tmp_path: Path, name: str) -> None:
    folder, program = tmp_path / "work", cpp_program(engine(tmp_path), STEPS, (), ())
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"{name}: is not of a program that was delivered there"):
        deliver_to_cpp(program, folder)
    assert {file.name: file.read_text() for file in folder.iterdir()} == {name: "mine"}
    (folder / ".engine_config.cpp.abcd1234").mkdir()
    deliver_to_cpp(program, folder)
    assert not (folder / ".engine_config.cpp.abcd1234").exists(), "a delivery that was killed there is finished"


@pytest.mark.parametrize("name", ["engine.plan", "tensor.cpp", EXAMPLE, "engine_config.cpp"])
@pytest.mark.parametrize("is_delivered", [False, True])
def test_a_folder_with_the_name_of_a_file_is_refused(tmp_path: Path, name: str, is_delivered: bool) -> None:
    folder, program = tmp_path / "work", cpp_program(engine(tmp_path), STEPS, (), ())
    if is_delivered:
        deliver_to_cpp(program, folder)
        (folder / name).unlink()
    (folder / name).mkdir(parents=True)
    (folder / name / "mine").write_text("mine")
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigError, match=f"{name}: is a folder, and a file of this name is written there; move it"):
        deliver_to_cpp(program, folder)
    assert sorted(folder.rglob("*")) == before


def test_every_source_is_written_by_some_program() -> None:
    runtimes = {name for each in RUNTIMES.values() for name in (each.cmake, *each.sources)}
    files = {file.name for file in SOURCES.rglob("*") if file.is_file()}
    assert files == {*COMMON, EXAMPLE, *runtimes}


def test_the_sources_are_short_and_plain() -> None:
    for file in SOURCES.rglob("*.*"):
        lines = file.read_text(encoding="ascii").splitlines()
        assert len(lines) <= 400, file
        assert max(map(len, lines)) <= 120, file


def test_each_backend_has_a_program_or_a_refusal(tmp_path: Path) -> None:
    for name in BACKENDS:
        if name in RUNTIMES:
            assert cpp_program(engine(tmp_path, backend=name), STEPS, (), ()).runtime == RUNTIMES[name]
            continue
        with pytest.raises(ConfigError, match=rf"is an engine of {name}, and C\+\+ programs are written for those of"):
            cpp_program(engine(tmp_path, backend=name), STEPS, (), ())


@pytest.mark.parametrize(
    ("changes", "steps", "words"),
    [
        ({"options": {"weights": "stripped"}}, STEPS, "has no weights"),
        ({"inputs": (TensorSpec("image", "bfloat16", (1, 3)),)}, Preprocess(), "of type bfloat16, which the C"),
        ({}, Preprocess(resize=(225, 224), layout="nchw"), "resize to 225×224 .* does not make what input 'image'"),
        ({}, Preprocess(resize=(224, 224)), "does not make what input 'image' of resnet.orin takes, float32"),
        ({}, Preprocess(channels="gray", layout="nchw"), "channels gray, layout nchw does not make"),
        ({}, Preprocess(dtype="uint8"), "dtype uint8 does not make"),
        ({"inputs": (TensorSpec("image", "uint8", (-1, 224, 224, 3)),)}, Preprocess(scale=2.0), "× 2 does not make"),
        ({"inputs": (TensorSpec("image", "float32", (-1, 9)),)}, Preprocess(crop=(3, 3)), "does not make"),
        ({}, Preprocess(inputs=("picture",)), "inputs: 'picture' is none of resnet.orin, which takes image"),
        (
            {"options": {"plugins": [{"name": "liba.so", "sha256": "00"}]}},
            STEPS,
            "the plugins of liba.so, which is not",
        ),
    ],
)
def test_what_makes_no_program_is_refused(
    changes: dict[str, Any], steps: Preprocess, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        cpp_program(engine(tmp_path, **changes), steps, (), ())


def test_another_library_of_plugins_is_refused(tmp_path: Path) -> None:
    library = tmp_path / "liba.so"
    library.write_bytes(b"another")
    options = {"plugins": [{"name": "liba.so", "sha256": "00"}]}
    with pytest.raises(
        ConfigError, match=r"liba.so: is another file than resnet.orin was built with \(SHA-256 differs"
    ):
        cpp_program(engine(tmp_path, options=options), STEPS, [library], ())


def test_numbers_beyond_float32_are_refused() -> None:
    for steps in (Preprocess(scale=1e-60), Preprocess(mean=(1e60,)), Preprocess(std=(1e-60,))):
        with pytest.raises(ConfigError, match="is beyond float32"):
            list(preprocess_lines(steps))


def test_an_input_that_is_not_named_is_not_preprocessed(tmp_path: Path) -> None:
    inputs = (TensorSpec("image", "float32", (-1, 3, 8, 8)), TensorSpec("mask", "uint8", (-1, 5)))
    steps = Preprocess(scale=2.0, inputs=("image",))
    text = config_text(cpp_program(engine(tmp_path, inputs=inputs), steps, (), ()))
    assert 'preprocessed.push_back("image")' in text
    assert 'preprocessed.push_back("mask")' not in text


def test_names_are_written_byte_by_byte_where_they_are_odd() -> None:
    assert literal('a"b\\?\n') == '"a\\042b\\134\\077\\012"'
    assert literal("é/x:0") == '"\\303\\251/x:0"'


def test_the_types_are_those_that_others_deliver_too() -> None:
    assert set(TYPES) == set(TRITON_TYPES) - {"bfloat16"}
