"""BigArray, apart from the fuzzers: errors, sizes, mappings, views over time."""

import gc
import threading
import weakref

import numpy as np
import pytest
from support.child import check_child
from support.ramfile import RAMFile
from support.threads import wait_for_pool

from wendelin.bigarray import BigArray
from wendelin.bigarray.array_ram import RAMArray
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import WRITEOUT_MARKSTORED, WRITEOUT_STORE, BigFileH, BlockLoadError


def new(shape, dtype="u1", order="C", blksize=4096):
    return BigArray(shape, dtype, RAMFile(blksize).fileh_open(), order)


def test_attributes_are_those_of_an_ndarray():
    for order in "CF":
        for shape in ((), (5,), (3, 4, 5), (0, 3), (3, 0, 2)):
            for dtype in ("u1", ">c16", "S7", [("a", "i2"), ("b", "f4", (2,))]):
                A, a = new(shape, dtype, order), np.zeros(shape, dtype, order)
                for name in ("shape", "dtype", "ndim", "size", "itemsize", "nbytes", "strides"):
                    assert getattr(A, name) == getattr(a, name), (name, shape, dtype, order)
                if shape:
                    assert len(A) == (shape[0] if order == "C" else shape[-1])


def test_subarrays_are_axes():
    for order in "CF":
        for shape, dtype in (((8,), "(2,)f4"), ((3, 4), ("(2,)f4", (5,))), ((), "(2,)f4")):
            A, a = new(shape, dtype, order), np.zeros(shape, dtype, order)
            assert (A.shape, A.dtype, A.strides) == (a.shape, a.dtype, a.strides)
            A[...] = np.arange(a.size).reshape(a.shape)
            if order == "C":
                A.append(A[:1])
                assert np.array_equal(A[-1], A[0])


def test_sizes_are_exact_and_may_be_huge():
    A = new((1 << 62, np.int64(1 << 62)), "f8")
    assert A.size == 1 << 124
    assert A.nbytes == 1 << 127
    assert A.strides == (1 << 65, 8)
    with pytest.raises(MemoryError, match="smaller parts"):
        A[:]
    with pytest.raises(MemoryError):
        np.asarray(A)
    # parts of it work as those of any array, as long as a file can have them
    assert A[0, 5:9].tolist() == [0] * 4
    A[0, 1 << 59] = 3
    assert A[0, (1 << 59) - 1 : (1 << 59) + 2].tolist() == [0, 3, 0]
    with pytest.raises(MemoryError, match="2\\*\\*63"):
        A[-1, -1]


def test_sizes_change_where_no_file_has_bytes():
    for old, new_ in (
        ((1 << 62, 1 << 62), (1 << 63, 1 << 62)),
        (((1 << 70) + 5,), ((1 << 70) + 3,)),
        ((2**63 - 1,), (2**63 - 3,)),
        ((2**63 - 3,), (2**63 + 5,)),
        ((5,), (1 << 70,)),
        ((1 << 70,), (5,)),
    ):
        A = new(old)
        A[(0,) * A.ndim] = 7
        A.resize(new_)
        assert A.shape == new_
        assert A[(0,) * A.ndim] == 7
    A.resize(10)
    assert A[:].tolist() == [7] + [0] * 9


def test_an_array_larger_than_the_address_space():
    A = new((1 << 50,))
    with pytest.raises(MemoryError, match="A\\[i:j\\]"):
        np.mean(A)
    A[-1] = 5
    assert A[-3:].tolist() == [0, 0, 5]


def test_bad_arguments_are_refused_by_name():
    for shape, error, what in (
        ((-1,), ValueError, r"\(-1,\)"),
        (1.5, TypeError, "1.5"),
        ("3", TypeError, "'3'"),
        ((2, None), TypeError, "None"),
    ):
        with pytest.raises(error, match=what):
            new(shape)
        A = new((3,))
        with pytest.raises(error, match=what):
            A.resize(shape)
        assert A.shape == (3,)
    for dtype in (object, [("a", "O")], [("a", "i4"), ("b", [("c", "O", (2,))])]):
        with pytest.raises(TypeError, match="objects"):
            new((3,), dtype)
    with pytest.raises(ValueError, match="no size"):
        new((3,), "V0")
    with pytest.raises(NotImplementedError, match="'A'"):
        new((3,), order="A")
    with pytest.raises(TypeError, match=r"A\[:\]\.data"):
        _ = new((3,)).data


