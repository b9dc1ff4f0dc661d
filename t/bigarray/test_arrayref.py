"""ArrayRef: a reference gives the view it was made of, and nothing that is not in its root."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import transaction
from numpy.lib.stride_tricks import as_strided, sliding_window_view
from support import TESTS
from support.child import check_child
from support.ramfile import RAMFile

from wendelin.bigarray import ArrayRef, BigArray, InvalidArrayRef
from wendelin.bigarray.array_zodb import ZBigArray

PAIR = np.dtype([("a", "u1"), ("b", ">i2", (2,)), ("c", "S3")])
NESTED = np.dtype([("n", "i8"), ("o", "O", (2,)), ("s", [("p", "O"), ("q", "f4")])])


def filled(shape, dtype, order="C", seed=1):
    """Return an ndarray of random bytes."""
    a = np.zeros(shape, dtype, order)
    raw = np.random.default_rng(seed).integers(1, 127, a.nbytes, np.uint8)
    return np.ndarray(shape, dtype, raw, order=order)


def big(shape, dtype, order="C"):
    """Return a BigArray of random bytes."""
    A = BigArray(shape, dtype, RAMFile().fileh_open(), order)
    A[...] = filled(shape, dtype, order)
    return A


def same(x, y):
    """Assert that two arrays are alike in all that can be seen of them; return True."""
    assert type(x) is type(y)
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    assert x.flags.writeable == y.flags.writeable
    if x.size:
        assert x.strides == y.strides
    values = x.dtype.hasobject or x.dtype.fields  # there may be gaps between fields
    assert repr(x.tolist()) == repr(y.tolist()) if values else x.tobytes() == y.tobytes()
    return True


VIEWS = {
    "all": lambda a: a[...],
    "slice": lambda a: a[2:5],
    "reversed": lambda a: a[::-1],
    "steps": lambda a: a[5:0:-2, 1::3],
    "column": lambda a: a[:, 2],
    "element": lambda a: a[3:4, 2:3].reshape(()),
    "transposed": lambda a: a.T,
    "axes": lambda a: a[:, np.newaxis, :, np.newaxis].swapaxes(0, 2),
    "broadcast": lambda a: np.broadcast_to(a[1], (3, 2, *a[1].shape)),
    "strided": lambda a: as_strided(a[1:], (2, 2), (a.strides[1], a.strides[0])),
    "windows": lambda a: sliding_window_view(a, 3, axis=0),
    "nothing": lambda a: a[3:3],
    "diagonal": lambda a: a.diagonal(),
    "read-only": lambda a: _frozen(a[1:3]),
    "matrix": lambda a: a[1:].view(np.matrix),
    "bytes": lambda a: a.T.view("u1") if a.flags.f_contiguous else a.view("u1"),
}
FIELDS = {
    "field": lambda a: a["b"][1:],
    "subarray": lambda a: a["b"][..., ::-1],
    "fields": lambda a: a[["c", "a"]],
    "recarray": lambda a: a[2:].view(np.recarray),
    "attribute": lambda a: a.view(np.recarray).b,
}


def _frozen(a):
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("name", [*VIEWS, *FIELDS])
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_view_of_an_ndarray(name, order):
    view = {**VIEWS, **FIELDS}[name]
    a = filled((7, 9), PAIR if name in FIELDS else "f4", order)
    v = view(a)
    ref = ArrayRef(v)
    if v.size:
        assert np.shares_memory(ref.root, a)
        assert np.shares_memory(ref.deref(), v)
        assert ref.root.nbytes == a.nbytes
    assert same(ref.deref(), v)
    sent = pickle.loads(pickle.dumps(ref))
    assert same(sent.deref(), v)
    if v.size:
        assert np.shares_memory(sent.root, sent.deref())
    # a reference to what a reference gives has the same root
    assert same(ArrayRef(sent.deref()).deref(), v)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("name", [*VIEWS, *FIELDS])
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_view_of_a_bigarray(name, order):
    view = {**VIEWS, **FIELDS}[name]
    A = big((70, 9), PAIR if name in FIELDS else "f4", order)
    if order == "F" and name in ("bytes", "matrix"):
        A.resize((7, 9))
    v = view(A[...])
    ref = ArrayRef(v)
    if v.size:
        assert ref.root is A
        assert np.shares_memory(ref.deref(), v)
    assert same(ref.deref(), v)


def test_attributes():
    a = filled((4, 5), "i4").copy()
    ref = ArrayRef(a[:0:-1, 1::2])
    assert ref.root is a
    assert ref.offset == 3 * 20 + 4
    assert (ref.shape, ref.strides) == ((3, 2), (-20, 8))
    assert (ref.dtype, ref.type) == (a.dtype, np.ndarray)
    assert "offset=64" in repr(ref)
    assert "i4" in repr(ref) or "int32" in repr(ref)


def test_a_bigarray_is_all_of_it_and_nothing_is_mapped():
    A = BigArray((1 << 40, 1 << 20), "f8", RAMFile().fileh_open())
    ref = ArrayRef(A)
    assert ref.root is A
    with pytest.raises(MemoryError, match="smaller parts"):
        ref.deref()
    A.resize((3, 4))
    assert ArrayRef(A).deref().shape == (3, 4)
    assert repr(A) in repr(ArrayRef(A))


def test_a_view_in_the_middle_of_what_is_too_large_to_be_mapped():
    A = BigArray((1 << 50, 4096), "u1", RAMFile().fileh_open())
    A[1 << 49, 5] = 7
    v = A[(1 << 49) - 3 : (1 << 49) + 3, ::-1]
    ref = ArrayRef(v)
    assert ref.root is A
    del v
    assert ref.deref()[3, -6] == 7


def test_nothing_is_loaded():
    file = RAMFile()
    A = BigArray((100, 4096), "u1", file.fileh_open())
    ArrayRef(A[10:20]).deref()
    assert file.loads == []


def test_arrays_that_are_not_contiguous():
    """pickle keeps the memory order of an array only if it is C- or F-contiguous."""
    a = filled((3, 4, 5), "f8").transpose(1, 0, 2).copy("K")
    assert not a.flags.c_contiguous
    buffer = bytearray(filled(200, "u1"))
    gaps = np.ndarray((5, 3), "i4", buffer, 8, (32, 8))
    back = np.ndarray((5, 3), "i4", buffer, 140, (-32, 8))
    o = np.array([[[str(i * j) for i in range(3)] for j in range(4)]] * 2, object)
    o = o.transpose(1, 0, 2).copy("K")
    for x in (a, gaps, back, o):
        for v in (x, x[1:, ::-1], x.T):
            ref = ArrayRef(v)
            assert same(ref.deref(), v)
            assert np.shares_memory(ref.deref(), v)
            assert same(pickle.loads(pickle.dumps(ref)).deref(), v)
    ArrayRef(gaps[2:]).deref()[...] = 9
    assert (gaps[2:] == 9).all()
    assert not (gaps[:2] == 9).any()


def test_memory_that_cannot_be_written():
    a = np.frombuffer(b"abcdefgh", "u1")
    for v in (a, a[1::2], a.view("u2")):
        assert same(ArrayRef(v).deref(), v)
        ref = pickle.loads(pickle.dumps(ArrayRef(v)))
        assert not ref.deref().flags.writeable
        ref.writeable = True
        ref.deref().tobytes()
    ref = ArrayRef(a)
    ref.writeable = True
    assert not ref.deref().flags.writeable


def test_memmap(tmp_path):
    filled(1000, "f8").tofile(tmp_path / "x")
    a = np.memmap(tmp_path / "x", "f8", "r")
    v = a[10:900:7]
    assert np.array_equal(ArrayRef(v).deref(), v)
    assert np.array_equal(pickle.loads(pickle.dumps(ArrayRef(v))).deref(), v)


def test_objects():
    a = np.zeros(5, NESTED)
    a["n"] = range(5)
    a["o"] = [["x", 2]] * 5
    a["s"]["p"] = [object] * 5
    a["s"]["q"] = 1.5
    o = a["o"].copy()
    for v in (
        *(a, a[::-2], a["n"], a["n"][1:].view("f8"), a["o"], a["o"][:, 1], a["o"][::-1, ::-1]),
        *(a["s"], a["s"]["p"], a["s"]["q"][::2], a["s"]["q"].view("i4")),
        *(o, o[1:3], o.T, o[3, 1:].reshape(()), o.reshape(-1)[::3]),
    ):
        ref = ArrayRef(v)
        assert same(ref.deref(), v)
        assert np.shares_memory(ref.deref(), v)
        assert same(pickle.loads(pickle.dumps(ref)).deref(), v)


def test_what_is_not_an_array():
    A = big((10,), "i4")
    for x in (A[3], 5, [1, 2], None, memoryview(b"abc")):
        with pytest.raises(TypeError, match=type(x).__name__):
            ArrayRef(x)
    with pytest.raises(TypeError, match="StringDType"):
        ArrayRef(np.array(["one", "two"], "T"))
    with pytest.raises(TypeError, match="mask"):
        ArrayRef(np.ma.array([1, 2], mask=[0, 1]))


# ---- references that do not fit ----


def changed(ref, **values):
    ref = pickle.loads(pickle.dumps(ref)) if isinstance(ref.root, np.ndarray) else ref
    new = object.__new__(ArrayRef)
    new.__dict__.update(ref.__dict__, **values)
    return new


@pytest.mark.parametrize("root", [filled((7, 9), "f4"), big((7, 9), "f4")], ids=type)
@pytest.mark.parametrize(
    "values",
    [
        {"offset": -1},
        {"offset": 4},
        {"offset": 1 << 70},
        {"offset": 1.5},
        {"shape": (8, 9)},
        {"shape": (7, 9, 1)},
        {"shape": (1 << 40, 1 << 40)},
        {"shape": (-1, 9)},
        {"shape": 5},
        {"shape": (1,) * 70, "strides": (4,) * 70},
        {"shape": (0, 1 << 62)},
        {"shape": (1 << 62, 1 << 62), "strides": (0, 0)},
        {"strides": (-36, 4)},
        {"strides": (36, 5)},
        {"strides": (1 << 63, 4)},
        {"strides": (1 << 63, 4), "shape": (1, 1)},
        {"strides": (36, None)},
        {"dtype": np.dtype("f8")},
        {"dtype": np.dtype(("f4", (9,)))},
        {"dtype": np.dtype("O"), "shape": (1,), "strides": (8,)},
        {"dtype": np.dtype([("x", "O")]), "shape": (1,), "strides": (8,)},
        {"dtype": np.dtype("T"), "shape": (1,), "strides": (16,)},
        {"dtype": "f4"},
        {"type": list},
        {"type": 5},
        {"type": np.matrix, "shape": (7, 3, 3), "strides": (36, 12, 4)},
        {"root": b"x" * 1000},
        {"root": None},
        {"root": filled((9, 9), "f4")[:, ::2]},
    ],
    ids=str,
)
def test_a_reference_that_does_not_fit(root, values):
    ref = ArrayRef(root)
    assert ref.deref().shape == (7, 9)
    with pytest.raises(InvalidArrayRef):
        changed(ref, **values).deref()


def test_a_reference_that_is_incomplete():
    ref = changed(ArrayRef(np.arange(3)))
    for name in list(ref.__dict__):
        bad = changed(ref)
        del bad.__dict__[name]
        with pytest.raises(InvalidArrayRef, match=name):
            bad.deref()


def test_objects_are_never_made_of_bytes_nor_bytes_of_objects():
    a = np.zeros(4, NESTED)
    ref = ArrayRef(a["n"])
    obj = np.dtype("O")
    for values in (
        {"dtype": obj},
        {"offset": 8},
        {"offset": 4},
        {"strides": (8,)},
        {"dtype": np.dtype("u1"), "offset": 7, "strides": (1,)},
        {"dtype": np.dtype("V16")},
        {"offset": 8, "dtype": obj, "strides": (8,)},
        {"offset": 12, "dtype": obj},
        {"offset": 8, "dtype": np.dtype([("x", "O"), ("y", "i8")])},
        {"offset": 32, "shape": (4, 2), "strides": (36, 8), "dtype": obj},
    ):
        with pytest.raises(InvalidArrayRef):
            changed(ref, **values).deref()
    text = np.array(["one", "a string that is not short"], "T")
    ref = ArrayRef(np.zeros(2, "V16"))
    for values in ({}, {"dtype": text.dtype}, {"dtype": obj}, {"dtype": np.dtype("u1")}):
        with pytest.raises(InvalidArrayRef):
            changed(ref, root=text, **values).deref()


def test_an_array_that_has_shrunk():
    A = big((1000,), "u1")
    ref = ArrayRef(A[500:900])
    A.resize(900)
    ref.deref()
    A.resize(899)
    with pytest.raises(InvalidArrayRef, match=r"\[500, 900\).* 899 bytes"):
        ref.deref()


FUZZER = """
import sys
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_arrayref import NESTED, PAIR, big, changed, filled
from wendelin.bigarray import ArrayRef, BigArray, InvalidArrayRef
from wendelin.bigarray.memory import in_file

