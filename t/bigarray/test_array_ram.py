"""RAMArray: an array in memory behaves as any other, and its views stay valid after an append."""

import copy
import gc
import pickle

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.child import check_child
from support.examples import examples

from wendelin.bigarray import ArrayRef
from wendelin.bigarray.array_ram import RAMArray
from wendelin.bigfile import ram_reclaim
from wendelin.bigfile.virtmem.handle import ram_stat


def test_it_is_zeros_and_keeps_what_is_written():
    for order in "CF":
        A = RAMArray((300, 70), "f8", order)
        assert (A.shape, A.dtype, A.strides) == ((300, 70), np.dtype("f8"), np.asarray(A).strides)
        assert not A[:].any()
        A[5:200, 3] = np.arange(195)
        ram_reclaim()
        assert A[:].sum() == 195 * 97
        assert A[7, 3] == 2
    assert repr(A) == "RAMArray(shape=(300, 70), dtype=float64, order='F')"


@pytest.mark.parametrize("order", "CF")
def test_append_keeps_views(order):
    A = RAMArray((10, 4) if order == "C" else (4, 10), "i4", order)
    a = A[:]
    a[...] = 1
    for i in range(60):
        A.append(np.full((1000, 4) if order == "C" else (4, 1000), i))
    new = A[:]
    a[2, 2] = 77
    assert new[2, 2] == 77
    new[3, 3] = 88
    assert a[3, 3] == 88
    assert A[:].sum() == 40 + 4000 * sum(range(60)) + 76 + 87


def test_what_was_dropped_is_zeros():
    A = RAMArray(1_000_000, "u1")
    A[:] = 1
    A.resize(100_001)
    A.resize(1_000_000)
    assert A[:].sum() == 100_001


@pytest.mark.usefixtures("no_leaks")
def test_memory_is_taken_when_it_is_written_and_given_back():
    gc.collect()
    ram_reclaim()
    _, _, before = ram_stat()
    A = RAMArray((1 << 40,), "u1")
    assert A[1 << 35 : (1 << 35) + 50].sum() == 0
    assert ram_stat()[2] == before
    for i in range(0, 1 << 40, 1 << 38):
        A[i] = 1
    assert 4 << 12 <= ram_stat()[2] - before <= 4 << 20
    a = A[5:10]
    A.resize(10)
    assert ram_stat()[2] - before <= 1 << 20
    del A
    a[0] = 1
    del a
    gc.collect()
    assert ram_stat()[2] == before


def test_more_than_the_limit_is_an_exception():
    out = check_child(
        """
        import numpy as np
        from wendelin.bigarray.array_ram import RAMArray

        A = RAMArray((1 << 30,), "u1")
        try:
            A[:] = 1
            int()
        except MemoryError as e:
            print("limit" in str(e))
        A.resize(1 << 20)
        A[:] = 2
        print(A[:].sum() >> 20)
        """,
        WENDELIN_CORE_RAM="64M",
        WENDELIN_CORE_SPOOL="0",
    )
    assert out == "True\n2\n"


def test_more_than_the_limit_is_in_a_file():
    out = check_child(
        """
        import numpy as np
        from wendelin.bigarray.array_ram import RAMArray
        from wendelin.bigfile import stats

        A = RAMArray((96 << 20,), "u1")
        A[:] = 1
        A.append(np.full(32 << 20, 2, "u1"))
        print(stats().spooled >> 20, np.sum(A[:], dtype="u8") >> 20)
        A.resize(0)
        print(stats().spooled)
        """,
        WENDELIN_CORE_RAM="64M",
    )
    assert out == "80 160\n0\n"


def test_pickled_it_is_copied():
    A = RAMArray((100, 5), "i4", "F")
    A[...] = np.arange(500).reshape(100, 5)
    for B in pickle.loads(pickle.dumps(A)), copy.deepcopy(A), copy.copy(A):
        assert type(B) is RAMArray
        assert B.strides == A.strides
        assert np.array_equal(B[:], A[:])
        B[0] = 7
        assert A[0, 0] == 0
    view = A[3:50:2, ::-1]
    ref = pickle.loads(pickle.dumps(ArrayRef(view)))
    assert type(ref.root) is RAMArray
    assert np.array_equal(ref.deref(), view)


@settings(max_examples=examples(8), stateful_step_count=30, deadline=None)
class Machine(RuleBasedStateMachine):
    """A RAMArray beside an ndarray that is made anew. Views must show what the ndarray has now."""

    @initialize(order=st.sampled_from("CF"), minor=st.integers(1, 3))
    def begin(self, order, minor):
        self.order, self.minor = order, minor
        self.A = RAMArray(self.shape(0), "i4", order)
        self.a = np.zeros(self.shape(0), "i4", order)
        self.views = []
        self.next = 0

    def shape(self, n):
        return (n, self.minor) if self.order == "C" else (self.minor, n)

    def rows(self, lo, hi):
        return np.s_[lo:hi] if self.order == "C" else np.s_[:, lo:hi]

    @property
    def n(self):
        return len(self.A)

    sizes = st.integers(0, 70_000) | st.integers(0, 10)

    @rule(n=sizes)
    def append(self, n):
        self.next += 1
        more = np.full(self.shape(n), self.next, "i4", self.order)
        self.A.append(more)
        self.a = np.append(self.a, more, 0 if self.order == "C" else 1)

    @rule(n=sizes)
    def resize(self, n):
        self.A.resize(self.shape(n))
        new = np.zeros(self.shape(n), "i4", self.order)
        both = self.rows(0, min(n, self.a.shape[0 if self.order == "C" else 1]))
        new[both] = self.a[both]
        self.a = new

    @rule(at=st.floats(0, 1), n=sizes)
    @precondition(lambda self: self.n)
    def write(self, at, n):
        self.next += 1
        lo = int(at * (self.n - 1))
        part = self.rows(lo, lo + n)
        self.A[part] = self.a[part] = self.next

    @rule()
    @precondition(lambda self: self.n and len(self.views) < 3)
    def take(self):
        self.views.append(self.A[...])

    @rule(i=st.integers(0, 2))
    def drop(self, i):
        del self.views[i:]

    @rule()
    def reclaim(self):
        ram_reclaim()

    @invariant()
    def same(self):
        if not hasattr(self, "A"):
            return
        assert np.array_equal(self.A[...], self.a)
        for view in self.views:
            n = view.shape[0 if self.order == "C" else 1]
            both = self.rows(0, min(n, self.n))
            assert np.array_equal(view[both], self.a[both])
            assert not view[self.rows(self.n, n)].any()


TestMachine = Machine.TestCase