def test_shape_may_be_an_integer_or_a_list():
    assert new(3).shape == (3,)
    assert new([np.int8(3), 4]).shape == (3, 4)
    A = new(3)
    A.resize([4, 5])
    assert A.shape == (4, 5)


def test_keywords_of_0_x():
    A = BigArray((10,), dtype_="f4", bigfileh=RAMFile().fileh_open())
    assert A.dtype == np.float32
    for refcheck in False, True, np.False_:
        A.resize(new_shape=(5, 2), refcheck=refcheck)
        assert A.shape == (5, 2)
    A.resize((20,), False)
    assert A.shape == (20,)
    with pytest.raises(TypeError, match=r"refcheck is 3.*A shape is one argument"):
        A.resize(2, 3)  # an ndarray's resize() takes it so
    for bad in {5}, {5: 2}, "5", b"5":
        with pytest.raises(TypeError, match="neither an integer nor a sequence"):
            A.resize(bad)
        with pytest.raises(TypeError, match="neither an integer nor a sequence"):
            BigArray(bad, "f4", RAMFile().fileh_open())
    assert A.shape == (20,)
    with pytest.raises(TypeError, match="'dtype_' and 'dtype' are the same: give one"):
        BigArray(3, dtype="f4", dtype_="f4", bigfileh=RAMFile().fileh_open())
    for cls in ZBigArray, RAMArray:
        assert cls((3,), dtype_="u2").dtype == np.uint16


def test_advanced_indexing_says_what_to_do():
    A = new((3, 4))
    for idx in ([0, 1], np.array([1]), True, np.array([True] * 3), ([0], [1]), 1.0, "a"):
        with pytest.raises(IndexError, match=r"A\[:\]\[idx\]"):
            A[idx]
        with pytest.raises(IndexError):
            A[idx] = 1


def mapped(view):
    """Return the (first page, number of pages) of the mapping that a view is over."""
    while not hasattr(view, "filerange"):
        view = view.base
    return view.filerange()


def test_all_is_mapped_where_there_is_room_and_else_what_is_indexed():
    A = new((1000, 4096))
    assert mapped(A[990:7:-7]) == (0, 1000)
    assert A[5:5].size == 0
    assert A._v_vma() is None
    A = new((1 << 50, 4096))
    assert mapped(A[990:7:-7]) == (10, 981)
    assert mapped(new((1 << 50, 3 * 4096))[5, 4096:4100]) == (16, 1)
    assert mapped(new((4096, 1 << 50), order="F")[:, 3]) == (3, 1)


def test_overlapping_parts_are_one_memory_to_numpy():
    for order in "CF":
        A, a = new((3000, 5), "i4", order), np.zeros((3000, 5), "i4", order)
        for x in (A, a):
            x[:] = np.arange(15000).reshape(3000, 5)
            x[1:] += x[:-1]
            x[:-2] = x[2:]
            d, s = x[:, 1:], x[:, :-1]
            d[:] = s
        assert np.shares_memory(A[5:2000], A[1990:])
        assert (A[:] == a).all()


def test_nothing_is_loaded_before_it_is_touched():
    A = new((100, 4096))
    a = A[10:20]
    assert A._fileh().file.loads == []
    a[3, 5]
    assert A._fileh().file.loads == [13]


def test_a_view_holds_its_mapping_and_others_share_it():
    A = new((100, 4096))
    a = A[:]
    vma = weakref.ref(A._map(0, 1)[0])
    for i in range(100):
        assert np.shares_memory(A[i], a)
    del a
    gc.collect()
    assert vma() is None
    A[50] = 1
    assert A[49:52, 0].tolist() == [0, 1, 0]


