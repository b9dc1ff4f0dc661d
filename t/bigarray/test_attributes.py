"""What an array keeps besides its data: attributes that users and subclasses add.

An array must keep them as any persistent object does: the tests compare it with one.
"""

import pickle
from weakref import ref as weakref_to

import numpy as np
import pytest
import transaction
from persistent import Persistent
from persistent.mapping import PersistentMapping
from persistent.wref import WeakRef
from support.clients import Client
from support.plain_zodb import decode
from ZODB.utils import load_current

from wendelin.bigarray.array_ram import RAMArray
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.file_zodb import ZBigFile

VALUES = {
    "unit": "mV",
    "scale": 0.5,
    "channels": ["a", {"b": (1, None)}],
    "when": np.datetime64("2026-01-01"),
    "calibration": np.arange(5.0),
    "ключ": b"\xff",
}


class Slots(ZBigArray):
    __slots__ = ("__secret", "_v_cache", "unit")

    def tell(self, secret):
        self.__secret = secret

    def told(self):
        return self.__secret


class States(ZBigArray):
    """An array that has more in its state than attributes."""

    unit = None

    def __getstate__(self):
        attributes, slots = super().__getstate__()
        attributes = attributes | {"packed": [self.unit]}
        attributes.pop("unit", None)
        return attributes, slots

    def __setstate__(self, state):
        super().__setstate__(state)
        (self.unit,) = self.__dict__.pop("packed")
        self._v_upper = self.unit and self.unit.upper()


class Plain(Persistent):
    """A persistent object with a slot, as arrays have one."""

    __slots__ = ("__dict__", "zfile")


def array(root, cls=ZBigArray, name="A"):
    root[name] = A = cls((10,), float, blksize=4096)
    transaction.commit()
    return A


def test_attributes_are_kept_as_persistent_keeps_them(testdb):
    root = testdb.open()
    A, B = array(root), Plain()
    root["B"] = B
    other = root["other"] = PersistentMapping(x=1)
    transaction.commit()
    for obj in A, B:
        obj.__dict__.update(VALUES)
        obj.other, obj.weak, obj._v_volatile = other, WeakRef(other), 7
        obj._p_changed = True
    A[3] = 5
    transaction.commit()
    assert A._v_volatile == 7
    testdb.close(root)
    root = testdb.open()
    A, B = root["A"], root["B"]
    assert A.unit == "mV"
    B._p_activate()
    own = {"_dtype", "_shape", "_order", "_stridev"}
    assert A.__dict__.keys() - own == B.__dict__.keys()
    for name in VALUES:
        assert np.array_equal(getattr(A, name), getattr(B, name)), name
    assert A.other is root["other"]
    assert A.weak() is root["other"]
    assert A[3] == 5
    del A.unit
    A.channels.append("in place")
    A._p_changed = True
    transaction.commit()
    testdb.close(root)
    root = testdb.open()
    assert not hasattr(root["A"], "unit")
    assert root["A"].channels[-1] == "in place"


def test_the_record_is_as_it_was_without_attributes(root):
    A = array(root)
    cls, state = decode(load_current(root._p_jar.db().storage, A._p_oid)[0])
    assert cls is ZBigArray
    attributes, slots = state
    assert attributes.keys() == {"_dtype", "_shape", "_order", "_stridev"}
    assert slots.keys() == {"zfile"}


def test_attributes_live_in_transactions(root):
    A = array(root)
    view = A[:]  # the array does not become a ghost while there is a view
    A.unit = "mV"
    A.gone = 1
    transaction.abort()
    assert not hasattr(A, "unit")
    A.unit = "mV"
    transaction.commit()
    savepoint = transaction.savepoint()
    A.unit, A.more = "V", 1
    savepoint.rollback()
    assert (A.unit, hasattr(A, "more")) == ("mV", False)
    A._v_mine = 1
    other = Client(root)
    other["A"].unit = "kV"
    other.tm.commit()
    transaction.begin()
    assert A.unit == "kV"
    assert not hasattr(A, "_v_mine")  # it may depend on the previous state
    assert A._fileh().isused()
    view[0] = 3
    transaction.commit()
    other.tm.begin()
    assert other["A"][0] == 3
    other.close()


def test_slots_of_a_subclass(testdb):
    root = testdb.open()
    A = array(root, Slots)
    A.unit, A.extra, A._v_cache = "mV", 1, 5
    A.tell("x")
    A.resize((20,))
    transaction.commit()
    testdb.close(root)
    root = testdb.open()
    A = root["A"]
    assert (A.unit, A.extra, A.told(), A.shape) == ("mV", 1, "x", (20,))
    assert not hasattr(A, "_v_cache")
    view = A[:]
    A.unit = "V"
    transaction.abort()
    assert A.unit == "mV"
    view[0] = 1
    transaction.commit()
    testdb.close(root)
    root = testdb.open()
    assert (root["A"].unit, root["A"][0]) == ("mV", 1)


def test_states_of_a_subclass(testdb):
    root = testdb.open()
    A = array(root, States)
    A.unit = "mV"
    transaction.commit()
    testdb.close(root)
    root = testdb.open()
    A = root["A"]
    view = A[:]
    assert (A.unit, A._v_upper) == ("mV", "MV")
    other = Client(root)
    other["A"].unit = "kV"
    other.tm.commit()
    other.close()
    transaction.begin()
    assert (A.unit, A._v_upper) == ("kV", "KV")  # not of the previous state
    del view


def test_an_attribute_with_a_name_of_ours_is_kept(testdb):
    """A program used the name before arrays had such an attribute."""
    root = testdb.open()
    A = array(root)
    A.__dict__["prefetch"] = A.__dict__["T"] = "theirs"
    A._p_changed = True
    transaction.commit()
    testdb.close(root)
    root = testdb.open()
    A = root["A"]
    A._p_activate()
    assert A.__dict__["prefetch"] == A.__dict__["T"] == "theirs"
    assert A.T.shape == (10,)


def test_a_file_says_that_it_keeps_no_attributes(root):
    A = array(root)
    with pytest.raises(
        AttributeError, match=r"a ZBigFile cannot keep 'unit'.*Keep it in the array"
    ):
        A.zfile.unit = "mV"
    A.zfile._v_volatile = 1
    assert ZBigFile(4096).blksize == 4096


def test_a_stored_block_size_may_be_an_integer_of_numpy(testdb):
    """0.x stored it so, if the program gave one."""
    root = testdb.open()
    A = array(root)
    A[3] = 7
    A.zfile.blksize = np.int64(4096)
    transaction.commit()
    testdb.close(root)
    root = testdb.open()
    assert root["A"][3] == 7
    assert type(root["A"].zfile.blksize) is int


class Ram(RAMArray):
    __slots__ = ("unit",)


def test_an_array_in_memory_is_pickled_with_its_attributes():
    for cls in RAMArray, Ram:
        A = cls((3, 4), "i4", "F")
        A[:] = np.arange(12).reshape(3, 4)
        A.unit, A.names = "mV", ["x"]
        held = A[:]
        B = pickle.loads(pickle.dumps(A))
        assert (type(B), B.unit, B.names, B._order) == (cls, "mV", ["x"], "F")
        assert np.array_equal(B, held)
        assert weakref_to(B)() is B
        B.append(np.ones((3, 1)))
    assert np.array_equal(pickle.loads(pickle.dumps(RAMArray(3, "u1"))), np.zeros(3))
