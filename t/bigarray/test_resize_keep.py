"""A.resize(shape, keep=True): elements keep their indices, along any axis."""

import numpy as np
import pytest
import transaction
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from wendelin.bigarray import moving
from wendelin.bigarray.array_ram import RAMArray
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import ram_set_limit
from wendelin.bigfile.virtmem.handle import ram_stat

SHAPES = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.tuples(*[st.integers(0, 7)] * n), min_size=2, max_size=5)
)


def resized(a, shape):
    """Return what resize(shape, keep=True) should make of a."""
    new = np.zeros(shape, a.dtype)
    both = tuple(slice(min(m, n)) for m, n in zip(a.shape, shape, strict=True))
    new[both] = a[both]
    return new


@settings(max_examples=examples(40), deadline=None)
@given(SHAPES, st.sampled_from("CF"), st.sampled_from(["u1", "V3", "f8"]), st.integers(1, 200))
def test_elements_keep_their_indices(shapes, order, dtype, step):
    old, moving._STEP = moving._STEP, step
    try:
        A = RAMArray(shapes[0], dtype, order)
        count = A.size * A.itemsize
        a = np.frombuffer((np.arange(count) % 251 + 1).astype("u1").tobytes(), dtype)
        a = a.reshape(shapes[0])
        A[...] = a
        for shape in shapes[1:]:
            A.resize(shape, keep=True)
            a = resized(a, shape)
            assert A.shape == shape
            assert A[...].tobytes() == a.tobytes()
    finally:
        moving._STEP = old


def test_in_a_database(root, fmt):
    data = np.arange(40 * 100, dtype="i4").reshape(40, 100)
    for order in "CF":
        root["A"] = A = ZBigArray((40, 100), "i4", order, blksize=4096, zblk_fmt=fmt)
        transaction.commit()
        A[...] = data
        transaction.commit()
        view = A[:]
        A.resize((50, 150), keep=True)
        assert np.array_equal(A, resized(data, (50, 150)))
        transaction.abort()
        assert A.shape == (40, 100)
        assert np.array_equal(A, data)
        assert np.array_equal(view, data)
        A.resize((30, 70), keep=True)
        A.resize((60, 90), keep=True)
        transaction.commit()
        root._p_jar.cacheMinimize()
        assert np.array_equal(A, resized(resized(data, (30, 70)), (60, 90)))


def test_what_does_not_fit_into_page_memory_is_refused(root, monkeypatch):
    monkeypatch.setenv("WENDELIN_CORE_SPOOL", "0")
    root["A"] = A = ZBigArray((1000, 1000), "f8")
    transaction.commit()
    A[:] = 1
    transaction.commit()
    limit = ram_stat()[0]
    ram_set_limit(8 << 20)
    try:
        with pytest.raises(MemoryError, match=r"8008000 bytes would be moved .*g\.move"):
            A.resize((1000, 1001), keep=True)
        assert A.shape == (1000, 1000)
        A.resize((1001, 1000), keep=True)  # nothing is moved
        assert (A[:1000] == 1).all()
        assert not A[1000].any()
    finally:
        transaction.abort()
        ram_set_limit(limit)


def test_bad_shapes_with_keep(root):
    root["A"] = A = ZBigArray((3, 4), "u1")
    transaction.commit()
    with pytest.raises(ValueError, match="the array has 2 axes: with keep=True their number stays"):
        A.resize((12,), keep=True)
    with pytest.raises(ValueError, match="negative"):
        A.resize((-1, 4), keep=True)


def test_bool():
    for values in 0, 7:
        A = RAMArray((1, 1), "i4")
        A[...] = values
        assert bool(A) == bool(values)
    S = RAMArray((), "?")
    assert not S
    for shape in 0, 2, (3, 4):
        with pytest.raises(ValueError, match=r"is ambiguous.*A\[...\]\.any\(\)"):
            bool(RAMArray(shape, "u1"))
