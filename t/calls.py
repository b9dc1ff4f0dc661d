"""Calls of other libraries that are given a view: for the matrix of t/matrix.py.

Each is a function of a view `a` of float64 and a folder, and returns what came out on the other
side, as bytes; or, in INTO, one that fills a view from the folder's file `in`. What is imported in
a function is optional: a library that is missing leaves its rows out.
"""

from __future__ import annotations

import asyncio
import bz2
import ctypes
import gzip
import hashlib
import io
import lzma
import mmap
import multiprocessing
import os
import pickle
import socket
import sqlite3
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np

#: library: call -> function(a, folder) -> bytes that arrived
OUT: dict[str, Callable[[Any, Path], Any]] = {}
#: library: call -> function(a, folder), which fills a from folder/in
INTO: dict[str, Callable[[Any, Path], None]] = {}
#: rows that look at a part of the view only, as they are slow
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


# ---- files of arrays ----


@out("h5py: f['a'] = a, contiguous")
def _(a, d):
    import h5py

    with h5py.File(d / "a.h5", "w") as f:
        f["a"] = a
        return f["a"][:]


@out("h5py: create_dataset(chunks=True, data=a)")
def _(a, d):
    import h5py

    with h5py.File(d / "a.h5", "w") as f:
        f.create_dataset("a", data=a, chunks=True)
        return f["a"][:]


@out("h5py: dataset.write_direct(a)")
def _(a, d):
    import h5py

    with h5py.File(d / "a.h5", "w") as f:
        f.create_dataset("a", a.shape, a.dtype).write_direct(a)
        return f["a"][:]


@out("PyTables: create_array(…, a)")
def _(a, d):
    import tables

    with tables.open_file(d / "a.h5", "w") as f:
        f.create_array("/", "a", a)
        return f.root.a[:]


@out("PyTables: create_carray(…, obj=a)")
def _(a, d):
    import tables

    with tables.open_file(d / "a.h5", "w") as f:
        f.create_carray("/", "a", obj=a)
        return f.root.a[:]


@out("netCDF4: variable[:] = a")
def _(a, d):
    import netCDF4

    with netCDF4.Dataset(d / "a.nc", "w") as f:
        f.createDimension("x", len(a))
        f.createVariable("a", "f8", ("x",), contiguous=True)[:] = a
        return np.asarray(f["a"][:])


@out("zarr: z[:] = a")
def _(a, d):
    import zarr

    z = zarr.create_array(d / "a.zarr", shape=a.shape, dtype=a.dtype, chunks=(1 << 17,))
    z[:] = a
    return z[:]


@out("SciPy: io.savemat(path, a)")
def _(a, d):
    from scipy import io as scipy_io

    scipy_io.savemat(d / "a.mat", {"a": a})
    return scipy_io.loadmat(d / "a.mat")["a"].ravel()


# ---- tables ----


@out("pyarrow: ipc.new_file(OSFile), pa.array(a)")
def _(a, d):
    import pyarrow as pa

    table = pa.table({"a": pa.array(a)})
    with pa.OSFile(str(d / "a"), "wb") as f, pa.ipc.new_file(f, table.schema) as w:
        w.write_table(table)
    with pa.OSFile(str(d / "a")) as f:
        return pa.ipc.open_file(f).read_all()["a"].to_numpy()


@out("pyarrow: OSFile.write(pa.py_buffer(a))")
def _(a, d):
    import pyarrow as pa

    with pa.OSFile(str(d / "a"), "wb") as f:
        f.write(pa.py_buffer(a))
    return _read(d / "a")


@out("pyarrow: parquet.write_table")
def _(a, d):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"a": pa.array(a)}), d / "a")
    return parquet.read_table(d / "a")["a"].to_numpy()


@out("pandas: Series(a).to_pickle(path)")
def _(a, d):
    import pandas as pd

    pd.Series(a).to_pickle(d / "a")
    return pd.read_pickle(d / "a").to_numpy()


@out("pandas: DataFrame(a).to_csv(path)")
def _(a, d):
    import pandas as pd

    pd.DataFrame({"a": a[:SMALL]}).to_csv(d / "a", index=False)
    return pd.read_csv(d / "a", float_precision="round_trip")["a"].to_numpy()


