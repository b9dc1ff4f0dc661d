"""A.save() and A.tofile(): files of arrays, which are written in parts."""

import io

import numpy as np
import pytest
import transaction
from support.child import check_child

from wendelin.bigarray.array_zodb import ZBigArray


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f8", ">i2", "c16", "M8[s]", [("a", "i4"), ("b", ">f8")]])
def test_save_and_tofile(root, tmp_path, order, dtype, set_page_memory):
    dtype = np.dtype(dtype)
    a = np.arange(60 * 70 * dtype.itemsize, dtype=np.uint8).view(dtype)[: 60 * 70].reshape(60, 70)
    root["S"] = S = ZBigArray(a.shape, dtype, order, blksize=4096)
    transaction.commit()
    S[:] = a
    transaction.commit()
    set_page_memory(max(2 * a.nbytes, 1 << 15))  # of which a part is an eighth
    seen = []
    S.save(tmp_path / "s", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (a.nbytes, a.nbytes)
    assert len(seen) > 2
    np.save(tmp_path / "n.npy", S)
    with open(tmp_path / "f.npy", "wb") as f:
        np.save(f, S)
    expected = io.BytesIO()
    np.save(expected, np.array(a, order=order))
    for name in "s.npy", "n.npy", "f.npy":
        assert (tmp_path / name).read_bytes() == expected.getvalue(), name
    S.tofile(tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == a.tobytes()
    buffer = io.BytesIO()
    S.tofile(buffer)
    assert buffer.getvalue() == a.tobytes()
    np.savez(tmp_path / "z.npz", S, s=S)
    assert np.load(tmp_path / "z.npz")["s"].tobytes() == a.tobytes()


def test_save_of_small_arrays(root, tmp_path):
    for i, shape in enumerate([(), (0,), (3, 0), (1,)]):
        root[f"S{i}"] = S = ZBigArray(shape, "i4")
        transaction.commit()
        if S.size:
            S[...] = 5
        S.save(tmp_path / "s.npy")
        assert np.array_equal(np.load(tmp_path / "s.npy"), S)
        S.tofile(tmp_path / "t")
        assert (tmp_path / "t").read_bytes() == np.asarray(S).tobytes()
        transaction.commit()
    with pytest.raises(TypeError, match="open to write, was expected, not 5"):
        S.tofile(5)


def test_tofile_as_text(root, tmp_path):
    root["S"] = S = ZBigArray((3,), "i4")
    transaction.commit()
    S[:] = 1, 2, 3
    S.tofile(tmp_path / "t", ",")
    assert (tmp_path / "t").read_text() == "1,2,3"
    transaction.abort()


def test_save_of_more_than_page_memory(testdb, tmp_path):
    """It takes bounded memory, with every storage."""
    root = testdb.open()
    root["S"] = S = ZBigArray((96 << 20,), np.uint8)
    transaction.commit()
    for i in range(3):
        S[i << 25 : (i + 1) << 25] = i + 1
        transaction.commit()
    testdb.close(root)
    check_child(
        """
        import sys, numpy as np
        from wendelin.bigfile.virtmem.handle import ram_stat
        from wendelin.lib.zodb import dbopen, dbclose
        url, to = sys.argv[1:]
        root = dbopen(url)
        np.save(to + "/s.npy", root["S"])
        root["S"].tofile(to + "/t")
        np.savez(to + "/z.npz", root["S"])
        assert ram_stat()[1] <= 32 << 20
        dbclose(root)
        """,
        testdb.url,
        str(tmp_path),
        WENDELIN_CORE_RAM="32M",
    )
    for a in (
        np.load(tmp_path / "s.npy", mmap_mode="r"),
        np.memmap(tmp_path / "t", np.uint8),
        np.load(tmp_path / "z.npz")["arr_0"],
    ):
        assert a[:: 1 << 20].tolist() == [1] * 32 + [2] * 32 + [3] * 32
