"""What a shared library (ELF) is for and which libraries it asks for, read out of the file: nothing is loaded."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from engines.errors import EngineError

_LOAD, _DYNAMIC = 1, 2  # p_type
_NULL, _NEEDED, _STRTAB = 0, 1, 5  # d_tag
_HEADER = struct.Struct("<QQQIHHH")  # e_entry, e_phoff, e_shoff, e_flags, e_ehsize, e_phentsize, e_phnum
_SEGMENT = struct.Struct("<IIQQQQQQ")  # p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
_ENTRY = struct.Struct("<qQ")  # d_tag, d_val
_HEADER_AT = 24
_MACHINE = struct.Struct("<HH")  # e_type, e_machine
_MACHINE_AT = 16
_SHARED = 3  # e_type
MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64"}
"""By e_machine, as ``uname -m`` prints it."""


def machine_of(library: Path) -> str:
    """The architecture that a shared library is for, as ``platform.machine()`` calls it.

    Raises:
        EngineError: it cannot be read, or is no shared library of ELF.
    """
    try:
        with library.open("rb") as stream:
            head = stream.read(_MACHINE_AT + _MACHINE.size)
    except OSError as error:
        raise EngineError(f"{library}: cannot be read ({error.strerror}); name a shared library") from error
    if head[:4] != b"\x7fELF" or len(head) < _MACHINE_AT + _MACHINE.size:
        raise EngineError(f"{library}: is no shared library (ELF); name one that was compiled for Linux")
    kind, machine = _MACHINE.unpack_from(head, _MACHINE_AT)
    if kind != _SHARED:
        raise EngineError(f"{library}: is an ELF file, but no shared library; link it with -shared")
    return MACHINES.get(machine, f"machine {machine} of ELF")


def needed_libraries(library: Path) -> tuple[str, ...]:
    """The names (DT_NEEDED) that a 64-bit little-endian library has to find when it is loaded, in its order.

    Raises:
        EngineError: it cannot be read, or is no such library.
    """
    try:
        with library.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _needed(data)
    except (OSError, struct.error, ValueError) as error:
        raise EngineError(f"{library}: is no shared library that can be read ({error}); install it again") from error


def _needed(data: mmap.mmap) -> tuple[str, ...]:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("it is no 64-bit ELF file")
    _, table, _, _, _, size, number = _HEADER.unpack_from(data, _HEADER_AT)
    segments = [_SEGMENT.unpack_from(data, table + index * size) for index in range(number)]
    entries = [
        entry for kind, _, at, _, _, length, *_ in segments if kind == _DYNAMIC for entry in _entries(data, at, length)
    ]
    strings = next((value for tag, value in entries if tag == _STRTAB), 0)
    loaded = [(at, address, length) for kind, _, at, address, _, length, *_ in segments if kind == _LOAD]
    start = next((at + strings - address for at, address, length in loaded if 0 <= strings - address < length), strings)
    return tuple(_text(data, start + value) for tag, value in entries if tag == _NEEDED)


def _entries(data: mmap.mmap, at: int, length: int) -> list[tuple[int, int]]:
    entries = []
    for offset in range(at, at + length, _ENTRY.size):
        tag, value = _ENTRY.unpack_from(data, offset)
        if tag == _NULL:
            break
        entries.append((tag, value))
    return entries


def _text(data: mmap.mmap, at: int) -> str:
    return data[at : data.find(b"\0", at)].decode()