def test_iteration_is_over_the_first_axis_and_ends():
    for order in "CF":
        A = new((3, 5), order=order)
        A[...] = np.arange(15).reshape(3, 5)
        assert [row.tolist() for row in A] == A[:].tolist()
        assert [row.tolist() for row in reversed(A)] == A[::-1].tolist()
    with pytest.raises(TypeError):
        iter(new(()))
    with pytest.raises(TypeError):
        reversed(new(()))
    with pytest.raises(TypeError):
        len(new(()))


def test_array_protocol():
    A = new((3, 4), "i4", "F")
    A[:] = np.arange(12).reshape(3, 4)
    a = np.asarray(A)
    assert np.shares_memory(a, A[:])
    assert np.asarray(A, "f8").dtype == "f8"
    assert not np.shares_memory(np.array(A), a)
    assert np.array(A).flags.f_contiguous
    with pytest.raises(ValueError, match="copy"):
        np.asarray(A, "f8", copy=False)
    assert np.shares_memory(np.asarray(A, "i4", copy=False), a)
    assert np.mean(A) == 5.5
    assert (np.ones(4) + A).sum() == 78


def test_augmented_assignment_of_a_part():
    A = new((10,), "i4")
    A[2:5] += 3
    A[7] += 1
    assert A[:].tolist() == [0, 0, 3, 3, 3, 0, 0, 1, 0, 0]


def test_overlapping_parts_are_assigned_as_in_one_memory():
    """If they have mappings of their own, NumPy cannot see by addresses that they overlap."""
    rows = np.arange(10, dtype="u1")[:, np.newaxis] * np.ones(4096, "u1")
    up, down = slice(1, None), slice(None, -1)
    for to, of in ((up, down), (down, up), (up, slice(-2, None, -1))):
        A, a = new((10, 4096)), rows.copy()
        A[:] = a
        A[to] = A[of]
        a[to] = a[of]
        assert A[:].tolist() == a.tolist()
    # other bytes of the same blocks, and another file, need no copy
    from wendelin.bigarray.assigning import no_alias

    half, other = A[:, 2048:], new((10, 4096))[:]
    for values in (A[0, :2048], other, rows, 5):
        assert no_alias(half[2:], values) is values


def test_views_keep_their_size_and_see_zeros_past_the_end():
    A = new((3 * 4096,))
    a = A[:]
    a[:] = 7
    A.resize(4096 + 10)
    assert len(a) == 3 * 4096
    assert a[: 4096 + 10].all()
    assert not a[4096 + 10 :].any()
    A.resize(3 * 4096)
    assert A[:].sum() == 7 * (4096 + 10)


def test_what_was_dropped_stays_dropped_after_a_write_out():
    A = new((3 * 4096,))
    fileh = A._fileh()
    A[:] = 7
    fileh.dirty_writeout(WRITEOUT_STORE | WRITEOUT_MARKSTORED)
    A.resize(10)
    assert fileh.isdirty()
    fileh.dirty_writeout(WRITEOUT_STORE | WRITEOUT_MARKSTORED)
    assert sorted(fileh.file.blocks) == [0]
    A.resize(3 * 4096)
    assert A[:].sum() == 70
    # a discard brings the pages back; the shape is for the caller to set
    A.resize(5)
    fileh.dirty_discard()
    assert A[:].sum() == 35
    A._set_shape((3 * 4096,))
    assert A[:].sum() == 70


def test_a_file_that_cannot_shrink():
    class NoTruncate(RAMFile):
        truncate = property()

    A = BigArray((5 * 4096,), "u1", NoTruncate(4096).fileh_open())
    A[:] = 7
    A.resize(4096 + 1)
    A.resize(5 * 4096)
    assert A[:].sum() == 7 * 4097


