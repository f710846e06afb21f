"""Messages between two processes: a length, and JSON, through a socket; arrays through two ``Arena``."""

from __future__ import annotations

import json
import socket
import struct
import threading
from typing import Any

from engines.elsewhere.wire import Arena, decoded, encoded

LENGTH = struct.Struct("<I")


class Channel:
    """One end. Messages are dictionaries; what one holds of arrays lasts until the next is received."""

    def __init__(self, connection: socket.socket, outgoing: Arena, incoming: Arena) -> None:
        self.connection = connection
        self._outgoing, self._incoming = outgoing, incoming
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """May be called by any thread; of those beside the main one without arrays.

        Raises:
            OSError: the other end is gone.
        """
        with self._lock:
            self._outgoing.clear()
            data = json.dumps({name: encoded(item, self._outgoing) for name, item in message.items()}).encode()
            self.connection.sendall(LENGTH.pack(len(data)) + data)

    def receive(self) -> dict[str, Any]:
        """Wait for one.

        Raises:
            EOFError: the other end is gone.
            socket.timeout: none came in the time that the connection has for it.
        """
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        message = json.loads(self._read(length))
        return {name: decoded(item, self._incoming) for name, item in message.items()}

    def close(self) -> None:
        """The other end is told; what lies in the memory is given back."""
        self.connection.close()
        self._outgoing.close()
        self._incoming.close()

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            try:
                part = self.connection.recv(min(length, 1 << 20))
            except ConnectionError:
                part = b""
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return b"".join(parts)