objects = np.zeros(9, NESTED)
objects["o"] = objects["s"]["p"] = "text"
ROOTS = [
    filled((7, 9), "f4"), filled((7, 9), "f4", "F"), filled(5, PAIR), filled((), "u1"),
    filled((0, 4), "i8"), np.frombuffer(b"x" * 64, "u1"), objects, objects["o"].copy(),
    np.array(["one", "a string that is not short"] * 3, "T"), np.zeros(3, "V0"),
    filled(24, "u1").view(np.recarray), np.ma.array([1, 2, 3]),
    big((7, 9), "f4"), big((3, 5000), PAIR, "F"), big((0,), "i8"),
]
DTYPES = ["u1", "i2", "f4", "f8", "c16", "O", "T", "V0", "V7", "V24", "U3", "S0", "M8[s]", "?",
          PAIR, NESTED, NESTED["s"], NESTED["o"], ("i4", (3,)), [("x", "O")], "<e", "i8"]
TYPES = [np.ndarray, np.matrix, np.recarray, np.memmap, np.ma.MaskedArray, np.char.chararray, int]
near = st.integers(-40, 600) | st.sampled_from([4, 8, 12, 36, 40, -4, -8, -40, 24, 48])
huge = st.sampled_from([1 << 31, (1 << 63) - 1, 1 << 63, 1 << 64, -(1 << 63), -(1 << 70), 1 << 120])
step = near | st.just(0) | huge
length = st.integers(0, 20) | st.sampled_from([1, 2, 3, -1]) | huge
fields = {
    "offset": near | huge | st.just(1.0),
    "shape": st.lists(length, max_size=4).map(tuple),
    "strides": st.lists(step, max_size=4).map(tuple),
    "dtype": st.sampled_from(DTYPES).map(np.dtype) | st.sampled_from([None, "f4"]),
    "type": st.sampled_from(TYPES),
    "writeable": st.booleans(),
}
both = st.lists(st.tuples(length, step), max_size=4).map(
    lambda x: {"shape": tuple(n for n, _ in x), "strides": tuple(s for _, s in x)})
