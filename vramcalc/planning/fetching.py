"""Fetching over HTTP within one deadline and a number of bytes, whatever the server does.

A time limit of a socket is one for each of its answers: a server that sends a byte a second stays below it for ever. So
there is one deadline for everything that is fetched, at which all connections are cut, in the middle of a handshake or
a header too.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import threading
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from typing import Any

_CHUNK = 1 << 16
_SILENCE_S = 30.0
"""Longest that a server may say nothing."""


class TooLate(OSError):
    """The deadline has passed."""


class TooLarge(OSError):
    """More bytes than there can be in what was asked for."""


class Deadline:
    """Connections that are cut once their time is up; a context, at whose end nothing is left of them.

    Args:
        limit_s: for all of them together, from when the context begins. [s]
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._ends = float("inf")
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(limit_s, self._cut)
        self._timer.daemon = True
        self._opener = urllib.request.build_opener(_Http(self), _Https(self))

    def __enter__(self) -> Deadline:
        self._ends = time.monotonic() + self.limit_s
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._cut()

    def check(self) -> None:
        """Go on while there is time.

        Raises:
            TooLate: there is none left.
        """
        if time.monotonic() >= self._ends:
            raise TooLate(f"timed out after {self.limit_s:g} s")

    def get(self, url: str, most_bytes: int) -> bytes:
        """What a server has under an address.

        Raises:
            TooLate: not all of it came in time.
            TooLarge: it is larger than it may be.
            OSError: the server has none, or cannot be reached.
            http.client.HTTPException: no answer in HTTP, or no address.
        """
        self.check()
        wait_s = min(_SILENCE_S, max(self._ends - time.monotonic(), 1e-3))
        found = bytearray()
        try:
            with self._opener.open(url, timeout=wait_s) as answer:
                while chunk := answer.read1(_CHUNK):
                    found += chunk
                    self.check()
                    if len(found) > most_bytes:
                        raise TooLarge(f"more than {most_bytes:,} bytes")
        except (OSError, http.client.HTTPException):
            # A connection that was cut fails in as many ways as there are places to be in.
            self.check()
            raise
        self.check()
        return bytes(found)

    def connect(self, *where: Any) -> socket.socket:
        """A connection, as :func:`socket.create_connection` makes it, that is cut with the others."""
        self.check()
        made = socket.create_connection(*where)
        with self._lock:
            self._sockets.append(made.dup())  # TLS takes the first one over
        return made

    def _cut(self) -> None:
        with self._lock:
            for open_one in self._sockets:
                with contextlib.suppress(OSError):
                    open_one.shutdown(socket.SHUT_RDWR)
                open_one.close()
            self._sockets.clear()


def unpacked(archive: bytes, name: str, most_bytes: int) -> str:
    """Text of one file of a ZIP archive, which is not unpacked any further than it may be large.

    Raises:
        TooLarge: it is larger.
        KeyError: no file of that name.
        zipfile.BadZipFile: no archive.
        UnicodeDecodeError: the file is no UTF-8.
    """
    with zipfile.ZipFile(io.BytesIO(archive)) as files, files.open(name) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise TooLarge(f"more than {most_bytes:,} bytes unpacked")
    return content.decode("utf-8-sig")


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, request: urllib.request.Request) -> Any:
        """Over a connection with a deadline."""
        return self.do_open(_with_deadline(http.client.HTTPConnection, self._deadline), request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, request: urllib.request.Request) -> Any:
        """Over a connection with a deadline."""
        return self.do_open(_with_deadline(http.client.HTTPSConnection, self._deadline), request)


def _with_deadline(kind: type[http.client.HTTPConnection], deadline: Deadline) -> Any:
    """What makes connections of a kind."""

    def made(host: str, **how: Any) -> http.client.HTTPConnection:
        connection = kind(host, **how)
        connection._create_connection = deadline.connect  # type: ignore[attr-defined]
        return connection

    return made


def rows_within(rows: Iterator[Any], deadline: Deadline) -> list[Any]:
    """All of them, if there is time to read them.

    Raises:
        TooLate: there is not.
    """
    found = []
    for row in rows:
        deadline.check()
        found.append(row)
    return found
