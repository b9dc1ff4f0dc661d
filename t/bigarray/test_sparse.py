"""ZSparse: a matrix of SciPy over views; compared with the same matrix in memory."""

import pickle
import signal
import sys
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from support.child import check_child, start_child
from support.clients import Client
from ZODB.POSException import ConflictError, ConnectionStateError

from wendelin import Group, ZSparse
from wendelin.bigarray.memory import in_file
from wendelin.sparse import files
from wendelin.sparse.sources import rows_of

pytestmark = pytest.mark.database


def made(root, shape=(0, 50), dtype="f4", **kw):
    S = root["S"] = ZSparse.csr(shape, dtype, **kw)
    transaction.commit()
    return S


def some(rows=40, columns=50, seed=0, dtype="f4"):
    return sparse.random_array((rows, columns), density=0.2, format="csr", rng=seed, dtype=dtype)


def same(a, b):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    assert (abs(a - b)).nnz == 0


@pytest.mark.parametrize("index", ["i4", "i8"])
def test_a_matrix_of_views(root, index):
    S, m = made(root, index_dtype=index, blksize=4096), some(400)
    S.append_rows(m)
    transaction.commit()
    for found in S[:], S[:].T.T, S.T.T, S.rows(0, 400):
        same(found, m)
        assert found.indices.dtype == found.indptr.dtype == index
        for array in found.data, found.indices, found.indptr:
            assert in_file(array) is not None, "a copy"
    assert isinstance(S.T, sparse.csc_array)
    part = S[100:200]
    same(part, m[100:200])
    assert in_file(part.data) is not None
    assert in_file(part.indices) is not None
    same(S.rows(7, 7), m[7:7])
    same(S[-3:], m[-3:])
    assert S[3, 4] == m[3, 4]
    assert np.allclose(S[:] @ np.ones(50), m @ np.ones(50))
    assert S[:].sum() == pytest.approx(m.sum())
    assert (S.shape, S.nnz, S.dtype, S.index_dtype) == ((400, 50), m.nnz, "f4", index)
    assert len(S) == 400


def test_numbers_are_changed_in_transactions(root):
    S, m = made(root), some()
    S.append_rows(m)
    transaction.commit()
    S[:].data[:] *= 2
    transaction.abort()
    same(S[:], m)
    S[:].data[:] *= 2
    transaction.commit()
    with closing(Client(root)) as other:
        same(other["S"][:], 2 * m)


def test_rows_that_are_not_sorted(root):
    """SciPy would sort them in place, and change the database."""
    S = made(root, (0, 9), "f8")
    m = sparse.csr_array(([1.0, 2, 3, 4, 5], [8, 2, 2, 1, 0], [0, 3, 5]), shape=(2, 9))
    S.append_rows(m)
    transaction.commit()
    assert S.nnz == 4
    assert S[:].indices.tolist() == [2, 8, 0, 1]
    db = root._p_jar.db()
    before = db.lastTransaction()
    S[:].max(), S[:].sum_duplicates(), S[:] + S[:]
    transaction.commit()
    assert db.lastTransaction() == before
    assert not S.data._fileh().isdirty()
    assert S[:].toarray().tolist() == m.toarray().tolist()


def test_what_is_appended(root, tmp_path):
    h5py = pytest.importorskip("h5py")
    m = some(100, seed=3)
    S = made(root)
    S.append_rows(m)
    transaction.commit()
    S.save(tmp_path / "x.npz")
    S.save(tmp_path / "x.h5ad")
    same(sparse.csr_array(sparse.load_npz(tmp_path / "x.npz")), m)
    sparse.save_npz(tmp_path / "compressed.npz", m.tocsc())
    with h5py.File(tmp_path / "x.h5ad") as file:
        sources = [
            m,
            m.tocoo(),
            sparse.csr_matrix(m),
            m.toarray(),
            S,
            str(tmp_path / "x.npz"),
            tmp_path / "x.h5ad",
            tmp_path / "compressed.npz",
            file["X"],
        ]
        for i, source in enumerate(sources):
            T = root[f"T{i}"] = ZSparse.csr((0, 50), "f4")
            transaction.commit()
            T.append_rows(source)
            same(T[:], m)
            T.append_rows(source)
            same(T[:], sparse.vstack([m, m], format="csr"))
    with pytest.raises(ValueError, match=r"\.npz, \.h5ad"):
        S.save(tmp_path / "x.txt")