@pytest.mark.parametrize("order", "CF")
def test_fields_as_of_ndarrays(order):
    dtype = np.dtype([("t", "f8"), ("n", "i4", (2,)), ("s", "S3")])
    A = BigArray((700, 3), dtype, RAMFile().fileh_open(), order)
    a = np.zeros((700, 3), dtype, order)
    for x in A, a:
        x["t"] = np.arange(2100.0).reshape(700, 3)
        x["n"][5] = 7
        x[["t", "s"]][3] = (1.5, b"abc")
    assert np.array_equal(A[...], a)
    for names in "t", "n", ["t"], ["s", "n"]:
        assert np.array_equal(A[names], a[names])
        assert np.array_equal(A.read(names), a[names])
        assert A[names].dtype == a[names].dtype
        assert np.shares_memory(A[names], A[...])
        A.prefetch(names)
    for bad in "x", ["t", "x"]:
        with pytest.raises((ValueError, KeyError)) as ours:
            A[bad]
        with pytest.raises((ValueError, KeyError)) as theirs:
            a[bad]
        assert str(ours.value) == str(theirs.value)
    for bad in [], ["t", 1], ("t", 0):
        with pytest.raises(IndexError, match="not a basic index"):
            A[bad]
    B = BigArray((1 << 62,), "u1", RAMFile().fileh_open())
    with pytest.raises(IndexError, match="'t' is not a basic index"):
        B["t"]


def test_append_of_structures_as_tuples():
    A = BigArray((1,), [("t", "f8"), ("n", "i4")], RAMFile().fileh_open())
    A.append([(1.5, 2), (2.5, 3)])
    A.append(np.array([(3.5, 4)], A.dtype))
    assert A[...].tolist() == [(0, 0), (1.5, 2), (2.5, 3), (3.5, 4)]
    for bad in (1.5, 2), [(1, 2, 3)], [["x"]]:
        with pytest.raises((ValueError, TypeError)):
            A.append(bad)
    assert A.shape == (4,)
    B = BigArray((0, 2), A.dtype, RAMFile().fileh_open())
    B.append([[(1, 2), (3, 4)]])
    assert B[...].tolist() == [[(1, 2), (3, 4)]]


def test_append():
    A = new((0, 3), "i4")
    A.append(np.ones((2, 3)))
    A.append([[5, 6, 7]])
    A.append(np.zeros((0, 3)))
    assert A[:].tolist() == [[1, 1, 1], [1, 1, 1], [5, 6, 7]]
    F = new((3, 0), "i4", "F")
    F.append([[1, 2], [3, 4], [5, 6]])
    F.append([[7], [8], [9]])
    assert F[:].tolist() == [[1, 2, 7], [3, 4, 8], [5, 6, 9]]
    for bad in (np.ones(3), np.ones((2, 4)), np.ones((1, 2, 3)), 5):
        with pytest.raises(ValueError, match=r"\(3, 3\)"):
            A.append(bad)
    with pytest.raises(ValueError, match="0-d"):
        new(()).append(1)
    assert A.shape == (3, 3)


def test_an_append_that_fails_leaves_the_array_as_it_was():
    A = new((10,), "i4")
    A[:] = 5
    with pytest.raises(ValueError, match="invalid literal"):
        A.append(np.array(["1", "2", "x"]))
    assert A.shape == (10,)
    A.resize(20)
    assert A[10:].tolist() == [0] * 10


def test_an_append_of_what_cannot_be_loaded_leaves_the_array_as_it_was():
    A = new((10,))
    A[:] = 5
    bad = BigArray((4 * 4096,), "u1", Failing().fileh_open())[:]
    with pytest.raises(BlockLoadError, match="bad disk"):
        A.append(bad)
    assert A.shape == (10,)
    A.resize(5 * 4096)
    assert A[:].sum() == 50


def test_an_append_of_what_is_past_the_end():
    A = new((8 * 4096,))
    A[:] = np.repeat(np.arange(1, 9), 4096)
    past = A[2 * 4096 :]
    A.resize(4 * 4096)
    A.append(past)
    expected = [1, 2, 3, 4, 3, 4, 0, 0, 0, 0]
    assert A[::4096].tolist() == expected


