"""Keys of Ed25519 and DSSE envelopes: all that is asked of securesystemslib and cryptography.

DSSE: "Dead Simple Signing Envelope", secure-systems-lab/dsse, protocol version 1. What is signed is a JSON text with
its media type; the envelope says by which keys. A key's id is the SHA-256 of its public half in DER, of which a file in
PEM holds the base64 text (RFC 8410). Verifying needs securesystemslib alone, which has no compiled part.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import NotTrusted, Unavailable

PAYLOAD_TYPE = "application/vnd.in-toto+json"
DER_OF_ED25519 = bytes.fromhex("302a300506032b6570032100")
"""What stands before the 32 bytes of a public key (RFC 8410, section 4)."""
LARGEST = 1 << 20
"""Bytes of a file that is a key or an envelope."""
INSTALL = "run `pip install 'trtforge[sign]'`"


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are held to."""

    path: Path
    raw: bytes
    """Its 32 bytes."""

    @property
    def key_id(self) -> str:
        """SHA-256 (hex) of the key in DER."""
        return hashlib.sha256(DER_OF_ED25519 + self.raw).hexdigest()


@dataclass(frozen=True)
class Opened:
    """What an envelope holds, after its signature was found right."""

    statement: Mapping[str, Any]
    key: PublicKey


def new_key(private: Path) -> Path:
    """Make a key: ``private`` in PEM (PKCS 8, mode 600), and its public half beside it, whose path is returned.

    Raises:
        NotTrusted: one of the files is there already, or cannot be written.
        Unavailable: cryptography is not installed.
    """
    serialization, kind = _cryptography()
    key = kind.generate()
    public = private.with_suffix(".pub")
    texts = {
        private: key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        public: key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    }
    for path in texts:
        if path.exists():
            raise NotTrusted(f"{path}: is there already, and is not overwritten; name another file")
    for path, text in texts.items():
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if path == private else 0o644)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(text)
        except OSError as error:
            raise NotTrusted(f"{path}: cannot be written ({error.strerror}); name another file") from error
    return public


def public_key(path: Path) -> PublicKey:
    """A public key of Ed25519 in PEM.

    Raises:
        NotTrusted: it is not there, or is something else.
    """
    lines = _text(path, "a public key").strip().splitlines()
    if lines and "PRIVATE KEY" in lines[0]:
        raise NotTrusted(f"{path}: is a private key, a public one is expected; name the file that ends in .pub")
    try:
        der = base64.b64decode("".join(lines[1:-1]), validate=True)
    except (ValueError, binascii.Error):
        der = b""
    if len(der) != len(DER_OF_ED25519) + 32 or not der.startswith(DER_OF_ED25519):
        raise NotTrusted(
            f"{path}: is no public key of Ed25519 in PEM; make a pair with `trtforge sign --new-key release.key`"
        )
    return PublicKey(path, der[len(DER_OF_ED25519) :])


def sealed(statement: Mapping[str, Any], private: Path) -> dict[str, Any]:
    """The envelope, as JSON has it, with the statement signed by a private key.

    Raises:
        NotTrusted: the key is not there, may be read by others, has a password, or is no key of Ed25519.
        Unavailable: securesystemslib or cryptography is not installed.
    """
    try:
        from securesystemslib.dsse import Envelope
        from securesystemslib.signer import CryptoSigner, SSlibKey
    except ImportError as error:
        raise Unavailable(f"securesystemslib: cannot be imported ({error}); {INSTALL}") from error
    key, public = _private_key(private)
    envelope = Envelope(json.dumps(statement, sort_keys=True).encode(), PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(key, SSlibKey(public.key_id, "ed25519", "ed25519", {"public": public.raw.hex()})))
    return dict(envelope.to_dict())


def public_half(private: Path) -> PublicKey:
    """The public key that belongs to a private one.

    Raises:
        NotTrusted, Unavailable: as ``sealed``.
    """
    return _private_key(private)[1]


def _private_key(private: Path) -> tuple[Any, PublicKey]:
    """The key, as cryptography has it, and its public half."""
    _check_alone(private)
    text = _text(private, "a private key").encode()
    serialization, kind = _cryptography()
    try:
        key = serialization.load_pem_private_key(text, None)
    except (TypeError, ValueError) as error:
        raise NotTrusted(
            f"{private}: is no private key without a password ({error}); make one with --new-key"
        ) from None
    if not isinstance(key, kind):
        raise NotTrusted(f"{private}: is a key of another kind, one of Ed25519 is expected; make one with --new-key")
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return key, PublicKey(private, raw)


def _cryptography() -> tuple[Any, Any]:
    """How it writes and reads keys, and its private keys of Ed25519."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise Unavailable(f"cryptography: cannot be imported ({error}); {INSTALL}") from error
    return serialization, Ed25519PrivateKey


def opened(file: Path, keys: Sequence[PublicKey]) -> Opened:
    """The statement in an envelope, which one of the keys signed.

    Raises:
        NotTrusted: the file is no envelope, or was signed by none of the keys, or changed since.
        Unavailable: securesystemslib is not installed.
    """
    try:
        from securesystemslib.dsse import Envelope
        from securesystemslib.exceptions import VerificationError
        from securesystemslib.signer import SSlibKey
    except ImportError as error:
        raise Unavailable(f"securesystemslib: cannot be imported ({error}); {INSTALL}") from error
    text = _text(file, "a signature")
    try:
        envelope = Envelope.from_dict(json.loads(text))
        statement = json.loads(envelope.payload)
        is_ours = envelope.payload_type == PAYLOAD_TYPE and isinstance(statement, dict)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise NotTrusted(f"{file}: is no signature of trtforge; sign again, or copy it again")
    named = [key for key in keys if key.key_id in envelope.signatures]
    for key in named:
        by = SSlibKey(key.key_id, "ed25519", "ed25519", {"public": key.raw.hex()})
        try:
            envelope.verify([by], 1)
        except VerificationError:
            continue
        return Opened(statement, key)
    if named:
        raise NotTrusted(f"{file}: was changed after {named[0].path} signed it; it is not believed, copy it again")
    names = ", ".join(str(key.path) for key in keys)
    raise NotTrusted(f"{file}: is not signed by a key that is trusted ({names}); sign it with one of these keys")


def _check_alone(private: Path) -> None:
    """That a private key is its owner's alone."""
    try:
        mode = private.stat().st_mode
    except OSError as error:
        raise NotTrusted(f"{private}: cannot be read ({error.strerror}); name a private key") from error
    if mode & 0o077:
        raise NotTrusted(
            f"{private}: others may read this key (mode {mode & 0o777:o}); chmod 600 it, or make a new one"
        )


def _text(path: Path, what: str) -> str:
    try:
        with path.open("rb") as stream:
            data = stream.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise NotTrusted(f"{path}: is too large for {what}; name another file")
        return data.decode()
    except OSError as error:
        raise NotTrusted(f"{path}: cannot be read ({error.strerror}); {what} is expected") from error
    except UnicodeDecodeError:
        raise NotTrusted(f"{path}: is no text, {what} is expected; name another file") from None