@out("pandas: DataFrame(a).to_parquet(path)")
def _(a, d):
    import pandas as pd

    pd.DataFrame({"a": a}).to_parquet(d / "a")
    return pd.read_parquet(d / "a")["a"].to_numpy()


@out("polars: DataFrame(a).write_ipc(path)")
def _(a, d):
    import polars as pl

    pl.DataFrame({"a": a}).write_ipc(d / "a")
    return pl.read_ipc(d / "a")["a"].to_numpy()


@out("polars: Series(a).sort() (threads of its own)")
def _(a, d):
    import polars as pl

    return pl.Series(a).sort().to_numpy()


@out("sqlite3: insert a as a blob")
def _(a, d):
    with sqlite3.connect(d / "a.db") as db:
        db.execute("create table t (a blob)")
        db.execute("insert into t values (?)", (memoryview(a).cast("B"),))
        return db.execute("select a from t").fetchone()[0]


# ---- pictures and sound ----


def _bytes_of(a: Any) -> Any:
    """Return a view as a picture of 1024 columns."""
    return a.view(np.uint8).reshape(-1, 1024)


@out("PIL: Image.fromarray(a).save(path)")
def _(a, d):
    from PIL import Image

    Image.fromarray(_bytes_of(a)).save(d / "a.png", compress_level=1)
    return np.asarray(Image.open(d / "a.png")).tobytes()


@out("cv2: imwrite(path, a)")
def _(a, d):
    import cv2

    assert cv2.imwrite(str(d / "a.png"), _bytes_of(a))
    return cv2.imread(str(d / "a.png"), cv2.IMREAD_UNCHANGED).tobytes()


@out("cv2: flip(flip(a)) (threads of its own)")
def _(a, d):
    import cv2

    return cv2.flip(cv2.flip(_bytes_of(a), 0), 0).tobytes()


@out("soundfile: write(path, a)")
def _(a, d):
    import soundfile

    soundfile.write(d / "a.wav", a, 44100, subtype="DOUBLE")
    return soundfile.read(d / "a.wav")[0]


# ---- messages, clusters, tensors ----


def _zmq(a: Any, copy: bool) -> bytes:
    import zmq

    with zmq.Context() as c, c.socket(zmq.PUSH) as s, c.socket(zmq.PULL) as q:
        q.setsockopt(zmq.RCVTIMEO, 60000)
        q.connect(f"tcp://127.0.0.1:{s.bind_to_random_port('tcp://127.0.0.1')}")
        s.send(a, copy=copy)
        return q.recv()


@out("zmq: send(a)")
def _(a, d):
    return _zmq(a, True)


@out("zmq: send(a, copy=False)")
def _(a, d):
    return _zmq(a, False)


@out("Dask: from_array(a).sum().compute() (threads)")
def _(a, d):
    import dask.array

    assert dask.array.from_array(a, chunks=1 << 17).sum().compute() == a.sum()
    return a.tobytes()


@out("Dask: distributed, Client.scatter(a)")
def _(a, d):
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None, local_directory=str(d)
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        return client.submit(np.sort, client.scatter(a)).result(60)


@out("torch: from_numpy(a).sort(), torch.save")
def _(a, d):
    import torch

    t = torch.from_numpy(a)
    torch.save(t, d / "a.pt")
    assert np.array_equal(torch.load(d / "a.pt").numpy(), a)
    return t.sort()[0].numpy()


# ---- C ----


@out("ctypes: write(fd, a.ctypes, n)")
def _(a, d):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.write.restype = ctypes.c_ssize_t
    libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    with open(d / "a", "wb") as f:
        assert libc.write(f.fileno(), a.ctypes.data, a.nbytes) == a.nbytes
    return _read(d / "a")


@out("ctypes: PyDLL (keeps the GIL), memcpy")
def _(a, d):
    b = np.empty_like(a)
    memcpy = ctypes.PyDLL(None).memcpy
    memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    memcpy(b.ctypes.data, a.ctypes.data, a.nbytes)
    return b