def test_two_save_to_one_path(tmp_path, monkeypatch):
    """The file is that of one of them, whole; the last to end replaces it."""
    first, second = some(100, seed=3).tocsr(), some(100, seed=4).tocsr()
    write, seen = files._npz, []

    def between(matrix, path):
        write(matrix, path)
        if matrix is first:
            thread = threading.Thread(target=files.save, args=(second, str(tmp_path / "x.npz")))
            thread.start()
            thread.join()
            seen.append(sparse.load_npz(tmp_path / "x.npz"))

    monkeypatch.setattr(files, "_npz", between)
    files.save(first, str(tmp_path / "x.npz"))
    same(sparse.csr_array(seen[0]), second)
    same(sparse.csr_array(sparse.load_npz(tmp_path / "x.npz")), first)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_append_in_steps(root, tmp_path):
    """A source that is appended in steps of any size gives the same matrix."""
    m = some(300, seed=5)
    m.data[m.indptr[10] : m.indptr[60]] = 0
    sparse.save_npz(tmp_path / "x.npz", m)
    for step in 1, 100, 1000, 5000:
        S = root[f"S{step}"] = ZSparse.csr((0, 50), "f4")
        transaction.commit()
        with rows_of(m) as source:
            S.append_in_steps(source, step)
        same(S[:], m)
        with rows_of(tmp_path / "x.npz") as source:
            S.append_in_steps(source, step)
        same(S[300:], m)


def test_anndata(root, tmp_path):
    """AnnData reads what is written, takes a matrix as X, and gives backed rows."""
    anndata = pytest.importorskip("anndata")
    m = some(60, seed=4)
    S = made(root)
    S.append_rows(m)
    transaction.commit()
    S.save(tmp_path / "x.h5ad")
    backed = anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")
    try:
        assert backed.obs_names[:2].tolist() == ["0", "1"]
        T = root["T"] = ZSparse.csr((0, 50), "f4")
        transaction.commit()
        T.append_rows(backed.X)
        same(T[:], m)
    finally:
        backed.file.close()
    A = anndata.AnnData(S[:])
    assert A.X is not None
    assert in_file(A.X.data) is not None
    same(A[10:20].X.copy(), m[10:20])


def test_bad_input(root, tmp_path):
    for dtype in "f2", ">f4", "S3", object:
        with pytest.raises(TypeError, match="is not one of SciPy's"):
            ZSparse.csr((0, 5), dtype)
    with pytest.raises(TypeError, match="index_dtype uint32 is not int32 or int64"):
        ZSparse.csr((0, 5), "f4", "u4")
    with pytest.raises(ValueError, match="int64 has room"):
        ZSparse.csr((0, 1 << 31), "f4", "i4")
    with pytest.raises(ValueError, match="two axes"):
        ZSparse.csr((5,), "f4")
    with pytest.raises(ConnectionStateError, match=r"root\['S'\] = S"):
        ZSparse.csr((0, 5), "f4").append_rows(some(3, 5))
    S, m = made(root), some()
    S.append_rows(m)
    np.savez(tmp_path / "other.npz", x=np.arange(3))
    (tmp_path / "bad.npz").write_bytes(b"no")
    damaged = m.copy()
    damaged.indices[-1] = 77
    falls = m.copy()
    falls.indptr[3] = 1000
    for wrong, error, match in [
        (some(3, 5), ValueError, "rows of 5 columns"),
        (some(3, 50, dtype="c8"), TypeError, "complex64 cannot"),
        (np.arange(50), TypeError, "two axes"),
        (tmp_path / "other.npz", ValueError, "no data"),
        (tmp_path / "bad.npz", ValueError, "not an .npz"),
        (tmp_path / "none.npz", FileNotFoundError, "none.npz"),
        (damaged, ValueError, "columns from .* to 77"),
        (falls, ValueError, "does not ascend"),
    ]:
        with pytest.raises(error, match=match):
            S.append_rows(wrong)
        same(S[:], m)
    for rows in (3, 99), (-1, 2), (5, 4):
        with pytest.raises(IndexError, match="rows"):
            S.rows(*rows)


