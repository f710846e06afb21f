"""What was delivered last, by its signature: an older engine is not delivered after it, unless its owner went back."""

from __future__ import annotations

from pathlib import Path

from engines.errors import NotTrusted
from engines.signing.newest import UNKNOWN
from engines.signing.trust import expected, signature_of, signed_by, trusted_keys
from engines.whole_file import write_whole
from pipeline.errors import ConfigError
from pipeline.gate.generations import withdrawn

ENDING = ".delivered.dsse.json"
"""Beside the configuration: the signature of the engine of a baseline that was delivered last."""


def check_not_older(name: str, engine: Path, folder: Path, store: Path) -> None:
    """That the engine of a baseline was not signed before the one that was delivered last; nothing without keys.

    An older one is delivered after `trtforge baseline rollback`: the newer one counts as withdrawn in the store then.

    Raises:
        NotTrusted: it was; or the signature of what was delivered last is none of a key that is trusted.
    """
    keys, last = trusted_keys(), folder / f"{name}{ENDING}"
    if not keys or not last.exists():
        return
    before, now = signed_by(last, keys), expected(engine)
    if now.sha256 == before.sha256 or now.signed_on >= before.signed_on or before.sha256 in withdrawn(name, store):
        return
    raise NotTrusted(
        f"baseline '{name}': its engine was signed {now.signed_on or UNKNOWN}, and one that was signed "
        f"{before.signed_on} lies in {folder}; it was not delivered: go back by `trtforge baseline rollback {name}`, "
        "or sign it again"
    )


def note_delivered(name: str, engine: Path, folder: Path) -> None:
    """Keep the signature of what is delivered now; nothing without keys.

    Raises:
        ConfigError: it cannot be written.
    """
    signature = signature_of(engine) if trusted_keys() else None
    if signature is None:
        return
    target = folder / f"{name}{ENDING}"
    try:
        write_whole(target, signature.read_bytes())
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror}); make room, and deliver again") from error