@out("cffi: from_buffer(a), write")
def _(a, d):
    import cffi

    ffi = cffi.FFI()
    ffi.cdef("ssize_t write(int, const void *, size_t);")
    with open(d / "a", "wb") as f:
        assert ffi.dlopen(None).write(f.fileno(), ffi.from_buffer(a), a.nbytes) == a.nbytes
    return _read(d / "a")


@out("a thread with all signals blocked: a.copy()")
def _(a, d):
    import signal

    result = []

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        result.append(a.copy())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return result[0]


# ---- into a view ----


@into("io: f.readinto(a)")
def _(a, d):
    with open(d / "in", "rb") as f:
        assert f.readinto(a) == a.nbytes


@into("io: open(buffering=0).readinto(a)")
def _(a, d):
    with open(d / "in", "rb", buffering=0) as f:
        assert f.readinto(a) == a.nbytes


@into("os: os.preadv(fd, [a], 0)")
def _(a, d):
    with open(d / "in", "rb") as f:
        assert os.preadv(f.fileno(), [a], 0) == a.nbytes


@into("NumPy: a[:] = np.fromfile(path)")
def _(a, d):
    a[:] = np.fromfile(d / "in")


@into("socket: s.recv_into(a)")
def _(a, d):
    here, there = socket.socketpair()
    with here, there, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(there.sendall, (d / "in").read_bytes())
        view = memoryview(a).cast("B")
        while view:
            n = here.recv_into(view)
            assert n
            view = view[n:]
        sent.result(60)


@into("asyncio: loop.sock_recv_into(s, a)")
def _(a, d):
    async def receive() -> None:
        here, there = socket.socketpair()
        here.setblocking(False)
        with here, there, ThreadPoolExecutor(1) as pool:
            sent = pool.submit(there.sendall, (d / "in").read_bytes())
            view = memoryview(a).cast("B")
            while view:
                n = await asyncio.get_running_loop().sock_recv_into(here, view)
                assert n
                view = view[n:]
            sent.result(60)

    asyncio.run(receive())


@into("multiprocessing: Connection.recv_bytes_into(a)")
def _(a, d):
    here, there = multiprocessing.Pipe()
    thread = threading.Thread(target=there.send_bytes, args=((d / "in").read_bytes(),))
    thread.start()
    assert here.recv_bytes_into(memoryview(a).cast("B")) == a.nbytes
    thread.join()


@into("gzip: GzipFile.readinto(a)")
def _(a, d):
    data = gzip.compress((d / "in").read_bytes(), 1)
    with gzip.open(io.BytesIO(data)) as f:
        view = memoryview(a).cast("B")
        while view:
            n = f.readinto(view)
            assert n
            view = view[n:]


@into("h5py: dataset.read_direct(a)")
def _(a, d):
    import h5py

    with h5py.File(d / "a.h5", "w") as f:
        f["a"] = np.fromfile(d / "in")
        f["a"].read_direct(a)


@into("blosc2: decompress2(…, dst=a)")
def _(a, d):
    import blosc2

    blosc2.decompress2(blosc2.compress2(np.fromfile(d / "in")), dst=a)


@into("pyarrow: OSFile.readinto(a)")
def _(a, d):
    import pyarrow as pa

    with pa.OSFile(str(d / "in")) as f:
        assert f.readinto(memoryview(a).cast("B")) == a.nbytes


@into("torch: from_numpy(a).copy_(t)")
def _(a, d):
    import torch

    torch.from_numpy(a).copy_(torch.from_numpy(np.fromfile(d / "in")))


@into("ctypes: read(fd, a.ctypes, n)")
def _(a, d):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.read.restype = ctypes.c_ssize_t
    libc.read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    with open(d / "in", "rb") as f:
        assert libc.read(f.fileno(), a.ctypes.data, a.nbytes) == a.nbytes


@into("zmq: a[:] = np.frombuffer(recv(copy=False))")
def _(a, d):
    import zmq

    with zmq.Context() as c, c.socket(zmq.PUSH) as s, c.socket(zmq.PULL) as q:
        q.setsockopt(zmq.RCVTIMEO, 60000)
        q.connect(f"tcp://127.0.0.1:{s.bind_to_random_port('tcp://127.0.0.1')}")
        s.send((d / "in").read_bytes())
        a[:] = np.frombuffer(q.recv(copy=False).buffer)


assert sys.byteorder == "little"