def test_scipy_is_missing(root, monkeypatch):
    S = made(root)
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.delitem(sys.modules, "scipy.sparse", raising=False)
    for use in lambda: S[:], lambda: S.T, lambda: S.append_rows(np.ones((1, 50))):
        with pytest.raises(ImportError, match=r"pip install 'wendelin.core\[sparse\]'"):
            use()


def test_in_a_group(root):
    g, m = Group(root), some()
    g["run/counts"] = m
    g["run/empty"] = ZSparse.csr((3, 5), "f8")
    transaction.commit()
    same(g["run/counts"][:], m)
    assert g["run/empty"][:].toarray().tolist() == [[0] * 5] * 3
    assert f"counts  40 × 50 float32, sparse, {m.nnz} numbers" in str(g.tree())


@pytest.mark.only("fs")
def test_in_the_command_line(root, testdb, call):
    S = made(root)
    S.append_rows(some())
    transaction.commit()
    testdb.close(root)
    (row,) = call("ls", "--json", testdb.url).json
    assert (row["path"], row["shape"], row["order"]) == ("S", [40, 50], "csr")
    assert row["nnz"] == some().nnz
    assert row["blocks"] == 3
    assert "csr" in call("ls", testdb.url).stdout
    assert call("ls", "--json", f"{testdb.url}#S").json == [row]
    info = call("info", "--json", f"{testdb.url}#S").json
    assert info["index_dtype"] == "<i8"
    assert info["arrays"]["indptr"]["nbytes"] == 41 * 8
    shown = call("info", f"{testdb.url}#S").stdout
    assert f"numbers    {some().nnz}, 20% of the elements" in shown
    assert call("info", "--json", f"{testdb.url}#S/data").json["shape"] == [some().nnz]


def test_aborted_creation(root):
    S = root["S"] = ZSparse.csr((0, 50), "f4")
    root._p_jar.add(S)
    S.append_rows(some())
    same(S[:], some())
    transaction.abort()
    root["S"] = S
    with pytest.raises(ValueError, match="make another one"):
        transaction.commit()
    transaction.abort()


def test_isolation_and_conflict(root):
    S, m = made(root), some()
    S.append_rows(m)
    transaction.commit()
    with closing(Client(root)) as one, closing(Client(root)) as two:
        for client in one, two:
            client.tm.begin()
            same(client["S"][:], m)
            client["S"].append_rows(m)
        one.tm.commit()
        assert two["S"].shape == (80, 50)  # with its own rows, which are not committed
        with pytest.raises(ConflictError):
            two.tm.commit()
        two.tm.abort()
        same(two["S"][:], sparse.vstack([m, m], format="csr"))
        assert S.shape == (40, 50)
        same(S[:], m)
        transaction.begin()
        assert S.shape == (80, 50)


def test_pickled_as_a_reference(root):
    S, m = made(root), some()
    with pytest.raises(pickle.PicklingError, match="not committed"):
        S.append_rows(m)
        pickle.dumps(S)
    transaction.commit()
    past = pickle.loads(pickle.dumps(S))
    S.append_rows(m)
    transaction.commit()
    same(past[:], m)
    assert not past[:].data.flags.writeable


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 30), st.integers(0, 99)),
        st.tuples(st.just("scale"), st.integers(2, 3)),
        st.tuples(st.sampled_from(["commit", "abort", "savepoint", "rollback", "other"])),
    ),
    max_size=15,
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_model(root, steps):
    """It behaves as a matrix in memory, over commits, aborts, savepoints and another client."""
    S = root["model"] = ZSparse.csr((0, 50), "f4", blksize=4096)
    transaction.commit()
    now = committed = sparse.csr_array((0, 50), dtype="f4")
    saved = None
    for step, *args in steps:
        if step == "append":
            more = some(args[0], seed=args[1])
            S.append_rows(more)
            now = sparse.vstack([now, more], format="csr")
        elif step == "scale":
            S[:].data[:] *= args[0]
            now = now * np.float32(args[0])
        elif step == "savepoint":
            saved = transaction.savepoint(), now
        elif step == "rollback" and saved is not None:
            saved[0].rollback()
            now, saved = saved[1], None
        elif step == "abort":
            transaction.abort()
            now, saved = committed, None
        elif step in ("commit", "other"):
            transaction.commit()
            committed, saved = now, None
            if step == "other":
                with closing(Client(root)) as other:
                    same(other["model"][:], committed)
        same(S[:], now)
        half = now.shape[0] // 2
        same(S[half:], now[half:])
    transaction.abort()


