"""Keys and envelopes: what openssl makes and reads, what is refused, and what a change of one byte does."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engines.errors import NotTrusted
from engines.signing.envelope import new_key, opened, public_key, sealed

pytest.importorskip("securesystemslib")
pytest.importorskip("cryptography")

STATEMENT = {"_type": "https://in-toto.io/Statement/v1", "subject": []}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    private = tmp_path / "release.key"
    assert new_key(private) == tmp_path / "release.pub"
    return private


def written(folder: Path, envelope: dict[str, Any]) -> Path:
    file = folder / "engine.plan.dsse.json"
    file.write_text(json.dumps(envelope))
    return file


def test_what_one_signs_the_other_opens(key: Path, tmp_path: Path) -> None:
    public = public_key(key.with_suffix(".pub"))
    file = written(tmp_path, sealed(STATEMENT, key))
    assert opened(file, [public]).statement == STATEMENT
    assert opened(file, [public]).key == public
    assert key.stat().st_mode & 0o777 == 0o600


def test_openssl_agrees(key: Path, tmp_path: Path) -> None:
    """The public half is the one that openssl derives, and it verifies what DSSE says is signed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl here")
    derived = subprocess.run([openssl, "pkey", "-in", key, "-pubout"], capture_output=True, check=True).stdout
    assert derived == key.with_suffix(".pub").read_bytes()
    envelope = sealed(STATEMENT, key)
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    (tmp_path / "signed").write_bytes(b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    inputs = ["-inkey", key.with_suffix(".pub"), "-in", tmp_path / "signed", "-sigfile", tmp_path / "sig"]
    verified = [openssl, "pkeyutl", "-verify", "-pubin", "-rawin", *map(str, inputs)]
    said = subprocess.run(verified, capture_output=True, check=False)
    assert said.returncode == 0, said.stderr


def test_a_key_that_openssl_made(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl here")
    private, public = tmp_path / "a.key", tmp_path / "a.pub"
    subprocess.run([openssl, "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run([openssl, "pkey", "-in", private, "-pubout", "-out", public], check=True)
    private.chmod(0o600)
    assert opened(written(tmp_path, sealed(STATEMENT, private)), [public_key(public)]).statement == STATEMENT
    subprocess.run([openssl, "genpkey", "-algorithm", "x25519", "-out", private], check=True)
    with pytest.raises(NotTrusted, match="is a key of another kind, one of Ed25519 is expected"):
        sealed(STATEMENT, private)


@pytest.mark.parametrize("changed", ["payload", "payloadType", "sig"])
def test_a_change_of_any_part_is_seen(key: Path, tmp_path: Path, changed: str) -> None:
    envelope = sealed(STATEMENT, key)
    if changed == "payload":
        envelope["payload"] = base64.b64encode(json.dumps({**STATEMENT, "more": 1}).encode()).decode()
    elif changed == "payloadType":
        envelope["payloadType"] = "application/json"
    else:
        sig = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
        sig[7] ^= 1
        envelope["signatures"][0]["sig"] = base64.b64encode(sig).decode()
    with pytest.raises(NotTrusted, match=r"was changed after|is no signature of trtforge"):
        opened(written(tmp_path, envelope), [public_key(key.with_suffix(".pub"))])


def test_another_key_with_the_id_of_the_right_one(key: Path, tmp_path: Path) -> None:
    """The id names a key, and proves nothing."""
    new_key(tmp_path / "other.key")
    envelope = sealed(STATEMENT, tmp_path / "other.key")
    public = public_key(key.with_suffix(".pub"))
    with pytest.raises(NotTrusted, match=r"is not signed by a key that is trusted \(.*release.pub\)"):
        opened(written(tmp_path, envelope), [public])
    envelope["signatures"][0]["keyid"] = public.key_id
    with pytest.raises(NotTrusted, match="was changed after"):
        opened(written(tmp_path, envelope), [public])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"payload": 1}', '{"payload": "AA", "payloadType": "x", "signatures": [1]}', "[" * 100_000]
)
def test_files_that_are_no_envelopes(key: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.dsse.json"
    file.write_text(text)
    with pytest.raises(NotTrusted, match="is no signature of trtforge"):
        opened(file, [public_key(key.with_suffix(".pub"))])


def test_files_that_are_no_keys(key: Path, tmp_path: Path) -> None:
    with pytest.raises(NotTrusted, match="is a private key, a public one is expected"):
        public_key(key)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(NotTrusted, match="is no public key of Ed25519 in PEM"):
        public_key(tmp_path / "text")
    with pytest.raises(NotTrusted, match="cannot be read"):
        public_key(tmp_path / "nothing")
    (tmp_path / "large").write_bytes(b"x" * (2 << 20))
    with pytest.raises(NotTrusted, match="is too large"):
        public_key(tmp_path / "large")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(NotTrusted, match="is no text"):
        public_key(tmp_path / "bytes")
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(NotTrusted, match="is no private key without a password"):
        sealed(STATEMENT, tmp_path / "text")


def test_a_private_key_that_others_may_read_is_refused(key: Path) -> None:
    key.chmod(0o640)
    with pytest.raises(NotTrusted, match=r"others may read this key \(mode 640\); chmod 600"):
        sealed(STATEMENT, key)


def test_a_key_is_not_overwritten(key: Path) -> None:
    before = key.read_bytes()
    with pytest.raises(NotTrusted, match="is there already"):
        new_key(key)
    assert key.read_bytes() == before
