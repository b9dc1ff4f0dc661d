"""A database of an earlier version, with attributes, subclasses and references, works as it is.

That version also reads what we write there. Stand-ins for it are in olddb.py.
"""

import json
import shutil
import subprocess
import sys

import numpy as np
import oldprogram
import pytest
import transaction
from support import DATA, TESTS, olddb

from wendelin.bigarray import ArrayRef, InvalidArrayRef
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen

OLD = DATA / "0.13-attributes.fs"
TABLE = olddb.TABLE


@pytest.fixture
def path(tmp_path):
    return shutil.copy(OLD, tmp_path / "old.fs")


def shown(path):
    """Return what a program of that version finds."""
    done = subprocess.run(
        [sys.executable, "-P", olddb.__file__, "show", path],
        env={"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refs_of(root):
    return {name: ref.deref() for name, ref in root["refs"].items()}


def check_all(root):
    A = root["A"]
    assert type(A) is ZBigArray
    assert (A.unit, A.tags) == ("mV", ["raw", {"rate": 250.0}])
    assert A.notes is root["notes"]
    assert np.array_equal(A[:], TABLE)
    early = root["early"]
    assert (early.unit, early._order, early.dtype.str) == ("count", "C", ">i4")
    assert np.array_equal(early[:], np.arange(2000))
    channel = root["channel"]
    assert type(channel) is oldprogram.Channel
    assert channel.volts((2, 3)) == 7.5
    assert np.array_equal(channel[:], TABLE)
    slotted = root["slotted"]
    assert (slotted.unit, slotted.more, slotted.told()) == ("V", 1, "secret")
    assert not hasattr(slotted, "_v_cache")
    versioned = root["versioned"]
    assert type(versioned) is oldprogram.Versioned
    assert versioned.history == ("made", "changed")
    for A in slotted, versioned:
        assert np.array_equal(A[:], np.arange(9))


def check_refs(root):
    memory = np.arange(20, dtype="<i2").reshape(4, 5)
    expected = {
        "rows": TABLE[2:7],
        "backwards": TABLE[90:70:-2, 2:6:2],
        "column": TABLE[:, 3],
        "bytes": np.arange(2, 5, dtype=">i4").view("u1"),
        "of memory": memory[1:, ::-2],
        "matrix": memory[:2],
    }
    got = refs_of(root)
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(got[name], values), name
        assert got[name].dtype == values.dtype
    assert type(got["matrix"]) is np.matrix
    assert root["refs"]["rows"].root is root["A"]
    assert root["refs"]["rows"].comment == "an attribute"


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_an_old_database_is_read_changed_and_read_by_that_version(path):
    before = shown(path)
    root = dbopen(path)
    check_all(root)
    check_refs(root)
    # everything is stored anew
    arrays = [root[name] for name in ("A", "early", "channel", "slotted", "versioned")]
    for A in arrays:
        A._p_changed = True
    root["refs"] = dict(root["refs"])
    transaction.commit()
    assert len({A._p_serial for A in arrays}) == 1
    dbclose(root)
    assert shown(path) == before
    root = dbopen(path)
    check_all(root)
    check_refs(root)
    # and then changed
    root["A"].unit = "V"
    root["A"][0] = -1
    root["channel"].gain = 2.0
    root["channel"].append(np.ones((100, 1)))
    root["slotted"].tell("another")
    root["versioned"].history += ("by us",)
    transaction.commit()
    dbclose(root)
    arrays = shown(path)["arrays"]
    assert arrays["A"][1]["unit"] == "V"
    assert arrays["A"][1]["notes"] == {"text": "of somebody else"}
    assert arrays["A"][2][:2] == [[-1] * 6, TABLE[1].tolist()]
    assert arrays["channel"][1] == {"gain": 2.0}
    assert arrays["channel"][2][5] == [*TABLE[5], 1]
    assert arrays["slotted"][1] == {"more": 1, "unit": "V", "secret": "another"}
    assert arrays["versioned"][1] == {"history": ["made", "changed", "by us"]}


VIEWS = {
    "rows": lambda a: a[3:9],
    "backwards": lambda a: a[70:3:-7, ::-2],
    "transposed": lambda a: a[5:8].T,
    "element": lambda a: a[4:5, 2:3].reshape(()),
    "nothing": lambda a: a[9:9],
    "broadcast": lambda a: np.broadcast_to(a[7], (3, 6)),
    "bytes": lambda a: a[2:4].view("u1"),
    "matrix": lambda a: a[5:9].view(np.matrix),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_references_that_we_write_are_read_by_that_version(tmp_path):
    path = str(tmp_path / "new.fs")
    root = dbopen(path)
    root["A"] = A = ZBigArray((100, 6), "<f8", blksize=4096)
    A.unit = "mV"
    transaction.commit()
    A[:] = memory = TABLE.copy()
    refs = {f"of A: {name}": ArrayRef(view(A[:])) for name, view in VIEWS.items()}
    refs |= {f"of memory: {name}": ArrayRef(view(memory)) for name, view in VIEWS.items()}
    refs["of memory: F"] = ArrayRef(np.asfortranarray(memory)[3:, 1::2])
    root["refs"] = refs
    transaction.commit()
    dbclose(root)
    found = shown(path)
    assert found["arrays"]["A"] == ["ZBigArray", {"unit": "mV"}, TABLE.tolist()]
    for name, (values, atype, _) in found["refs"].items():
        view = VIEWS.get(name.split(": ")[1], lambda a: a[3:, 1::2])
        expected = view(TABLE)
        assert values == expected.tolist(), name
        assert atype == type(expected).__name__


def test_a_reference_keeps_what_is_not_ours_and_what_is_damaged(path):
    root = dbopen(path)
    ref = root["refs"]["rows"]
    state = ref.__getstate__()
    assert state.keys() == {
        *("root", "lo", "hi", "z0", "shape", "stridev", "dtype", "atype", "comment")
    }
    assert (state["lo"], state["hi"], state["z0"]) == (96, 96 + 240, 0)
    for change in {"hi": 300}, {"lo": 97}, {"z0": -1}, {"stridev": (48,)}, {"shape": None}:
        bad = object.__new__(ArrayRef)
        bad.__setstate__(state | change)
        assert bad.__getstate__() == state | change
        with pytest.raises(InvalidArrayRef, match="contradict each other"):
            bad.deref()
        assert "damaged" in repr(bad)
    frozen = TABLE[:]
    frozen.flags.writeable = False
    again = object.__new__(ArrayRef)
    again.__setstate__(ArrayRef(frozen).__getstate__())
    assert not again.deref().flags.writeable
    dbclose(root)


def test_a_reference_of_the_first_3_0():
    """The keys of its state were the names of its attributes."""
    a = np.arange(10)
    ref = object.__new__(ArrayRef)
    ref.__setstate__(
        {
            "root": a,
            "offset": 64,
            "shape": (3,),
            "strides": (-16,),
            "dtype": a.dtype,
            "type": np.ndarray,
            "writeable": True,
        }
    )
    assert ref.deref().tolist() == [8, 6, 4]
    assert ref.__getstate__()["lo"] == 32
