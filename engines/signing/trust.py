"""Which keys are trusted, and what they signed: asked before an engine's bytes or its record are used.

The environment variable ``TRTFORGE_TRUSTED`` names the files of public keys, with colons between them; a plan's [sign]
sets it for its own run and the processes of that. Where it names none, nothing is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.errors import NotTrusted
from engines.signing.envelope import PublicKey, opened, public_key
from engines.signing.newest import check_newest, signed_on

TRUSTED = "TRTFORGE_TRUSTED"
ENDING = ".dsse.json"
IN_STORE = "signatures"
"""The folder of a store for signatures of its engines, each named by the engine's SHA-256."""
RECORD = "record"
"""The name of the subject that is the engine's record; the first of the others is the engine itself."""
PLUGIN = "plugin:"
"""What the names of subjects begin with that are libraries of its plugins; its record has them too."""
NOT_SIGNED = ("sha256", "replaced")
CHUNK = 1 << 20
DEEPEST = 7
"""A baseline's engine lies so many folders deep in a store."""
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


@dataclass(frozen=True)
class Signed:
    """The bytes that a key that is trusted signed."""

    sha256: str = ""
    """Of the engine; empty where no signature is asked for."""
    record: str = ""
    """Of its record, see ``record_digest``; empty where it was signed without one."""
    key: str = ""
    """The file of the key."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of each file of weights that was signed with it, by the file's name."""
    signed_on: str = ""
    """When (UTC, ISO 8601); empty where the statement does not say."""


UNSIGNED = Signed()
_PROMISED: dict[str, Signed] = {}
"""By path: what another process, which started this one, has found out of an engine."""


def trusted_keys() -> tuple[PublicKey, ...]:
    """The keys that the environment names.

    Raises:
        NotTrusted: one is not there, or is something else; or it is set and names none.
    """
    asked = os.environ.get(TRUSTED, "")
    keys = tuple(public_key(Path(name)) for name in asked.split(os.pathsep) if name)
    if asked and not keys:
        raise NotTrusted(f"{TRUSTED}: is '{asked}', which names no key; name the file of a public key, or unset it")
    return keys


def expected(engine: Path) -> Signed:
    """What the bytes of an engine and of its record must be; ``UNSIGNED`` where no key is named.

    Raises:
        NotTrusted: it has no signature by a key that is trusted, or is older than what was loaded from its place.
        Unavailable: what verifies signatures is not installed.
    """
    if str(engine) in _PROMISED:
        return _PROMISED[str(engine)]
    keys = trusted_keys()
    if not keys:
        return UNSIGNED
    file = signature_of(engine)
    if file is None:
        names = ", ".join(str(key.path) for key in keys)
        raise NotTrusted(
            f"{engine}: is not signed, a signature by one of {names} is expected; it was not loaded: sign it with "
            "`trtforge sign`, or build it again where the key is"
        )
    signed = signed_by(file, keys)
    check_newest(engine, signed.sha256, signed.signed_on)
    return signed


@contextmanager
def promised(engine: Path, signed: Signed) -> Iterator[None]:
    """While it lasts, that is what is expected of the engine: another process has asked for the signature."""
    _PROMISED[str(engine)] = signed
    try:
        yield
    finally:
        del _PROMISED[str(engine)]


def signed_by(file: Path, keys: tuple[PublicKey, ...]) -> Signed:
    """What an envelope says of its engine, its weights and its record, whose contents are not read here.

    Raises:
        NotTrusted: none of the keys signed it, or it is of something else.
    """
    envelope = opened(file, keys)
    statement = envelope.statement
    subjects = statement.get("subject") if statement.get("_type") == STATEMENT_TYPE else None
    try:
        digests = {str(subject["name"]): str(subject["digest"]["sha256"]) for subject in subjects or ()}
    except (KeyError, TypeError):
        digests = {}
    record = digests.pop(RECORD, "")
    if not digests:
        raise NotTrusted(f"{file}: is a statement of another kind; name what `trtforge sign` wrote")
    (_, sha256), *others = digests.items()
    weights = {name: digest for name, digest in others if not name.startswith(PLUGIN)}
    return Signed(sha256, record, str(envelope.key.path), weights, signed_on(statement))


