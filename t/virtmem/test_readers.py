"""Readers of arrays in Data.fs: native threads, Python threads, and blocks that are read ahead."""

import shutil
import subprocess
import threading

import numpy as np
import pytest
from support.child import check_child
from support.mapped import N, make, random_values
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage

from wendelin.bigfile import ram_reclaim
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.zodb import dbclose, dbopen


@pytest.fixture
def values():
    return random_values()


# ---- without Python ----

C = """
#include <pthread.h>
static pthread_t threads[4];
static const double *data;
static long count;
static double sums[4];
static void *run(void *arg) {
    long i, which = (long)arg;
    for (i = which; i < count; i += 4 * 512)        /* each OS page */
        sums[which] += data[i];
    return 0;
}
double sum(const double *d, long n) {
    long i; double s = 0;
    data = d; count = n;
    for (i = 0; i < 4; i++) pthread_create(&threads[i], 0, run, (void *)i);
    for (i = 0; i < 4; i++) { pthread_join(threads[i], 0); s += sums[i]; }
    return s;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("storage", ["AlignedFileStorage", "FileStorage"])
def test_workers_fault_while_their_caller_holds_the_gil(path, values, tmp_path, storage):
    """BLAS and OpenMP do so. Blocks that are known ahead are mapped, or copied, without Python."""
    source = tmp_path / "c.c"
    source.write_text(C)
    library = str(tmp_path / "c.so")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-lpthread"], check=True)
    make(path, values, {"FileStorage": FileStorage}.get(storage))._p_jar.db().close()
    check_child(
        """
        import ctypes, sys
        from wendelin.lib.zodb import dbopen
        path, library = sys.argv[1:]
        call = ctypes.PyDLL(library).sum        # PyDLL: with the GIL
        call.restype = ctypes.c_double
        call.argtypes = [ctypes.c_void_p, ctypes.c_long]
        a = dbopen(path)["A"][:]
        for blk in 3, 7, 15, 23:                # looks 4, 8, 16, 32 blocks ahead, or around
            a[blk * (2 << 20) // 8]
        got = call(a.ctypes.data, len(a))
        want = sum(a[i::4 * 512].sum() for i in range(4))
        assert abs(got - want) < 1e-6, (got, want)
        """,
        path,
        library,
    )


def test_known_blocks_are_loaded_again_without_asking(path, values):
    make(path, values, FileStorage)._p_jar.db().close()
    root = dbopen(path)
    a = root["A"][:]
    assert np.array_equal(a, values)
    file = root["A"]._fileh().file
    file.mapblk = file.loadblk = None  # calling it is an error
    for _ in range(2):
        assert ram_reclaim() >= N
        assert np.array_equal(a, values)
    dbclose(root)


# ---- read ahead ----


def test_read_ahead_threads_end_and_come_again_also_after_a_fork(path, values):
    dbclose(make(path, values))
    check_child(
        """
        import os, sys, time, numpy as np
        from wendelin.lib.zodb import dbopen
        path, = sys.argv[1:]
        threads = lambda: len(os.listdir("/proc/self/task"))
        root = dbopen(f"file://{path}?read_only=true")
        a = root["A"][:]
        before = threads()
        s = a.sum()
        assert threads() > before
        pid = os.fork()
        root2 = dbopen(f"file://{path}?read_only=true")
        assert root2["A"][:].sum() == s
        if pid == 0:
            os._exit(threads() == 1)
        assert os.waitpid(pid, 0)[1] == 0
        deadline = time.monotonic() + 30
        while threads() > before:
            assert time.monotonic() < deadline, threads()
            time.sleep(0.05)
        assert dbopen(f"file://{path}?read_only=true")["A"][:].sum() == s
        """,
        path,
        PYTHONWARNINGS="ignore",
        WENDELIN_CORE_READY="0",
    )


@pytest.mark.parametrize("url", ["{}", "file://{}?align=false"])
@pytest.mark.slow
def test_sequential_reads_under_little_memory(path, values, url):
    """What is read ahead stays within the limit, and is right."""
    make(path, values, FileStorage)._p_jar.db().close()
    check_child(
        """
        import sys, numpy as np
        from wendelin.bigfile.virtmem.handle import ram_stat
        from wendelin.lib.zodb import dbopen
        values = np.random.default_rng(3).random(int(sys.argv[2]))
        a = dbopen(sys.argv[1])["A"][:]
        for i in range(3):
            assert np.array_equal(a, values)
            limit, clean, dirty = ram_stat()
            assert clean + dirty <= limit
        """,
        url.format(path),
        str(len(values)),
        WENDELIN_CORE_RAM="16M",
    )


def test_blocks_of_other_storages_are_read_ahead_in_threads(path, values):
    make(path, values, FileStorage)._p_jar.db().close()
    root = dbopen(f"file://{path}?align=false")
    file = root["A"]._fileh().file
    threads = set()
    load = file.records.load
    file.records.load = lambda oid: (threads.add(threading.current_thread().name), load(oid))[1]
    assert np.array_equal(root["A"][:], values)
    assert any(name.startswith("wendelin.core") for name in threads)
    assert len(root._p_jar._cache.lru_items()) < N  # no block is in the Connection's cache
    dbclose(root)


def test_readers_in_threads_of_their_own(path, values):
    from concurrent.futures import ThreadPoolExecutor

    make(path, values, FileStorage)._p_jar.db().close()
    for storage in AlignedFileStorage, FileStorage:
        root = DB(storage(path)).open().root()
        a = root["A"][:]
        parts = np.split(np.arange(len(values)), 6)
        with ThreadPoolExecutor(6) as pool:
            got = list(pool.map(lambda p, a=a: a[p[0] : p[-1] + 1].sum(), parts))
        assert np.allclose(got, [values[p].sum() for p in parts])
        root._p_jar.db().close()
