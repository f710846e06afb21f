"""What is signed is asked before an engine is loaded: a real engine of TensorRT for RTX, as far as without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engines.backends import onnxruntime_tensorrt, tensorrt, tensorrt_rtx
from engines.errors import NotTrusted
from engines.nvinfer.loading import EngineLoader
from engines.nvinfer.runner import NvinferRunner, PlanChecks
from engines.signing import trust
from engines.signing.envelope import new_key, sealed
from engines.signing.trust import Signed, check_bytes, check_file, expected, record_digest, sha256_of

pytest.importorskip("securesystemslib")
pytest.importorskip("cryptography")

RECORD = {"backend": "tensorrt_rtx", "precision": "fp32", "options": {}, "versions": {}}


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private key, whose public half is the one that is trusted."""
    monkeypatch.setenv(trust.TRUSTED, str(new_key(tmp_path / "release.key")))
    return tmp_path / "release.key"


def engine_in(folder: Path) -> Path:
    engine = folder / "engine.plan"
    engine.write_bytes(b"what a builder made")
    (folder / "record.json").write_text(json.dumps(RECORD))
    return engine


def statement(engine: Path, record: dict[str, Any] | None) -> dict[str, Any]:
    subjects = [{"name": engine.name, "digest": {"sha256": sha256_of(engine)}}]
    if record is not None:
        subjects.append({"name": "record", "digest": {"sha256": record_digest(record)}})
    return {"_type": trust.STATEMENT_TYPE, "subject": subjects}


def signed(engine: Path, key: Path, record: dict[str, Any] | None = RECORD) -> Path:
    file = trust.beside_of(engine)
    file.write_text(json.dumps(sealed(statement(engine, record), key)))
    return file


@pytest.mark.parametrize("runtime", [tensorrt, tensorrt_rtx])
def test_an_engine_without_a_signature_is_not_loaded(runtime: Any, key: Path, tmp_path: Path) -> None:
    engine = engine_in(tmp_path)
    with pytest.raises(
        NotTrusted, match=r"engine.plan: is not signed, a signature by one of .*release.pub is expected"
    ):
        runtime.load(engine, num_threads=0)
    with pytest.raises(NotTrusted, match="is not signed"):
        runtime.layer_times(engine, {}, 1)


def test_without_keys_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(trust.TRUSTED, raising=False)
    assert expected(engine_in(tmp_path)) == trust.UNSIGNED
    check_bytes(tmp_path / "engine.plan", b"anything", trust.UNSIGNED)


def test_the_bytes_that_are_loaded_are_the_ones_that_are_checked(key: Path, tmp_path: Path) -> None:
    """The file is exchanged after the signature was read: the runner checks what it read itself."""
    engine = engine_in(tmp_path)
    signed(engine, key)
    promise = expected(engine)
    engine.write_bytes(b"what an attacker made")

    class Gpu:
        def __enter__(self) -> Gpu:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def free_mib(self) -> float:
            return 1.0

    class Library:
        __name__, __version__ = "tensorrt", "10.3"
        Logger = type("Logger", (), {"__init__": lambda self, *_: None, "VERBOSE": 4})
        ILogger = type("ILogger", (), {"__init__": lambda self: None, "Severity": None})

        @staticmethod
        def init_libnvinfer_plugins(*_: object) -> bool:
            return True

        @staticmethod
        def Runtime(_log: object) -> Any:  # noqa: N802
            class Runtime:
                @staticmethod
                def deserialize_cuda_engine(_data: bytes) -> None:
                    pytest.fail("an attacker's bytes were deserialized")

            return Runtime()

    checks = PlanChecks(of_data=lambda data: check_bytes(engine, data, promise))
    with pytest.raises(NotTrusted, match=r"is not what was signed \(SHA-256 differs\); it was not loaded"):
        NvinferRunner(engine, Library, Gpu, checks).__enter__()  # type: ignore[arg-type]


def test_a_record_that_was_changed_is_not_believed(key: Path, tmp_path: Path) -> None:
    engine = engine_in(tmp_path)
    signed(engine, key)
    lying = {**RECORD, "options": {"version_compatible": True}}
    (tmp_path / "record.json").write_text(json.dumps(lying))
    with (
        pytest.raises(NotTrusted, match="the record beside it is not what was signed with it"),
        tensorrt_rtx.load(engine, num_threads=0),
    ):
        pass
    signed(engine, key, record=None)
    with pytest.raises(NotTrusted, match="the record beside it"), tensorrt_rtx.load(engine, num_threads=0):
        pass