def signature_of(engine: Path) -> Path | None:
    """The file of its signature: beside it, or where it lies in a store, in that store; None if there is none.

    Where a signature lies says nothing; by which key it is made does.
    """
    beside = beside_of(engine)
    if beside.is_file():
        return beside
    folders = [parent / IN_STORE for parent in list(engine.resolve().parents)[1:DEEPEST]]
    there = [folder for folder in folders if folder.is_dir()]
    name = f"{sha256_of(engine)}{ENDING}" if there else ""
    return next((folder / name for folder in there if (folder / name).is_file()), None)


def beside_of(engine: Path) -> Path:
    """Where the signature of a file lies that is in no store."""
    return engine.with_name(engine.name + ENDING)


def sha256_of(file: Path) -> str:
    """SHA-256 (hex) of a file's content, read again; of an engine that is a folder, of the lines that sha256sum writes
    of the files in it, in the order of their names.

    Raises:
        NotTrusted: it cannot be read, or holds a link to a folder, whose files nobody would compare, or a device.
    """  # fmt: skip
    try:
        if not file.is_dir():
            return _sha256_of_file(file)
        below = {path.relative_to(file).as_posix(): path for path in file.rglob("*")}
        if links := sorted(name for name, path in below.items() if path.is_symlink() and path.is_dir()):
            raise NotTrusted(f"{file}: holds a link to a folder ({links[0]}); put the folder itself there")
        files = {name: path for name, path in below.items() if not path.is_dir()}
        lines = "".join(f"{_sha256_of_file(files[name])}  {name}\n" for name in sorted(files))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
    except OSError as error:
        raise NotTrusted(f"{file}: cannot be read ({error.strerror}); name a file") from error


def _sha256_of_file(file: Path) -> str:
    if not stat.S_ISREG(file.stat().st_mode):  # To read a pipe would take for ever.
        raise NotTrusted(f"{file}: is no regular file; name an engine or a bundle")
    sha = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def record_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what a record says, whatever file it lies in: of its JSON with keys in order.

    Which file it is of and what was there before it, which is written in some places, does not count.
    """
    whole = {key: value for key, value in record.items() if key not in NOT_SIGNED}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def check_bytes(file: Path, data: bytes, signed: Signed) -> None:
    """That the bytes are those that were signed; nothing happens where none are asked for.

    Raises:
        NotTrusted: they are others.
    """
    if signed.sha256 and hashlib.sha256(data).hexdigest() != signed.sha256:
        raise NotTrusted(f"{file}: is not what was signed (SHA-256 differs); it was not loaded: copy or build it again")


def check_file(engine: Path) -> None:
    """That an engine is what a key that is trusted signed, as it lies there; nothing happens where none is named.

    For engines that are handed on, and those that are folders, whose files a runtime opens itself.

    Raises:
        NotTrusted, Unavailable: as ``expected``; or it is another file.
    """
    signed = expected(engine)
    if signed.sha256 and sha256_of(engine) != signed.sha256:
        raise NotTrusted(f"{engine}: is not what was signed (SHA-256 differs); copy or build it again")
    check_weights(engine, signed)


def check_weights(engine: Path, signed: Signed) -> None:
    """That the files of weights beside an engine are those that were signed with it.

    Raises:
        NotTrusted: one of them is another, or is not there.
    """
    for name, sha256 in signed.weights.items():
        file = engine.resolve().with_name(Path(name).name)
        if not file.is_file() or sha256_of(file) != sha256:
            raise NotTrusted(f"{engine}: its weights in {file.name} are not what was signed; copy both again")


def check_record(file: Path, record: Mapping[str, Any], signed: Signed) -> None:
    """That what lies beside an engine is what was signed with it; nothing happens where none is asked for.

    Raises:
        NotTrusted: it is another, or was not there.
    """
    if signed.sha256 and record and record_digest(record) != signed.record:
        raise NotTrusted(
            f"{file}: the record beside it is not what was signed with it; nothing was loaded: copy both again, or "
            "delete the record"
        )
