"""Counts the device memory that TensorRT takes, by being the allocator that it takes it from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engines.errors import EngineError


def counting_allocator(trt: Any, allocate: Callable[[int], Any]) -> Any:
    """An ``IGpuAllocator`` of ``trt``, for ``Runtime.gpu_allocator``, with ``num_bytes`` in use and ``peak_bytes``.

    What its methods raise would be lost in TensorRT, so that memory which cannot be had is address 0, as it expects.
    TensorRT 10 and later ask for memory on a stream; their own classes turn that into the calls below.

    Args:
        trt: the module.
        allocate: bytes -> device memory: ``int()`` of it is the address, ``free()`` gives it back; EngineError if full.
            It aligns to 256 bytes at least, as ``cuMemAlloc`` does, which is all that TensorRT asks for.
    """
    base: Any = trt.IGpuAllocator

    class Allocator(base):  # type: ignore[misc]
        """Hands everything on to ``allocate``."""

        def __init__(self) -> None:
            base.__init__(self)
            self._held: dict[int, tuple[Any, int]] = {}
            self.num_bytes = self.peak_bytes = 0

        def allocate(self, size: int, alignment: int, flags: int) -> int:
            if not size:
                return 0
            try:
                memory = allocate(size)
            except EngineError:
                return 0
            address = int(memory)
            self._held[address] = memory, size
            self.num_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.num_bytes)
            return address

        def reallocate(self, address: int, alignment: int, new_size: int) -> int:
            """Nothing is resized in place: TensorRT then takes new memory and copies."""
            return 0

        def deallocate(self, memory: int) -> bool:
            if not memory:
                return True
            if memory not in self._held:
                return False
            held, size = self._held.pop(memory)
            held.free()
            self.num_bytes -= size
            return True

        def free(self, memory: int) -> None:
            """What TensorRT 8 calls where it does not ask whether it could be given back."""
            self.deallocate(memory)

        def allocate_async(self, size: int, alignment: int, flags: int, stream: int) -> int:
            return self.allocate(size, alignment, flags)

        def deallocate_async(self, memory: int, stream: int) -> bool:
            return self.deallocate(memory)

    return Allocator()