WRITES = """
    import sys
    import numpy as np, transaction
    from scipy import sparse
    from wendelin.lib.zodb import dbopen
    from wendelin.sparse import ZSparse
    root = dbopen(sys.argv[1])
    S = root["S"] = ZSparse.csr((0, 1000), "i8", blksize=4096)
    root["n"] = 0
    transaction.commit()
    print("begin", flush=True)
    while True:
        n = root["n"]
        m = sparse.diags_array(np.arange(n, n + 50), shape=(50, 1000), format="csr")
        S.append_rows(m)
        root["n"] = n + 50
        transaction.commit()
"""
CHECKS = """
    import sys
    import numpy as np
    from wendelin.lib.zodb import dbopen
    root = dbopen(sys.argv[1])
    m, n = root["S"][:], root["n"]
    assert m.shape == (n, 1000) and m.sum() == sum(range(n)), (m.shape, n)
    assert (np.asarray(m.sum(axis=1)) == np.arange(n)).all()
    print(n)
"""


@pytest.mark.only("fs", "zeo")
@pytest.mark.slow
def test_kill(testdb):
    """A process that is killed in the middle leaves whole transactions."""
    with start_child(WRITES, testdb.url, stdout=-1) as child:
        assert child.stdout.readline() == "begin\n"
        time.sleep(0.1)
        child.send_signal(signal.SIGKILL)
    assert int(check_child(CHECKS, testdb.url)) >= 0


#: arguments: URL, millions of numbers
FILLS = """
    import sys
    import numpy as np, transaction
    from scipy import sparse
    from wendelin.lib.zodb import dbclose, dbopen
    from wendelin.sparse import ZSparse
    root = dbopen(sys.argv[1])
    S = root["S"] = ZSparse.csr((0, 20_000), "f4")
    transaction.commit()
    rng = np.random.default_rng(0)
    for _ in range(int(sys.argv[2])):  # of 10,000 rows of 100 numbers
        columns = np.sort(rng.integers(0, 200, (10_000, 100)) + np.arange(100) * 200, axis=1)
        ends = np.arange(10_001) * 100
        ones = np.ones(1_000_000, "f4")
        S.append_rows(sparse.csr_array((ones, columns.ravel(), ends), shape=(10_000, 20_000)))
        transaction.commit()
    dbclose(root)
"""
USES = """
    import sys
    import numpy as np
    from scipy import sparse
    from wendelin.lib.zodb import dbopen
    def anonymous():
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("RssAnon")) / 1024
    root = dbopen(sys.argv[1], read_only=True)
    S, v = root["S"], np.ones(20_000, "f4")
    tiny = sparse.csr_array(np.eye(3))
    tiny @ np.ones(3), tiny.sum(), tiny[1:]  # what SciPy has for itself
    S.rows(0, 1) @ v
    before = anonymous()
    m = S[:]
    assert (m @ v == 100).all()
    now = [anonymous()]
    assert S.rows(5_000, 7_500).sum() == 250_000
    now.append(anonymous())
    assert m.sum() == m.nnz == int(sys.argv[2]) * 1_000_000
    now.append(anonymous())
    assert max(now) - before <= 8, (before, now)
    print(m.data.nbytes + m.indices.nbytes + m.indptr.nbytes >> 20, "MiB:", max(now) - before)
"""


@pytest.mark.slow
@pytest.mark.only("fs")
def test_little_memory(testdb):
    """SciPy computes over the views: there is no copy of the numbers."""
    size = "3"  # millions: 34 MiB; by hand, 53 millions with WENDELIN_CORE_RAM=192M
    check_child(FILLS, testdb.url, size)
    check_child(USES, testdb.url, size, WENDELIN_CORE_RAM="12M")