some = st.lists(st.sampled_from(list(fields)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: fields[name] for name in names}))
changes = st.tuples(some, some | both).map(lambda x: x[0] | x[1])
given_ = refused = 0

def memory(a):
    return a if isinstance(a, BigArray) else np.ndarray.view(a, np.ndarray)

@settings(max_examples=int(sys.argv[1]), deadline=None, database=None,
          suppress_health_check=list(HealthCheck))
@given(st.sampled_from(range(len(ROOTS))), changes)
def fuzz(which, values):
    global given_, refused
    root = ROOTS[which]
    ref = ArrayRef(memory(root) if root.dtype.char != "T" else np.zeros(6, "V16"))
    new = object.__new__(ArrayRef)
    new.__dict__.update(ref.__dict__, **{"root": root} | values)
    try:
        view = new.deref()
    except InvalidArrayRef:
        refused += 1
        return
    given_ += 1
    plain = np.ndarray.view(view, np.ndarray)
    assert isinstance(view, new.type)
    assert new.type is np.matrix or view.shape == new.shape
    if view.size == 0 or new.dtype.itemsize == 0:
        return
    if isinstance(root, BigArray):
        vma, start, stop = in_file(plain)
        assert vma.fileh is root._fileh()
        assert 0 <= start and stop <= root.nbytes
    else:
        low, high = np.lib.array_utils.byte_bounds(memory(root))
        start, stop = np.lib.array_utils.byte_bounds(plain)
        assert low <= start and stop <= high
        assert memory(root).flags.writeable or not view.flags.writeable
    if view.size < 10_000:
        if view.dtype.hasobject:
            repr(plain.tolist())
        else:
            plain.copy()
        if view.flags.writeable and not isinstance(view, np.ma.MaskedArray):
            plain[...] = plain.copy()

