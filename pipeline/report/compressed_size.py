"""How small an engine's file becomes when it is compressed, which is what weights at zero are for."""

from __future__ import annotations

import importlib.util
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from calibration.file_digest import of_content

COMPRESSED = "compressed sizes 1"
"""Under what the sizes of a file are remembered, by each release: another number where they come out otherwise."""
GZIPPED = "gzip size 1"
CHUNK = 1 << 20
GZIP_FORMAT = 31
"""zlib's word for the largest window, with gzip's header and checksum."""


class Compressor(Protocol):
    """What takes bytes and gives fewer."""

    def compress(self, data: bytes, /) -> bytes:
        """What can be given already."""
        ...

    def flush(self) -> bytes:
        """The rest."""
        ...


def compressed_sizes(path: Path) -> dict[str, int]:
    """Compressor -> bytes: ``gzip`` at its highest level, ``xz`` and, where it is installed, ``zstd`` at level 19."""
    return dict(json.loads(of_content(path, COMPRESSED, _sizes)))


def gzip_bytes(path: Path) -> int:
    """Bytes of what ``gzip -9`` makes of a file."""
    return int(of_content(path, GZIPPED, lambda file: str(_total(file, _gzip))))


def _gzip() -> Compressor:
    return zlib.compressobj(9, zlib.DEFLATED, GZIP_FORMAT)


def _sizes(path: Path) -> str:
    sizes = {"gzip": gzip_bytes(path), "xz": _total(path, lzma.LZMACompressor)}
    if importlib.util.find_spec("zstandard"):
        import zstandard

        sizes["zstd"] = _total(path, lambda: zstandard.ZstdCompressor(level=19).compressobj())
    return json.dumps(sizes)


def _total(path: Path, compressor: Callable[[], Compressor]) -> int:
    """The bytes that a compressor makes of a file, of which a part is in memory at a time."""
    at_work = compressor()
    return sum(len(at_work.compress(chunk)) for chunk in _chunks(path)) + len(at_work.flush())


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk
