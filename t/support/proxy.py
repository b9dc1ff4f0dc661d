"""A network between a client and a server, as slow or broken as a test wants it.

A Proxy stands in front of a port of this machine, and passes on bytes in a thread of its own:
later, slower, not at all, or only some of them. It knows TCP, but not what the bytes mean.

Each direction of a connection is a _Line. Chunks wait in it until they are due, so that latency
does not reduce the throughput. When a line is full, its source is not read.
"""

import asyncio
import selectors
import socket
import threading
from collections import deque
from contextlib import suppress

HOST = "127.0.0.1"
ROOM = 64 << 20  # in a line without a bandwidth [bytes]
TO_SERVER, TO_CLIENT = "to server", "to client"


class Proxy:
    """A port in front of another one; the network between them is good at first.

    Parameters
    ----------
    to_port : int
        Where the server listens.
    latency : float
        Of each way [s]. A test may change it, or the bandwidth, for chunks that come later.
    bandwidth : float or None
        Of each direction, of all connections together [bytes/s]; None: as fast as it can.

    Attributes
    ----------
    port : int
        Where clients connect.
    passed : dict
        Bytes that were passed on, by direction.
    """

    def __init__(self, to_port, latency=0, bandwidth=None):
        self.to_port, self.latency, self.bandwidth = to_port, latency, bandwidth
        self.passed = {TO_SERVER: 0, TO_CLIENT: 0}
        self.free_at = {TO_SERVER: 0.0, TO_CLIENT: 0.0}  # when the bandwidth is free again
        self.port = 0
        self.stalled = False
        self._alarms = {}  # direction -> (passed, call)
        self._lines = set()  # that still have, or get, something to pass on
        self._listening = None  # the socket; None: new connections are refused
        self._tasks = set()  # that make a connection
        # epoll counts milliseconds, which is much for a latency
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.mend()

    def cut(self):
        """Cut all connections, and refuse new ones."""
        self._in_loop(self._cut)

    def stall(self):
        """Pass on nothing, and close nothing: both ends wait, until mend()."""
        self._in_loop(self._stall)

    def forget(self):
        """Never again pass on anything on the connections that are open, and close none."""
        self._in_loop(self._forget)

    def mend(self):
        """Be a network again: at the same port, with the connections that are left."""
        self._in_loop(self._mend)

    def after(self, n, direction, call=None):
        """Have something called, in the thread of the proxy, when n more bytes have passed.

        By default, that is cut(). After any other call, the bytes that follow are passed on.
        """
        self._alarms[direction] = (self.passed[direction] + n, call or self.cut)

    def close(self):
        """Cut all connections, and end the thread."""
        if self._loop.is_closed():
            return
        self.cut()
        asyncio.run_coroutine_threadsafe(self._made(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    # ---- in the loop's thread ----

    def _in_loop(self, act):
        if threading.current_thread() is self._thread:
            act()
            return

        async def run():
            act()
            await asyncio.sleep(0)  # closed transports call connection_lost()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def _cut(self):
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        for line in list(self._lines):
            line.drop()

    def _stall(self):
        self.stalled = True

    def _forget(self):
        for line in self._lines:
            line.forgotten = True

    def _mend(self):
        self.stalled = False
        for line in list(self._lines):
            line.flush()
        if self._listening is None:
            self._listen()

    def _listen(self):
        sock = socket.create_server((HOST, self.port), backlog=1000)
        # the client is to keep what the network has not passed on
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 << 10)
        sock.setblocking(False)
        self.port = sock.getsockname()[1]
        self._listening = sock
        self._loop.add_reader(sock, self._accept, sock)

    # asyncio's Server leaves a connection open that it accepts just before it is closed
    def _accept(self, listening):
        with suppress(BlockingIOError):
            sock, _ = listening.accept()
            sock.setblocking(False)
            self.make(self._loop.connect_accepted_socket(lambda: _ClientEnd(self, listening), sock))

    def make(self, connection):
        """Have a coroutine that makes a connection run."""
        task = self._loop.create_task(connection)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _made(self):
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0)  # as in _in_loop()

    def pass_on(self, direction, data, write):
        """Write data, or the part of it that comes before a call; return what is left."""
        at, call = self._alarms.get(direction, (None, None))
        left = b""
        if at is not None:
            rest = max(at - self.passed[direction], 0)
            data, left = data[:rest], data[rest:]
        if data:
            write(data)
            self.passed[direction] += len(data)
        if at is not None and self.passed[direction] >= at:
            del self._alarms[direction]
            call()
        return left