fuzz()
print(given_, refused)
"""


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.slow
def test_hostile_references():
    steps = int(os.environ.get("WENDELIN_CORE_TEST_STEPS", "800")) // 4
    path = os.pathsep.join([str(TESTS), str(Path(__file__).parent)])
    out = check_child(FUZZER, str(steps), timeout=200, PYTHONPATH=path)
    given, refused = map(int, out.split())
    assert given > steps // 20
    assert refused > steps // 20


# ---- in a database ----


def test_in_a_database_it_takes_some_bytes(testdb):
    root = testdb.open()
    root["A"] = A = ZBigArray((5000, 7), "i4", blksize=4096)
    transaction.commit()
    A[...] = values = np.arange(35000, dtype="i4").reshape(5000, 7)
    root["ref"] = ArrayRef(A[4000::-3, 2:5])
    transaction.commit()
    conn = root._p_jar
    assert len(conn._normal_storage.load(root._p_oid)[0]) < 1000
    testdb.close(root)
    root = testdb.open()
    ref = root["ref"]
    assert ref.root is root["A"]
    assert np.array_equal(ref.deref(), values[4000::-3, 2:5])
    # its root is the array itself: changes through the reference are seen there, and committed
    ref.deref()[0] = 5
    transaction.commit()
    assert (root["A"][4000, 2:5] == 5).all()
