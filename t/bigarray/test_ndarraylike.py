"""What an array has in common with its view, what it advises instead, and what takes an array."""

import re
import tracemalloc

import numpy as np
import pytest
import transaction
from support.ramfile import RAMFile

from wendelin.bigarray import BigArray
from wendelin.bigarray.array_zodb import ZBigArray

pytestmark = pytest.mark.formats

VALUES = np.arange(6 * 700, dtype="i4").reshape(6, 700) % 251


@pytest.fixture(params=["C", "F", "ZODB"])
def A(request, testdb):
    """Return an array with VALUES."""
    if request.param == "ZODB":
        root = testdb.open()
        root["A"] = A = ZBigArray(VALUES.shape, VALUES.dtype, blksize=4096)
        transaction.commit()
        A[...] = VALUES
        transaction.commit()
    else:
        A = BigArray(VALUES.shape, VALUES.dtype, RAMFile().fileh_open(), request.param)
        A[...] = VALUES
    return A


@pytest.mark.parametrize(
    "look",
    [
        lambda a: a.T,
        lambda a: a.transpose(),
        lambda a: a.transpose(1, 0),
        lambda a: a.transpose((1, 0)),
        lambda a: a.view("u4"),
        lambda a: a.view(np.matrix).A,
        lambda a: a.view(),
        lambda a: a.view(dtype="f4", type=np.ndarray),
    ],
)
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_attributes_that_are_views_share_memory(A, look):
    a = A[...]
    assert np.array_equal(look(A), look(a))
    assert look(A).dtype == look(a).dtype
    assert np.shares_memory(look(A), a)


def test_views_of_contiguous_memory(A):
    order = A._order
    a = A[...]
    for mine, theirs in (
        (A.reshape(-1, order=order), a.reshape(-1, order=order)),
        (A.reshape((3, -1), order=order), a.reshape(3, -1, order=order)),
        (A.reshape(1400, 3, order=order), a.reshape(1400, 3, order=order)),
        (A.ravel(order), a.ravel(order)),
    ):
        assert np.array_equal(mine, theirs)
        assert np.shares_memory(mine, a)
    assert np.array_equal(A.reshape(700, 6), VALUES.reshape(700, 6))
    assert np.array_equal(A.ravel(), VALUES.ravel())


def test_flat(A):
    assert A.flat[701] == VALUES.flat[701]
    A.flat[701] = 7
    assert A[1, 1] == 7
    assert sum(int(x) for x in A.flat) == A[...].sum()


def test_a_view_of_another_dtype():
    pair = np.dtype([("re", "f4"), ("im", "f4")])
    A = BigArray((50, 3), "c8", RAMFile().fileh_open())
    v = A.view(pair)
    assert v.shape == (50, 3)
    v["im"] = 2
    assert (A[:].imag == 2).all()
    assert A.view("f4").shape == (50, 6)
    with pytest.raises(ValueError, match="size"):
        A.view("V7")


def test_what_is_too_large_says_so():
    A = BigArray((1 << 60,), "u1", RAMFile().fileh_open())
    for look in (lambda: A.T, lambda: A.view("i1"), lambda: A.flat, lambda: np.sum(A)):
        with pytest.raises(MemoryError, match="smaller parts"):
            look()


# ---- what to do instead ----


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sum", r"A\[\.\.\.\]\.sum\(\) or A\[i:j\]\.sum\(\), or np\.sum\(A\)"),
        ("astype", r"A\[\.\.\.\]\.astype\(\) or A\[i:j\]\.astype\(\)$"),
        ("byteswap", r"A\[\.\.\.\]\.byteswap\(\) or A\[i:j\]\.byteswap\(\)$"),
        ("flags", r"A\[\.\.\.\]\.flags or A\[i:j\]\.flags$"),
        ("imag", r"A\[\.\.\.\]\.imag"),
    ],
)
def test_attributes_of_ndarrays(A, name, hint):
    with pytest.raises(AttributeError, match=f"'{type(A).__name__}' object .*'{name}'.*{hint}"):
        getattr(A, name)


def test_functions_that_are_advised_take_arrays():
    A = BigArray((4,), "f8", RAMFile().fileh_open())
    args = {
        "argpartition": (1,),
        "choose": ([A] * 4,),
        "clip": (0, 1),
        "dot": (A,),
        "partition": (1,),
        "repeat": (2,),
        "searchsorted": (2,),
        "swapaxes": (0, 0),
        "take": ([0],),
    }
    advised = 0
    for name in dir(np.ndarray):
        try:
            getattr(A, name)
        except (AttributeError, TypeError) as e:
            function = re.search(r"np\.(\w+)\(A\)", str(e))
            if function is None or name in ("compress", "diagonal", "trace"):  # other forms of A
                continue
            value = A[...].astype(int) if name == "choose" else A
            getattr(np, function[1])(value, *args.get(name, ()))
            advised += 1
    assert advised > 25


