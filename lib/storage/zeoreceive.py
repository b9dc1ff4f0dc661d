"""Receiver, decoder: large messages of a ZEO server without needless copies.

ZEO itself receives pieces, each into new memory, joins them, and decodes them with zodbpickle,
which copies a large object three times: 4 ms for 2 MiB, in the thread that all loads wait for. Here
the socket is read into one buffer for all large messages. Python's own pickle, which can read into
place, copies the data once: a quarter of a millisecond.

The announced size of a message is not allocated: the buffer of a very large message grows with the
bytes that arrive, to twice their size at most.

This module knows the framing of messages, and ZEO's Protocol, which takes them. It does not know
their meaning. All of it runs in the thread of the connection.

Where the next bytes go:

    small: headers, and messages that fit            large: one message
    start      end                                   got        want
      v         v                                     v          v
    ..|4|message|4|mes|......   -- does not fit -->  |essage.....|
                               <-- is complete ----
"""

from __future__ import annotations

import io
import logging
import pickle
from asyncio import BufferedProtocol, Transport
from collections.abc import Callable
from ssl import SSLError
from struct import Struct
from typing import Any

from ZEO.asyncio.client import Protocol
from ZEO.asyncio.marshal import find_global
from ZEO.Exceptions import ProtocolError

from wendelin.lib.storage.zeotls import tls_failed
from wendelin.lib.utils import override

__all__ = ["Receiver", "decoder"]

log = logging.getLogger(__name__)

_HEADER = Struct(">I")  # of each message: its size [bytes]
_SMALL = 64 << 10  # [bytes]
_FIRST = 4 << 20  # the buffer of a large message begins with no more than this [bytes]
_KEEP = 16 << 20  # a larger buffer is not kept [bytes]


def decoder(protocol: Protocol) -> Callable[[bytes | memoryview], Any]:
    """Return the decoder of the messages of a connection, fast for large ones."""
    decode: Callable[[bytes | memoryview], Any] = protocol.decode
    if protocol.protocol_version[:1] != b"Z":
        return decode  # msgpack copies once

    def decode_pickle(message: bytes | memoryview) -> Any:
        if isinstance(message, memoryview):  # it is large
            try:
                return _Unpickler(io.BufferedReader(_Raw(message))).load()
            except Exception:
                # zodbpickle may know its opcodes
                log.debug("a message of a ZEO server is not a plain pickle", exc_info=True)
        return decode(message)

    return decode_pickle


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """See Unpickler: as in ZEO, only exceptions and harmless classes."""
        return find_global(module, name)


class _Raw(io.RawIOBase):
    """A message as a file: a BufferedReader of it reads large pieces right into place."""

    def __init__(self, message: memoryview) -> None:
        self._rest = message

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int:
        n = min(len(buffer), len(self._rest))
        buffer[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n


class Receiver(BufferedProtocol):
    """The protocol of a transport: it passes messages to a Protocol of ZEO."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._received = False
        self._small = memoryview(bytearray(_SMALL))
        self._start = self._end = 0
        self._large = memoryview(b"")
        self._got = self._want = 0  # bytes of a large message; _want is 0 if there is none

    @override
    def get_buffer(self, sizehint: int) -> memoryview:
        if self._want:
            return self._large[self._got : self._want]  # or to its end, if it has to grow
        return self._small[self._end :]

    @override
    def buffer_updated(self, nbytes: int) -> None:
        self._received = True
        if self._want:
            self._got += nbytes
            if self._got == self._want:
                message, self._want = self._large[: self._want], 0
                self._give(message)
                if len(self._large) > _KEEP:
                    self._large = memoryview(b"")
            elif self._got == len(self._large):
                larger = memoryview(bytearray(min(self._want, 2 * self._got)))
                larger[: self._got] = self._large
                self._large = larger
            return
        self._end += nbytes
        small = self._small
        while self._end - self._start >= _HEADER.size and self._receives():
            (size,) = _HEADER.unpack_from(small, self._start)
            start = self._start + _HEADER.size
            if size > _SMALL - _HEADER.size:
                if self._protocol.protocol_version is None:
                    # ZEO's own check would wait for the whole message, a gigabyte for "SSH-".
                    self._start = self._end
                    begin = bytes(small[: min(self._end, 100)])
                    self._protocol.client.register_failed(self._protocol, ProtocolError(begin))
                    break
                self._begin_large(size, small[start : self._end])
                break
            if self._end - start < size:
                break
            self._start = start + size
            self._give(bytes(small[start : self._start]))
        if not self._receives():
            self._start = self._end
        rest = self._end - self._start
        small[:rest] = small[self._start : self._end]
        self._start, self._end = 0, rest

    def _begin_large(self, size: int, begin: memoryview) -> None:
        """Begin a message that does not fit into `small`, where its first bytes are."""
        first = min(size, _FIRST)
        if len(self._large) < first:
            self._large = memoryview(bytearray(first))
        self._large[: len(begin)] = begin
        self._got, self._want = len(begin), size
        self._start = self._end

    def _receives(self) -> bool:
        """Pass a message on; say whether the connection is still open."""
        return self._protocol.sm_protocol.receive is not None

    def _give(self, message: bytes | memoryview) -> None:
        if not self._receives():
            return
        try:
            self._protocol.sm_protocol.receive(message)
        except Exception:
            log.exception("a message of a ZEO server, of %d bytes, cannot be decoded", len(message))

    # ---- other calls of a transport ----

    @override
    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        self._protocol.connection_made(transport)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, SSLError):
            tls_failed(self._protocol.ssl, exc)
        elif not (self._received or self._protocol.closed):
            tls_failed(self._protocol.ssl, exc or EOFError())
        self._protocol.connection_lost(exc)

    @override
    def eof_received(self) -> None:
        self._protocol.eof_received()

    @override
    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    @override
    def resume_writing(self) -> None:
        self._protocol.resume_writing()