def test_the_record_that_is_gone_by_is_the_one_that_is_checked(key: Path, tmp_path: Path) -> None:
    """It is exchanged after it was compared with the signature: while versions are asked."""
    engine = tmp_path / "engine.plan"
    engine.write_bytes(b"vtrt" + bytes(20) + bytes((1, 7, 1, 116)))
    (tmp_path / "record.json").write_text(json.dumps(RECORD))
    signed(engine, key)

    def versions() -> dict[str, str]:
        (tmp_path / "record.json").write_text(json.dumps({**RECORD, "options": {"plugins": []}}))
        return {"tensorrt_rtx": "1.7.1.116"}

    loader = EngineLoader("tensorrt_rtx", lambda: pytest.fail("nothing is loaded yet"), versions)
    assert loader.load(engine, num_threads=0)._checks.preflight(engine) == RECORD


def test_an_engine_that_is_a_folder_is_signed_with_all_its_files(key: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine.session"
    (engine / "engines").mkdir(parents=True)
    (engine / "session.json").write_text("{}")
    (engine / "engines/part.engine").write_bytes(b"compiled")
    with pytest.raises(NotTrusted, match=r"engine.session: is not signed"):
        onnxruntime_tensorrt.load(engine, num_threads=0)
    signed(engine, key, record=None)
    onnxruntime_tensorrt.load(engine, num_threads=0)
    (engine / "engines/part.engine").write_bytes(b"another")
    with pytest.raises(NotTrusted, match=r"engine.session: is not what was signed \(SHA-256 differs\)"):
        onnxruntime_tensorrt.load(engine, num_threads=0)
    (engine / "engines/part.engine").rename(engine / "part.engine")
    with pytest.raises(NotTrusted, match="is not what was signed"):
        check_file(engine)


def test_what_cannot_be_compared_is_refused_and_not_waited_for(key: Path, tmp_path: Path) -> None:
    """Files behind a link to a folder would be in no digest; reading a pipe ends when somebody writes into it."""
    engine = tmp_path / "engine.session"
    engine.mkdir()
    (engine / "model.onnx").write_text("a model")
    signed(engine, key, record=None)
    check_file(engine)
    (tmp_path / "elsewhere").mkdir()
    (engine / "engines").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotTrusted, match=r"holds a link to a folder \(engines\); put the folder itself there"):
        check_file(engine)
    (engine / "engines").unlink()
    os.mkfifo(engine / "pipe")
    with pytest.raises(NotTrusted, match="pipe: is no regular file"):
        check_file(engine)


@pytest.mark.parametrize("text", [":", "::"])
def test_a_list_of_no_keys_is_not_no_list(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trust.TRUSTED, text)
    with pytest.raises(NotTrusted, match=f"TRTFORGE_TRUSTED: is '{text}', which names no key"):
        expected(engine_in(tmp_path))


def test_the_digest_of_a_folder_is_that_of_what_sha256sum_says(tmp_path: Path) -> None:
    (tmp_path / "f/b").mkdir(parents=True)
    for name in ("f/z", "f/b/a", "f/a"):
        (tmp_path / name).write_text(name)
    command = "find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path / "f", capture_output=True, text=True, check=True)
    assert sha256_of(tmp_path / "f") == done.stdout.split()[0]


def test_a_record_counts_by_what_it_says(tmp_path: Path) -> None:
    more = {"sha256": "12", "replaced": {"backend": "x"}, **dict(reversed(RECORD.items()))}
    assert record_digest(more) == record_digest(RECORD)
    assert record_digest({**RECORD, "precision": "int8"}) != record_digest(RECORD)


def test_the_signature_of_another_engine(key: Path, tmp_path: Path) -> None:
    engine = engine_in(tmp_path)
    signed(engine, key)
    assert expected(engine) == Signed(sha256_of(engine), record_digest(RECORD), str(key.with_suffix(".pub")))
    (tmp_path / "other").mkdir()
    other = engine_in(tmp_path / "other")
    other.write_bytes(b"another")
    trust.beside_of(other).write_bytes(trust.beside_of(engine).read_bytes())
    assert expected(other).sha256 != sha256_of(other), "which the runner sees in what it read"


@pytest.mark.parametrize("subject", [None, [], [1], [{"name": "x"}], [{"name": "x", "digest": {}}], "x", {"a": 1}])
def test_statements_of_another_kind(key: Path, tmp_path: Path, subject: object) -> None:
    engine = engine_in(tmp_path)
    statement_of_other = {"_type": trust.STATEMENT_TYPE, "subject": subject}
    trust.beside_of(engine).write_text(json.dumps(sealed(statement_of_other, key)))
    with pytest.raises(NotTrusted, match="is a statement of another kind"):
        expected(engine)


def test_the_signature_in_a_store(key: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store/build/1234"
    folder.mkdir(parents=True)
    engine = engine_in(folder)
    (tmp_path / "store/signatures").mkdir()
    file = signed(engine, key)
    file.rename(tmp_path / "store/signatures" / f"{sha256_of(engine)}.dsse.json")
    assert expected(engine).sha256 == sha256_of(engine)
    engine.write_bytes(b"another")
    with pytest.raises(NotTrusted, match="is not signed"):
        expected(engine)
