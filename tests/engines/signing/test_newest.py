"""An older engine that is signed as rightly does not take the place of a newer one, until its owner signs it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.backends import tensorrt_rtx
from engines.errors import NotTrusted
from engines.signing import newest, trust
from engines.signing.envelope import new_key, sealed
from engines.signing.newest import check_newest, signed_on
from engines.signing.trust import expected, sha256_of

pytest.importorskip("securesystemslib")
pytest.importorskip("cryptography")

MONDAY, TUESDAY, FRIDAY = "2026-11-23T05:00:00Z", "2026-11-24T05:00:00Z", "2026-11-27T05:00:00Z"


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(trust.TRUSTED, str(new_key(tmp_path / "release.key")))
    monkeypatch.setenv(newest.NEWEST, str(tmp_path / "state/newest.json"))
    return tmp_path / "release.key"


def put(engine: Path, content: bytes, when: str, key: Path) -> Path:
    """An engine with a signature of that time, where another one may have been."""
    engine.write_bytes(content)
    statement = {
        "_type": trust.STATEMENT_TYPE,
        "subject": [{"name": engine.name, "digest": {"sha256": sha256_of(engine)}}],
        "predicate": {"runDetails": {"metadata": {"finishedOn": when}}} if when else {},
    }
    trust.beside_of(engine).write_text(json.dumps(sealed(statement, key)))
    return engine


def test_an_older_night_is_refused_where_a_newer_one_was_loaded(key: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine.plan"
    assert expected(put(engine, b"monday", MONDAY, key)).signed_on == MONDAY
    expected(put(engine, b"tuesday", TUESDAY, key))
    expected(put(engine, b"tuesday", TUESDAY, key))
    with pytest.raises(
        NotTrusted,
        match=rf"engine.plan: was signed {MONDAY}, and one that was signed {TUESDAY} was loaded from this place before "
        r"\(.*newest.json\); it was not loaded: copy the newest, or sign this one again",
    ):
        tensorrt_rtx.load(put(engine, b"monday", MONDAY, key), num_threads=0)
    expected(put(tmp_path / "other.plan", b"monday", MONDAY, key))  # Another place is another engine's.


def test_its_owner_signs_the_older_one_again(key: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine.plan"
    expected(put(engine, b"tuesday", TUESDAY, key))
    assert expected(put(engine, b"monday", FRIDAY, key)).signed_on == FRIDAY
    with pytest.raises(NotTrusted, match=f"was signed {TUESDAY}, and one that was signed {FRIDAY}"):
        expected(put(engine, b"tuesday", TUESDAY, key))


def test_the_same_engine_with_its_first_signature_is_the_same_engine(key: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine.plan"
    expected(put(engine, b"tuesday", FRIDAY, key))
    expected(put(engine, b"tuesday", TUESDAY, key))
    with pytest.raises(NotTrusted, match=f"one that was signed {FRIDAY}"):
        expected(put(engine, b"monday", MONDAY, key))


def test_a_signature_that_says_no_time_is_the_oldest(key: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine.plan"
    expected(put(engine, b"old", "", key))
    expected(put(engine, b"monday", MONDAY, key))
    with pytest.raises(NotTrusted, match="was signed at no time that it says, and one that was signed 2026"):
        expected(put(engine, b"old", "", key))
    assert signed_on({"predicate": {"runDetails": []}}) == ""


def test_nothing_is_remembered_where_nothing_is_named(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(newest.NEWEST)
    engine = tmp_path / "engine.plan"
    expected(put(engine, b"tuesday", TUESDAY, key))
    expected(put(engine, b"monday", MONDAY, key))
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 2, "engines": {}}', '{"schema_version": 1}'])
def test_a_file_that_is_damaged_is_one_sentence(key: Path, tmp_path: Path, text: str) -> None:
    """An attacker who cuts it off gets nothing loaded."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state/newest.json").write_text(text)
    with pytest.raises(NotTrusted, match=r"newest.json: cannot be read as what TRTFORGE_NEWEST names .*put it b"):
        check_newest(tmp_path / "engine.plan", "0" * 64, MONDAY)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(newest.NEWEST, str(tmp_path / "file/newest.json"))
    with pytest.raises(NotTrusted, match=r"TRTFORGE_NEWEST: .*newest.json cannot be read and written \("):
        check_newest(tmp_path / "engine.plan", "0" * 64, MONDAY)