def test_other_attributes(A):
    for name in ("nothing", "__array_interface__", "_private"):
        assert not hasattr(A, name)
        with pytest.raises(AttributeError, match=f"no attribute '{name}'$"):
            getattr(A, name)
    with pytest.raises(AttributeError, match=r"A\.resize\(\(3, 4\)\)"):
        A.shape = (3, 4)
    assert A.shape == VALUES.shape


def test_operators(A):
    for compute, hint in (
        (lambda: A + 1, r"\+ is not .*A\[\.\.\.\] \+ x makes an array as large"),
        (lambda: 2 * A, r"\* is not .*x \* A\[\.\.\.\]"),
        (lambda: A - A, r"- is not .*A\[\.\.\.\] - x"),
        (lambda: A**2, r"\*\* is not .*A\[i:j\]"),
        (lambda: A @ [1, 2], r"@ is not"),
        (lambda: A < 1, r"< is not .*A\[\.\.\.\] < x makes"),
        (lambda: 1 < A, r"> is not .*A\[\.\.\.\] > x makes"),  # noqa: SIM300
        (lambda: A >= A, r">= is not "),
        (lambda: sorted([A, A]), r"< is not "),
        (lambda: A == 1, r"== is not .*A\[\.\.\.\] == x makes"),
        (lambda: 1.5 != A, r"!= is not .*A\[\.\.\.\] != x makes"),  # noqa: SIM300
        (lambda: A == [1, 2], r"== is not"),
        (lambda: A == True, r"== is not"),  # noqa: E712
        (lambda: 1 in [A], r"== is not"),
        (lambda: -A, r"-A is not .*view, -A\[\.\.\.\] makes"),
        (lambda: +A, r"\+A is not"),
        (lambda: ~A, r"~A is not"),
        (lambda: abs(A), r"abs\(A\) is not .*abs\(A\[\.\.\.\]\)"),
        (lambda: divmod(A, 2), r"divmod is not .*divmod\(A\[\.\.\.\], x\)"),
        (lambda: divmod(2, A), r"divmod is not .*divmod\(x, A\[\.\.\.\]\)"),
        (lambda: int(A), r"int\(\) is not .*int\(A\[i\]\), .*A\[i:j\].astype\(int\)"),
        (lambda: float(A), r"float\(\) is not"),
        (lambda: complex(A), r"complex\(\) is not"),
    ):
        with pytest.raises(TypeError, match=hint):
            compute()
    B = A
    with pytest.raises(TypeError, match=r"\+= is not .*A\[\.\.\.\] \+= x does it in place"):
        B += 1
    A[...] += 1
    assert np.array_equal(A, VALUES + 1)


def test_arrays_are_compared_by_identity(A):
    B = BigArray(A.shape, A.dtype, A._fileh())
    assert A == A
    assert A != B
    for other in (None, "A", b"A", object(), {}, {A}, ...):
        assert other != A
        assert not other == A  # noqa: SIM201
        assert other != A
    assert len({A, B, A}) == 2
    assert [None, "A", B, A].index(A) == 3


def test_operators_of_ndarrays_take_it(A):
    ones = np.ones(700, "i4")
    for compute in (
        lambda a: ones + a,
        lambda a: a + ones,
        lambda a: a @ ones,
        lambda a: ones <= a,
        lambda a: a <= ones,
        lambda a: a == ones,
        lambda a: a != np.int32(3),
        lambda a: np.divmod(a, ones + 1)[0],
        lambda a: divmod(a, ones + 1)[1],
    ):
        assert np.array_equal(compute(A), compute(VALUES))
    assert np.array_equal(A + np.int32(5), VALUES + 5)
    assert np.array_equal(np.int32(5) - A, 5 - VALUES)
    ones += A[0]
    assert np.array_equal(ones, VALUES[0] + 1)


# ---- what takes it as it is ----


