"""Calls that give a view to other libraries, for the matrix of t/support/matrix.py.

Each call is a function of a view `a` of float64 and a folder `d`. In OUT, it returns what arrived
on the other side: bytes, or an array. In INTO, it fills the view from the file `in` of the folder.
A library that a function imports is optional: if it is missing, its cells say so.
"""

from __future__ import annotations

import asyncio
import bz2
import gzip
import hashlib
import io
import lzma
import mmap
import multiprocessing
import os
import pickle
import socket
import subprocess
import threading
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np

#: "library: call" -> function(a, folder), which returns what arrived
OUT: dict[str, Callable[[Any, Path], Any]] = {}
#: "library: call" -> function(a, folder), which fills a from folder/in
INTO: dict[str, Callable[[Any, Path], None]] = {}
#: how many numbers of a view slow calls take
SMALL = 1 << 14


def out(name: str) -> Callable[[Any], Any]:
    def add(f: Any) -> Any:
        OUT[name] = f
        return f

    return add


def into(name: str) -> Callable[[Any], Any]:
    def add(f: Any) -> Any:
        INTO[name] = f
        return f

    return add


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    path.unlink()
    return data


# ---- NumPy ----


@out("NumPy: np.save(path, a)")
def _(a, d):
    np.save(d / "a.npy", a)
    return np.load(d / "a.npy")


@out("NumPy: np.savez(path, a)")
def _(a, d):
    np.savez(d / "a.npz", a)
    return np.load(d / "a.npz")["arr_0"]


@out("NumPy: np.savez_compressed(path, a)")
def _(a, d):
    np.savez_compressed(d / "a.npz", a[:SMALL])
    return np.load(d / "a.npz")["arr_0"]


@out("NumPy: a.tofile(path)")
def _(a, d):
    a.tofile(d / "a")
    return _read(d / "a")


@out("NumPy: a.tobytes()")
def _(a, d):
    return a.tobytes()


@out("NumPy: a.dump(path)")
def _(a, d):
    a.dump(d / "a")
    return np.load(d / "a", allow_pickle=True)


@out("NumPy: np.savetxt(path, a)")
def _(a, d):
    np.savetxt(d / "a.txt", a[:SMALL], fmt="%.17g")
    return np.loadtxt(d / "a.txt")


@out("NumPy: np.memmap(path)[:] = a")
def _(a, d):
    m = np.memmap(d / "a", a.dtype, "w+", shape=a.shape)
    m[:] = a
    m.flush()
    return _read(d / "a")


@out("NumPy: np.sort(a), np.dot(a, a) (threads of BLAS)")
def _(a, d):
    assert np.isclose(np.dot(a, a), np.sum(a.copy() ** 2))
    return np.sort(a)


# ---- files ----


@out("io: open(path, 'wb').write(a)")
def _(a, d):
    with open(d / "a", "wb") as f:
        assert f.write(a) == a.nbytes
    return _read(d / "a")


@out("io: open(path, 'wb', buffering=0).write(a)")
def _(a, d):
    with open(d / "a", "wb", buffering=0) as f:
        assert f.write(a) == a.nbytes
    return _read(d / "a")


@out("io: f.writelines([a, a])")
def _(a, d):
    with open(d / "a", "wb") as f:
        f.writelines([a, a])
    data = _read(d / "a")
    assert data[: a.nbytes] == data[a.nbytes :]
    return data[: a.nbytes]


@out("io: BytesIO().write(a)")
def _(a, d):
    f = io.BytesIO()
    f.write(a)
    return f.getvalue()


@out("os: os.write(fd, a)")
def _(a, d):
    with open(d / "a", "wb") as f:
        assert os.write(f.fileno(), a) == a.nbytes
    return _read(d / "a")


@out("os: os.pwrite(fd, a, 0)")
def _(a, d):
    with open(d / "a", "wb") as f:
        assert os.pwrite(f.fileno(), a, 0) == a.nbytes
    return _read(d / "a")


@out("os: os.writev(fd, [head, a])")
def _(a, d):
    with open(d / "a", "wb") as f:
        assert os.writev(f.fileno(), [b"head", a]) == a.nbytes + 4
    return _read(d / "a")[4:]


@out("mmap: m[:] = a")
def _(a, d):
    m = mmap.mmap(-1, a.nbytes)
    m[:] = memoryview(a).cast("B")
    return m[:]


@out("zipfile: z.writestr(name, a)")
def _(a, d):
    with zipfile.ZipFile(d / "a.zip", "w") as z:
        z.writestr("a", memoryview(a).cast("B"))
    with zipfile.ZipFile(d / "a.zip") as z:
        return z.read("a")


@out("shutil: copyfileobj(BytesIO(a), f)")
def _(a, d):
    import shutil

    with open(d / "a", "wb") as f:
        shutil.copyfileobj(io.BytesIO(a), f)
    return _read(d / "a")


# ---- sockets ----


def _received(n: int, send: Callable[[socket.socket], None]) -> bytes:
    here, there = socket.socketpair()
    with here, there, ThreadPoolExecutor(1) as pool:
        data = pool.submit(lambda: there.makefile("rb").read(n))
        try:
            send(here)
        finally:
            here.shutdown(socket.SHUT_WR)
        return data.result(60)


@out("socket: s.sendall(a)")
def _(a, d):
    return _received(a.nbytes, lambda s: s.sendall(a))


@out("socket: s.sendmsg([a])")
def _(a, d):
    def send(s: socket.socket) -> None:
        view = memoryview(a).cast("B")
        while view:
            view = view[s.sendmsg([view]) :]

    return _received(a.nbytes, send)