class _Line:
    """What is on its way in one direction of a connection."""

    def __init__(self, proxy, source, direction):
        self.proxy, self.source, self.direction = proxy, source, direction
        self.target = None  # transport; None: it is not there yet
        self.chunks = deque()  # (when it is due, data; None for the end)
        self.size = 0  # of chunks [bytes]
        self.full = self.target_full = self.forgotten = False
        self.timer = None

    def put(self, data):
        """Take a chunk; None: there will be no other."""
        if self.forgotten:
            return
        proxy, now = self.proxy, self.proxy._loop.time()
        due = now
        if proxy.bandwidth and data:
            free_at = max(proxy.free_at[self.direction], now)
            due = proxy.free_at[self.direction] = free_at + len(data) / proxy.bandwidth
        due += proxy.latency
        if self.chunks:
            due = max(due, self.chunks[-1][0])  # also if the latency is smaller now
        self.chunks.append((due, data))
        self.size += len(data or b"")
        self.flush()

    def flush(self):
        """Pass on what is due."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        now = self.proxy._loop.time()
        held = self.proxy.stalled or self.forgotten
        while self.chunks and self.target is not None and not held:
            due, data = self.chunks[0]
            if due > now:
                self.timer = self.proxy._loop.call_at(due, self.flush)
                break
            if self.target_full:
                break
            self.chunks.popleft()
            if data is None:
                self.target.close()
                self.proxy._lines.discard(self)
                break
            left = self.proxy.pass_on(self.direction, data, self.target.write)
            self.size -= len(data) - len(left)
            if left and not self.target.is_closing():
                self.chunks.appendleft((due, left))
            held = self.proxy.stalled or self.forgotten
        self._read_or_not()

    def drop(self):
        """Lose what is on its way, and all that comes later."""
        self.chunks.clear()
        self.size = 0
        self.proxy._lines.discard(self)
        self.source.abort()

    def _read_or_not(self):
        bandwidth, latency = self.proxy.bandwidth, self.proxy.latency
        room = max(bandwidth * (latency + 0.05), 64 << 10) if bandwidth else ROOM
        full = self.size >= room
        if full != self.full and not self.source.is_closing():
            self.full = full
            (self.source.pause_reading if full else self.source.resume_reading)()


class _End(asyncio.Protocol):
    """One end of a connection: what comes from there goes into its line."""

    direction: str
    peer = None

    def __init__(self, proxy):
        self.proxy = proxy

    def connection_made(self, transport):
        self.transport = transport
        self.line = _Line(self.proxy, transport, self.direction)
        transport.set_write_buffer_limits(high=1 << 20)
        self.proxy._lines.add(self.line)

    def join(self, peer):
        self.peer = peer
        self.line.target = peer.transport
        self.line.flush()

    def data_received(self, data):
        self.line.put(data)

    def pause_writing(self):
        self.peer.line.target_full = True

    def resume_writing(self):
        self.peer.line.target_full = False
        self.peer.line.flush()

    def connection_lost(self, exc):
        self.line.put(None)  # after all that it has sent


class _ClientEnd(_End):
    direction = TO_SERVER

    def __init__(self, proxy, listening):
        super().__init__(proxy)
        self.listening = listening

    def connection_made(self, transport):
        super().connection_made(transport)
        if self.proxy._listening is not self.listening:  # it was cut meanwhile
            self.line.drop()
        else:
            self.proxy.make(self.connect())

    async def connect(self):
        try:
            _, server = await self.proxy._loop.create_connection(
                lambda: _ServerEnd(self.proxy), HOST, self.proxy.to_port
            )
        except OSError:
            self.transport.abort()
            return
        if self.transport.is_closing():
            server.transport.abort()
            return
        self.join(server)
        server.join(self)


class _ServerEnd(_End):
    direction = TO_CLIENT
