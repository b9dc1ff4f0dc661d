"""lib: calc, utils, xnumpy; and what `import wendelin` says."""

import math
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT

import wendelin
from wendelin.lib.calc import mul
from wendelin.lib.utils import WeakRefs, inttuple
from wendelin.lib.xnumpy import structured

# ---- calc ----


@given(st.lists(st.integers()), st.integers())
def test_mul(seq, start):
    assert mul(seq) == math.prod(seq)
    assert mul(seq, start) == math.prod(seq, start=start)
    assert mul(iter(seq), start=start) == math.prod(seq, start=start)


def test_mul_is_exact():
    assert mul([2**40, 2**40, 3]) == 3 * 2**80
    assert mul([1.5, 2]) == 3.0


# ---- utils ----


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (3, (3,)),
        (np.int64(3), (3,)),
        (np.array(3), (3,)),
        ((), ()),
        ([4, 5], (4, 5)),
        ((np.uint8(4), 5), (4, 5)),
        (np.array([4, 5]), (4, 5)),
        (range(3), (0, 1, 2)),
        ((2**70, -1), (2**70, -1)),
    ],
    ids=repr,
)
def test_inttuple(x, expected):
    result = inttuple(x)
    assert result == expected
    assert {type(i) for i in result} <= {int}


@pytest.mark.parametrize(
    ("x", "bad"),
    [
        (2.0, "2.0"),
        ((1, 2.5), "2.5"),
        ("12", "'12'"),
        ([1, "2"], "'2'"),
        (None, "None"),
        ([[1]], "[1]"),
        (np.array([1.5]), "1.5"),
        ({4, 5}, "{4, 5}"),
        (frozenset([4]), "frozenset({4})"),
        ({4: 1, 5: 2}, "{4: 1, 5: 2}"),
        ({4: 1}.keys(), "dict_keys([4])"),
    ],
    ids=repr,
)
def test_no_inttuple(x, bad):
    with pytest.raises(TypeError) as e:
        inttuple(x)
    assert bad in str(e.value)


class Member:
    pass


def test_weak_refs_keep_nothing_alive_and_no_more_than_twice_what_lives():
    refs, live = WeakRefs(), []
    for i in range(1000):
        member = Member()
        refs.add(member)
        refs.add(member)
        if i % 100 == 0:
            live.append(member)
    del member
    assert set(refs) == set(live)
    assert len(refs._refs) <= 2 * WeakRefs._LEAST


# ---- xnumpy ----

PAIR = np.dtype([("a", "i4"), ("b", "i4")])


@pytest.mark.parametrize("shape", [(2,), (5, 2), (3, 5, 2), (0, 2)])
def test_structured(shape):
    a = np.arange(math.prod(shape), dtype="i4").reshape(shape)
    s = structured(a, PAIR)
    assert s.shape == shape[:-1]
    assert s.dtype == PAIR
    assert np.array_equal(s["a"], a[..., 0])
    assert np.array_equal(s["b"], a[..., 1])
    if a.size:
        s["b"] = 77
        assert (a[..., 1] == 77).all()  # nothing was copied


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 4), (2,), (2, 1), (2, 0), (2, 1, 3)])
def test_structured_in_fortran_order(shape):
    a = np.arange(math.prod(shape), dtype="i4").reshape(shape).copy("F")
    s = structured(a, PAIR)
    assert s.shape == shape[1:]
    assert s.dtype == PAIR
    assert np.array_equal(s["a"], a[0])
    assert np.array_equal(s["b"], a[1])
    if a.size:
        s["b"] = 77
        assert (a[1] == 77).all()  # nothing was copied


@pytest.mark.parametrize("order", "CF")
def test_structured_is_the_inverse_of_a_view(order):
    """structured() of the plain elements of a structured array is that array, in both orders."""
    dtype = np.dtype([(n, "<i2") for n in "abc"])
    for shape in (4,), (4, 5), (1, 4), (4, 1), (1, 1), (3, 2, 4):
        s = np.zeros(shape, dtype, order)
        s.reshape(-1, order="A").view("<i2")[:] = np.arange(3 * s.size)
        rows = (*shape, 3) if order == "C" else (3, *shape)
        a = np.ndarray(rows, "<i2", s, order=order)
        found = structured(a, dtype)
        assert np.array_equal(found, s)
        assert np.shares_memory(found, s)


def test_structured_of_a_part_in_fortran_order():
    a = np.arange(24, dtype="i4").reshape((4, 6), order="F")[1:3, ::-2]
    assert structured(a, PAIR).tolist() == [(21, 22), (13, 14), (5, 6)]


def test_structured_of_a_part():
    a = np.arange(24, dtype="i4").reshape(6, 4)[::2, 1:3]
    assert structured(a, PAIR).tolist() == [(1, 2), (9, 10), (17, 18)]


def test_structured_of_nothing():
    for a in (np.zeros((0, 2), "i4"), np.arange(6, dtype="i4").reshape(3, 2)[:0, ::-1]):
        s = structured(a, PAIR)
        assert (s.shape, s.dtype) == ((0,), PAIR)
    assert structured(np.zeros((3, 0, 2), "i4"), "i8").shape == (3, 0)


def test_structured_of_one_column():
    a = np.arange(6, dtype="i4").reshape(3, 2)[:, :1]
    assert structured(a, [("a", "i4")]).tolist() == [(0,), (2,), (4,)]


@pytest.mark.parametrize(
    ("a", "why"),
    [
        (np.zeros((5, 3), "i4"), "12 bytes"),
        (np.zeros((5, 4), "i4")[:, ::2], "not contiguous"),
        (np.zeros((5, 2), "i4")[:, ::-1], "not contiguous"),
        (np.zeros((5, 2), "i4", "F"), "20 bytes"),
        (np.zeros((4, 4), "i4", "F")[::2], "not contiguous"),
        (np.zeros((4, 4, 4), "i4").swapaxes(1, 2), "not contiguous"),
        (np.broadcast_to(np.zeros((1, 1), "i4"), (5, 2)), "not contiguous"),
        (np.zeros((), "i8"), "0-d"),
    ],
)
def test_not_structured(a, why):
    with pytest.raises(ValueError, match=why):
        structured(a, PAIR)


# ---- the package ----


def test_version():
    assert wendelin.__version__ == version("wendelin.core")


@pytest.mark.parametrize(
    ("system", "machine"),
    [("darwin", "arm64"), ("win32", "AMD64"), ("linux", "riscv64"), ("linux", "i686")],
)
def test_other_platforms_are_refused(system, machine, tmp_path):
    program = (
        f"import importlib.metadata, platform, sys\n"
        f"sys.platform = {system!r}; platform.machine = lambda: {machine!r}\n"
        f"try: import wendelin\n"
        f"except ImportError as e: print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for word in (system, machine, "Linux", "x86-64", "aarch64"):
        assert word in done.stdout


# ---- imports ----


def test_lib_knows_nothing_of_what_is_above(tmp_path):
    lib = ROOT / "lib"
    names = [".".join(p.relative_to(lib).with_suffix("").parts) for p in lib.rglob("[a-z]*.py")]
    program = (
        f"import importlib, sys\n"
        f"for name in {names}: importlib.import_module('wendelin.lib.' + name)\n"
        f"assert not [m for m in sys.modules if m.startswith('wendelin.') "
        f"and not m.startswith('wendelin.lib')]\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