def test_append_brings_no_old_data_back():
    """wendelin.core 2 leaves data past the end of an array that shrinks."""
    file = RAMFile()
    file.blocks = {0: b"\7" * 4096, 1: b"\7" * 4096, 5: b"\7" * 4096}
    A = BigArray((10,), "u1", file.fileh_open())
    A.append([1, 2])
    A.resize(6 * 4096)
    assert A[:13].tolist() == [7] * 10 + [1, 2, 0]
    assert A[:].sum() == 73


class Failing(RAMFile):
    def loadblk(self, blk, buf):
        if blk == 2:
            raise OSError("bad disk")
        super().loadblk(blk, buf)


def test_read_raises_precisely_and_dooms_nothing():
    A = BigArray((4 * 4096,), "u1", Failing().fileh_open())
    with pytest.raises(BlockLoadError, match="bad disk") as e:
        A.read(slice(4096, None))
    assert e.value.blk == 2
    assert e.value.file is A._fileh().file
    assert not A._fileh().failed
    b = A.read(slice(None, 8192))
    b[:] = 1
    assert not A[:8192].any()
    assert A.read(3) == 0
    assert A.read(slice(0, 0)).shape == (0,)


@pytest.mark.parametrize(
    "idx",
    [slice(None), np.s_[::-3, 1:], np.s_[:, ::-1], np.s_[5:2000, 7], np.s_[..., None], np.s_[3]],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_read_more_than_page_memory_holds(set_page_memory, idx, order):
    """It reads in steps, and loads each part before it copies it."""
    loads = []

    class Handle(BigFileH):
        def load(self, first, n):
            loads.append(n)
            super().load(first, n)

    A = BigArray((3000, 9), "i4", Handle(RAMFile(4096)), order=order)
    want = np.arange(27000, dtype="i4").reshape((3000, 9), order=order)
    A[:] = want
    A._fileh().dirty_writeout(WRITEOUT_STORE | WRITEOUT_MARKSTORED)
    set_page_memory(8 * 4096)
    got = A.read(idx)
    assert isinstance(got, np.ndarray)
    assert got.shape == want[idx].shape
    assert (got == want[idx]).all()
    assert max(loads) <= 3


class Signalling(Failing):
    """A file that signals each time a block is asked for."""

    def __init__(self):
        super().__init__()
        self.asked = threading.Semaphore(0)

    def loadblk(self, blk, buf):
        try:
            super().loadblk(blk, buf)
        finally:
            self.asked.release()


def test_prefetch_loads_and_keeps_errors_to_itself():
    file = Signalling()
    A = BigArray((6 * 4096,), "u1", file.fileh_open())
    A.prefetch()
    A.prefetch(slice(0, 0))
    for _ in range(6):
        assert file.asked.acquire(timeout=60)
    assert sorted(file.loads) == [0, 1, 3, 4, 5]
    assert not A._fileh().failed


def test_prefetch_of_any_size_returns_at_once_and_ends_with_the_array():
    file = Signalling()
    A = BigArray((1 << 50,), "u1", file.fileh_open())
    A.prefetch()
    assert file.asked.acquire(timeout=60)
    fileh = weakref.ref(A._fileh())
    del A
    wait_for_pool()
    gc.collect()
    assert fileh() is None
    with pytest.raises(OverflowError, match=r"2\*\*63"):
        new((1 << 70,)).prefetch()
    with pytest.raises(MemoryError, match="smaller parts"):
        new((1 << 70,)).read()


def test_prefetch_does_not_hold_up_the_end_of_a_process_and_works_after_a_fork():
    check_child(
        """
        import os, threading, warnings
        from support.ramfile import RAMFile
        from wendelin.bigarray import BigArray

        class File(RAMFile):
            asked = threading.Semaphore(0)
            def loadblk(self, blk, buf):
                self.asked.release()

        def prefetch(nblocks):
            A = BigArray((nblocks * 4096,), "u1", File().fileh_open())
            A.prefetch()
            assert File.asked.acquire(timeout=30)
            return A

        prefetch(1)
        warnings.simplefilter("ignore")  # of fork() in a process with threads
        pid = os.fork()
        if pid == 0:
            try:
                prefetch(1)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        A = prefetch(1 << 36)
        """
    )