async def _stream(a: Any) -> bytes:
    got = bytearray()
    end = asyncio.Event()

    async def server(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        while data := await r.read(1 << 20):
            got.extend(data)
        w.close()
        end.set()

    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    async with listening:
        _, w = await asyncio.open_connection(*listening.sockets[0].getsockname())
        w.write(memoryview(a).cast("B"))
        await w.drain()
        w.close()
        await asyncio.wait_for(end.wait(), 60)
    return bytes(got)


async def _sock_sendall(a: Any) -> bytes:
    here, there = socket.socketpair()
    here.setblocking(False)
    with here, there:
        data = asyncio.get_running_loop().run_in_executor(
            None, lambda: there.makefile("rb").read(a.nbytes)
        )
        await asyncio.get_running_loop().sock_sendall(here, memoryview(a).cast("B"))
        return await data


@out("asyncio: StreamWriter.write(a)")
def _(a, d):
    return asyncio.run(_stream(a))


@out("asyncio: loop.sock_sendall(s, a)")
def _(a, d):
    return asyncio.run(_sock_sendall(a))


@out("uvloop: StreamWriter.write(a)")
def _(a, d):
    import uvloop

    return uvloop.run(_stream(a))


@out("uvloop: loop.sock_sendall(s, a)")
def _(a, d):
    import uvloop

    return uvloop.run(_sock_sendall(a))


# ---- processes ----


@out("subprocess: run(…, input=a)")
def _(a, d):
    return subprocess.run(["cat"], input=memoryview(a).cast("B"), stdout=subprocess.PIPE).stdout


@out("subprocess: Popen.stdin.write(a)")
def _(a, d):
    with (
        open(d / "a", "wb") as f,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=f, bufsize=0) as p,
    ):
        view = memoryview(a).cast("B")
        while view:
            view = view[p.stdin.write(view) :]
        p.stdin.close()
    return _read(d / "a")


def _echo(c: Any) -> None:
    c.send_bytes(c.recv_bytes())
    c.send(c.recv())


@out("multiprocessing: Connection.send_bytes(a), send(a)")
def _(a, d):
    here, there = multiprocessing.Pipe()
    t = threading.Thread(target=_echo, args=(there,))
    t.start()
    here.send_bytes(a)
    data = here.recv_bytes()
    here.send(a)
    assert np.array_equal(here.recv(), a)
    t.join()
    return data


@out("multiprocessing: Pool of spawn, map(np.sort, [a])")
def _(a, d):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(np.sort, [a])[0]


@out("multiprocessing: SharedMemory")
def _(a, d):
    shm = shared_memory.SharedMemory(create=True, size=a.nbytes)
    try:
        b = np.ndarray(a.shape, a.dtype, shm.buf)
        b[:] = a
        return b.tobytes()
    finally:
        del b
        shm.close()
        shm.unlink()


@out("pickle: dumps(a)")
def _(a, d):
    return pickle.loads(pickle.dumps(a))


@out("pickle: dump(a, f, protocol=5)")
def _(a, d):
    with open(d / "a", "wb") as f:
        pickle.dump(a, f, protocol=5)
    with open(d / "a", "rb") as f:
        return pickle.load(f)


@out("pickle: dumps(a, buffer_callback=…), then f.write")
def _(a, d):
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(a, protocol=5, buffer_callback=buffers.append)
    with open(d / "a", "wb", buffering=0) as f:
        for buffer in buffers:
            assert f.write(buffer) == a.nbytes
    return pickle.loads(head, buffers=[_read(d / "a")])


@out("joblib: dump(a, path)")
def _(a, d):
    import joblib

    joblib.dump(a, d / "a")
    return joblib.load(d / "a")


@out("joblib: hash(a)")
def _(a, d):
    import joblib

    assert joblib.hash(a) == joblib.hash(a.copy())
    return a.tobytes()


@out("joblib: Parallel(2, 'loky')(np.sort, a)")
def _(a, d):
    import joblib

    with joblib.parallel_config("loky", n_jobs=2):
        return joblib.Parallel()([joblib.delayed(np.sort)(a), joblib.delayed(np.sort)(a)])[1]


# ---- hashes, compression ----


@out("hashlib: sha256(a), blake2b(a)")
def _(a, d):
    assert hashlib.sha256(a).digest() == hashlib.sha256(a.tobytes()).digest()
    assert hashlib.blake2b(a).digest() == hashlib.blake2b(a.tobytes()).digest()
    return a.tobytes()


@out("zlib: crc32(a), compress(a)")
def _(a, d):
    assert zlib.crc32(a) == zlib.crc32(a.tobytes())
    return zlib.decompress(zlib.compress(a, 1))


@out("bz2, lzma: compress(a)")
def _(a, d):
    part = a[:SMALL]
    assert bz2.decompress(bz2.compress(part)) == part.tobytes()
    return lzma.decompress(lzma.compress(part, preset=0))


@out("gzip: GzipFile.write(a)")
def _(a, d):
    with gzip.open(d / "a", "wb", 1) as f:
        f.write(a)
    with gzip.open(d / "a") as f:
        return f.read()


@out("zstandard: ZstdCompressor(threads=2).compress(a)")
def _(a, d):
    import zstandard

    return zstandard.ZstdDecompressor().decompress(
        zstandard.ZstdCompressor(threads=2).compress(memoryview(a).cast("B"))
    )


@out("lz4: frame.compress(a)")
def _(a, d):
    import lz4.frame

    return lz4.frame.decompress(lz4.frame.compress(memoryview(a).cast("B")))


@out("blosc2: pack_array2(a)")
def _(a, d):
    import blosc2

    return blosc2.unpack_array2(blosc2.pack_array2(a))


@out("blosc2: asarray(a)")
def _(a, d):
    import blosc2

    return blosc2.asarray(a)[:]
