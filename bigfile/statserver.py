"""Counters of the pager, told to another process: with WENDELIN_CORE_STATS=1 in the environment.

A thread of this process answers at an abstract Unix socket, which has the process id in its name.
Nothing is in the file system, and nothing is left when the process ends. Each connection gets the
counters as JSON, and is closed. The kernel says which user connects, and which one answers: it must
be the same user, or root.

After a fork, the child has its own counters. It answers at a socket of its own.

Locking: the thread waits without the GIL, and holds no lock. See virtmem.stats for what it asks.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import threading
from contextlib import suppress
from typing import Any

from wendelin.bigfile.virtmem.stats import stats

__all__ = ["ask_stats", "serve_stats"]

log = logging.getLogger("wendelin.bigfile")

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_PATIENCE = 5.0  # for an answer, and for a program that takes one [s]
_MOST = 64 << 20  # of an answer [bytes]

_server: socket.socket | None = None  # of this process


def _name(pid: int) -> str:
    return f"\0wendelin.core-stats-{pid}"


def _peer(sock: socket.socket) -> tuple[int, int]:
    """Return pid and uid of the other end."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return pid, uid


def serve_stats() -> None:
    """Let `wendelin stats PID` ask this process, from now on. It may be called again."""
    global _server
    if _server is not None:
        return
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.bind(_name(os.getpid()))
        server.listen(4)
    except OSError as e:
        server.close()
        log.warning("`wendelin stats` cannot ask this process: %s", e)
        return
    _server = server
    threading.Thread(target=_serve, args=(server,), name="wendelin.core stats", daemon=True).start()


def _serve(server: socket.socket) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client, suppress(OSError):  # it may be gone
            client.settimeout(_PATIENCE)
            if _peer(client)[1] in (0, os.geteuid()):
                found = stats()
                handles = [handle._asdict() for handle in found.handles]
                client.sendall(json.dumps({**found._asdict(), "handles": handles}).encode())


def _after_fork_in_child() -> None:
    global _server
    if _server is not None:
        _server.close()  # its thread and its name are of the parent
        _server = None
        serve_stats()


os.register_at_fork(after_in_child=_after_fork_in_child)


def ask_stats(pid: int) -> dict[str, Any]:
    """Return the counters of a process: fields of Stats, with dicts as handles.

    Raises
    ------
    ProcessLookupError
        There is no such process.
    ConnectionError
        It does not serve them, or another user's process answers.
    TimeoutError
        It does not answer: a thread keeps the GIL, or the process is stopped.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(_name(pid))
        except BlockingIOError:
            raise TimeoutError(f"process {pid} does not answer: others ask it, too") from None
        except ConnectionRefusedError:
            if not os.path.exists(f"/proc/{pid}"):
                raise ProcessLookupError(f"there is no process {pid}") from None
            raise ConnectionRefusedError(
                f"process {pid} does not tell its counters: it must be started with "
                f"WENDELIN_CORE_STATS=1 in its environment"
            ) from None
        answers, uid = _peer(sock)
        if answers != pid or (uid != os.geteuid() and os.geteuid()):
            raise ConnectionRefusedError(
                f"process {answers} of user {uid} answers for process {pid}: it is not believed"
            )
        data = bytearray()
        try:
            while received := sock.recv(1 << 16):
                data += received
                if len(data) > _MOST:
                    raise ConnectionAbortedError(f"process {pid} tells too much")
        except TimeoutError:
            raise TimeoutError(
                f"process {pid} does not answer: a thread keeps Python's lock, or it is stopped"
            ) from None
    if not data:
        raise ConnectionRefusedError(f"process {pid} is of another user, and tells nothing")
    found: dict[str, Any] = json.loads(data)
    return found
