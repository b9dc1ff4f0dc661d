"""BigArray does what ndarray does: random shapes, dtypes, indices and sequences of changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ramfile import RAMFile

from wendelin.bigarray import BigArray

pytestmark = [pytest.mark.once, pytest.mark.slow]

DTYPES = ["u1", "<f8", ">i4", "c16", "S3", "V5", [("a", "u1"), ("b", ">i2", (2,)), ("c", "S2")]]

shapes = st.lists(st.sampled_from([0, 1, 2, 3, 5, 9, 70]), max_size=4).map(tuple)
layouts = st.tuples(
    shapes.filter(lambda s: np.prod(s, dtype=int) < 100_000),
    st.sampled_from(DTYPES),
    st.sampled_from("CF"),
    st.sampled_from([4096, 8192, 12288]),
)


def pair(layout, seed=1):
    """Return (BigArray, ndarray) with the same random bytes."""
    shape, dtype, order, blksize = layout
    a = np.zeros(shape, dtype, order)
    rng = np.random.default_rng(seed)
    raw = rng.integers(1, 127, a.nbytes, np.uint8)
    if a.nbytes:
        a = np.ndarray(shape, dtype, raw, order=order)
    file = RAMFile(blksize)
    for i in range(0, a.nbytes, blksize):
        file.blocks[i // blksize] = raw[i : i + blksize].tobytes()
    return BigArray(shape, dtype, file.fileh_open(), order), a


def small():
    return st.integers(-12, 12) | st.sampled_from([0, -1, 69, -70, 1 << 70, -(1 << 70)])


items = (
    small()
    | st.builds(np.int16, st.integers(-12, 12))
    | st.builds(np.array, st.integers(-12, 12))
    | st.builds(
        slice,
        st.none() | small(),
        st.none() | small(),
        st.none() | st.sampled_from([1, -1, 2, -2, 3, -7, 100, 1 << 70]),
    )
    | st.just(Ellipsis)
    | st.none()
)
indices = items | st.lists(items, max_size=6).map(tuple)


def as_numpy(idx):
    """Return idx for an ndarray, where any array as index makes a copy, even a 0-d one."""
    if isinstance(idx, tuple):
        return tuple(map(as_numpy, idx))
    return int(idx) if isinstance(idx, np.ndarray) else idx


def copy(x):
    return x.copy("K") if isinstance(x, np.ndarray) else x


def outcome(f):
    """Return what f returns, or the type of what it raises."""
    try:
        return f()
    except Exception as e:
        return type(e)


def compare(ours, theirs):
    if isinstance(theirs, type) or isinstance(ours, type):
        assert ours == theirs
        return
    assert type(ours) is type(theirs)
    if isinstance(theirs, np.ndarray):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        if theirs.size:
            assert ours.strides == theirs.strides
            assert ours.flags.writeable
        assert ours.tobytes() == theirs.tobytes()
    else:
        assert np.array(ours).tobytes() == np.array(theirs).tobytes()


@settings(max_examples=1500, deadline=None)
@given(layouts, indices)
def test_indexing(layout, idx):
    A, a = pair(layout)
    compare(outcome(lambda: A[idx]), outcome(lambda: a[as_numpy(idx)]))
    compare(outcome(lambda: A.read(idx)), outcome(lambda: copy(a[as_numpy(idx)])))


def assign(x, idx, value):
    x[idx] = value
    return True


@settings(max_examples=700, deadline=None)
@given(layouts, indices, st.integers(0, 4))
def test_assignment(layout, idx, how):
    A, a = pair(layout)
    target = outcome(lambda: a[as_numpy(idx)])
    if isinstance(target, type):
        value = np.zeros((), a.dtype)
    else:
        target = np.asarray(target)
        value = {
            0: np.zeros((), a.dtype),
            1: np.full(target.shape, target.flat[0] if target.size else 0, a.dtype),
            2: np.zeros((1, *target.shape), a.dtype),
            3: np.zeros((*target.shape, 2), a.dtype),
            4: np.zeros(target.shape[1:], a.dtype),
        }[how]
    b = a.copy(A._order)
    ours, theirs = (
        outcome(lambda x=x, i=i: assign(x, i, value)) for x, i in ((A, idx), (b, as_numpy(idx)))
    )
    assert ours == theirs
    assert A[...].tobytes() == b.tobytes()


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["u1", "V5", ">i4"]),
    st.sampled_from("CF"),
    st.integers(1, 9),
    st.integers(-8, 8),
    st.sampled_from([1, -1]),
)
def test_assignment_of_a_part_to_another(dtype, order, n, shift, step):
    """The parts may overlap in the file."""
    A, a = pair(((9, 5000) if order == "C" else (5000, 9), dtype, order, 4096))
    to, of = slice(0, n), slice(max(shift, 0), max(shift, 0) + n)
    if shift < 0:
        to = slice(-shift, -shift + n)
    n = min(len(range(9)[to]), len(range(9)[of]))
    to, of = slice(to.start, to.start + n), range(9)[of][:n][::step]
    of = slice(of.start, of.stop if of.stop >= 0 else None, step) if n else slice(0, 0)
    to, of = ((to,), (of,)) if order == "C" else ((..., to), (..., of))
    A[to] = A[of]
    a[to] = a[of]
    assert A[...].tobytes() == a.tobytes()


operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 3000), st.integers(1, 255)),
        st.tuples(st.just("resize"), st.integers(0, 9000)),
        st.tuples(st.just("set"), st.integers(0, 9000), st.integers(1, 4000), st.integers(1, 255)),
        st.tuples(st.just("minor"), st.integers(1, 4)),
    ),
    max_size=12,
)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", ["u1", "V5"])
@settings(max_examples=60, deadline=None)
@given(operations)
def test_size_changes(dtype, order, ops):
    """Bytes keep their place, and new ones are zeros. Old views still show parts of the file."""
    dtype = np.dtype(dtype)
    A = BigArray((0, 1) if order == "C" else (1, 0), dtype, RAMFile(4096).fileh_open(), order)
    model = np.zeros(0, dtype)  # the elements in the order of memory
    minor = 1
    views = []
    for op, *args in ops:
        if op == "append":
            n, byte = args
            rows = np.frombuffer(bytes([byte]) * (n * minor * dtype.itemsize), dtype)
            rows = rows.reshape((n, minor) if order == "C" else (minor, n), order=order)
            A.append(rows)
            model = np.concatenate([model, rows.ravel(order)])
        elif op in ("resize", "minor"):
            if op == "resize":
                n = args[0] // minor
            else:
                minor, n = args[0], len(A)
            A.resize((n, minor) if order == "C" else (minor, n))
            model = np.concatenate([model, np.zeros(10**5, dtype)])[: n * minor]
        else:
            start, n, byte = args
            rows = A[start : start + n] if order == "C" else A[:, start : start + n]
            rows[...] = value = np.frombuffer(bytes([byte]) * dtype.itemsize, dtype)[0]
            model[start * minor : (start + n) * minor] = value
        assert A.size == len(model)
        assert A[...].ravel(order).tobytes() == model.tobytes()
        if len(model):
            views.append(A[...])
        # all views show one file: their common part is the same, the rest is zeros
        for view in views:
            flat = view.ravel(order).tobytes()
            common = min(len(flat), model.nbytes)
            assert flat[:common] == model.tobytes()[:common]
            assert not any(flat[common:])