def test_numpy_takes_it(A):
    for f in (
        *(np.sum, np.mean, np.std, np.max, np.argmin, np.sort, np.cumsum, np.unique, np.sqrt),
        *(np.transpose, np.ravel, np.shape, np.size, np.ndim, np.copy, np.isfinite, np.diff),
        lambda a: np.sum(a, axis=1),
        lambda a: np.reshape(a, (700, 6)),
        lambda a: np.concatenate([a, a], axis=1),
        lambda a: np.add(a, 1),
        lambda a: np.nonzero(a)[0],
        lambda a: np.dot(a, np.ones(700)),
        lambda a: np.histogram(a, 5)[0],
        lambda a: np.percentile(a, 30),
        lambda a: np.take(a, [3, 1], axis=0),
        lambda a: np.moveaxis(a, 0, 1),
        lambda a: np.asarray(a, "f8"),
        lambda a: np.array(a, ndmin=4),
        np.asfortranarray,
        lambda a: np.expand_dims(a, 0),
        lambda a: np.array_split(a, 4)[1],
    ):
        mine, theirs = f(A), f(VALUES)
        assert np.array_equal(mine, theirs)
        assert getattr(mine, "dtype", None) == getattr(theirs, "dtype", None)


def test_asarray_has_numpys_meaning(A):
    a = A[...]
    for copied, b in (
        (False, np.asarray(A)),
        (False, np.asarray(A, copy=False)),
        (False, np.asarray(A, "i4", copy=False)),
        (False, np.asanyarray(A)),
        (False, np.array(A, copy=None)),
        (True, np.array(A)),
        (True, np.asarray(A, copy=True)),
        (True, np.asarray(A, "f4")),
        (True, np.asarray(A, ">i4")),
        (True, np.array(A, "i4", copy=True)),
    ):
        assert np.array_equal(b, VALUES)
        assert np.shares_memory(a, b) is not copied
        assert type(b) is np.ndarray
    for dtype in ("f4", ">i4"):
        with pytest.raises(ValueError, match="copy"):
            np.asarray(A, dtype, copy=False)


def test_dlpack(A):
    assert A.__dlpack_device__() == np.zeros(1).__dlpack_device__()
    b = np.from_dlpack(A)
    assert np.shares_memory(A[...], b)
    assert np.array_equal(b, VALUES)
    S = BigArray((3,), [("a", "i4"), ("b", "f4")], RAMFile().fileh_open())
    with pytest.raises(BufferError):
        np.from_dlpack(S)


@pytest.mark.parametrize(
    "value",
    [
        3,
        3.0,
        251,
        -1,
        1 << 40,
        None,
        "3",
        np.float64(2.5),
        VALUES[2],
        VALUES[2].tolist(),
        VALUES[:, :1] + 300,
        VALUES,
        VALUES[None] + 1000,
        [],
        [1, 2],
        [[-1]],
        np.ones((3, 1, 1)),
    ],
    ids=repr,
)
def test_in_means_what_it_does_for_ndarrays(A, value):
    def asked(array):
        try:
            return value in array
        except ValueError as e:
            return type(e)

    assert asked(A) is asked(VALUES)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("f4", [0.1, np.float64(0.1), np.float32(0.1), np.nan, "0.1"]),
        ("M8[D]", [np.datetime64("1970-01-02"), np.datetime64("NaT", "D"), "1970-01-03"]),
        ("S3", [b"ab", "ab", b""]),
        ([("n", "i4"), ("x", "f8")], [np.array((1, 0.5), [("n", "i4"), ("x", "f8")])[()]]),
    ],
    ids=["f4", "M8", "S3", "fields"],
)
def test_in_of_other_dtypes(dtype, values):
    data = {"f4": [0.1, np.nan], "M8[D]": [1, 2], "S3": [b"ab", b"abc"]}
    a = np.array(data.get(dtype if isinstance(dtype, str) else "", [(1, 0.5), (2, 0)]), dtype)
    A = BigArray(a.shape, dtype, RAMFile().fileh_open())
    A[...] = a
    for value in values:
        assert (value in A) is (value in a), value
    assert 0 not in BigArray((3, 0), "i4", RAMFile().fileh_open())
    zero_d = BigArray((), "i4", RAMFile().fileh_open())
    assert 0 in zero_d
    assert 7 not in zero_d


@pytest.mark.parametrize("order", ["C", "F"])
def test_in_compares_parts(order):
    A = BigArray((4, 8 << 20), "u1", RAMFile().fileh_open(), order)
    A[-1, -1] = 5
    tracemalloc.start()
    try:
        assert 5 in A
        assert 6 not in A
        assert np.full(8 << 20, 6, "u1") not in A
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()
