"""More calls that give a view to libraries of arrays, tables and pictures; see calls.py."""

from __future__ import annotations

import asyncio
import ctypes
import gzip
import io
import multiprocessing
import os
import socket
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from support.calls import SMALL, _read, into, out

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
