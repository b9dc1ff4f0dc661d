"""Pickles read as data: what they hold, what they may not do, and what they cost."""

import datetime
import pickle
import pickletools
import random
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.child import check_child
from support.hostile import PICKLES
from zodbpickle import pickle as zpickle

from wendelin.lib.storage import record as zrecord
from wendelin.lib.storage.inert import Global, InertError, Object, Pairs, Reader, shown
from wendelin.lib.storage.inertdtype import dtype_of, scalar_of

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda some: (
        st.lists(some)
        | st.lists(some).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.binary(), some)
        | st.sets(st.text() | st.integers())
        | st.frozensets(st.binary())
    ),
    max_leaves=30,
)


def real(value):
    """Return the value of VALUES that a result of the reader stands for."""
    if isinstance(value, Pairs):
        return {real(k): real(v) for k, v in value.pairs}
    if isinstance(value, Object):
        kind = value.cls.rpartition(".")[2]
        items = [*value.items, *(value.args[0] if value.args else ())]
        if kind == "bytes":
            return b"".join(value.args)
        return {"set": set, "frozenset": frozenset}[kind](map(real, items))
    return type(value)(map(real, value)) if isinstance(value, list | tuple) else value


@given(VALUES, st.integers(0, 5), st.booleans())
@pytest.mark.slow
def test_what_a_pickle_holds(value, protocol, of_zodb):
    dumps = zpickle.dumps if of_zodb and protocol <= 3 else pickle.dumps
    data = dumps(value, protocol)
    reader = Reader(data)
    found = real(reader.load())
    assert found == value
    assert repr(found) == repr(value) or isinstance(value, set | frozenset | list | tuple | dict)
    assert reader.pos == len(data)
    if protocol:
        optimized = pickletools.optimize(pickle.dumps(value, protocol))
        assert real(Reader(optimized).load()) == value


class Thing:
    """An object with a state."""


def test_objects():
    thing = Thing()
    thing.a = [thing, OrderedDict(x=1)]
    for protocol in range(6):
        found = Reader(pickle.dumps(thing, protocol)).load()
        assert found.cls == f"{Thing.__module__}.Thing"
        (state,) = found.states
        assert state.get("a")[0] is found
        assert state.get("a")[1].cls == "collections.OrderedDict"
        assert isinstance(Reader(pickle.dumps(Thing, protocol)).load(), Global)
    assert Reader(b"c\x1b[2Jm\n\xe2\x80\xaex\n.").load().name == r"\x1b[2Jm.\u202ex"
    assert Reader(b"U\x03abc.").load() == "abc"
    assert Reader(b"U\x03ab\xff.").load() == b"ab\xff"
    assert Reader(b"S'a\\x41\\n\\''\n.").load() == "aA\n'"
    assert Reader(b"U\x03abc.", python2="bytes").load() == b"abc"


@pytest.mark.parametrize("name", PICKLES)
def test_what_is_refused(name):
    with pytest.raises(InertError) as e:
        Reader(PICKLES[name]).load()
    assert len(str(e.value)) < 200


def test_numbers_in_a_pickle_take_no_memory():
    """The unpickler in C would make as many places as a number says: here memory is limited."""
    check_child("""
        import resource
        from support.hostile import PICKLES
        from wendelin.lib.storage import record as zrecord
        from wendelin.lib.storage.inert import InertError, Reader
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name, data in PICKLES.items():
            try:
                Reader(data).load()
                raise AssertionError(name)
            except InertError:
                pass
            try:
                zrecord.state_of(b"\\x80\\x03cm\\nC\\n." + data)
                raise AssertionError(name)
            except zrecord.RecordError:
                pass
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    """)


def test_keys_that_collide():
    """A dict of these keys would take time that grows with the square of their number."""
    step = (1 << 61) - 1  # its hash is 0, and so are the hashes of its multiples
    keys = b"".join(pickle.dumps(i * step, 2)[2:-1] + b"N" for i in range(1 << 16))
    found = Reader(b"}(" + keys + b"u.").load()
    assert len(found.pairs) == 1 << 16


def test_errors_are_short():
    value = (1,)
    for _ in range(100):
        value = (value, value, value)
    own = []
    own.append(own)
    for what in (value, own, "x" * 10_000, b"x" * 10_000, 1 << 100_000, Global("y" * 10_000)):
        assert len(shown(what)) < 200


def test_a_node_of_a_table_is_read_by_the_unpickler_in_c(monkeypatch):
    """The unpickler in C reads it, which is fast; Reader does not."""
    import transaction
    from BTrees.LOBTree import LOBTree
    from persistent.mapping import PersistentMapping
    from ZODB import DB
    from ZODB.MappingStorage import MappingStorage

    db = DB(MappingStorage())
    with db.transaction() as conn:
        conn.root()["t"] = LOBTree({i * 1000: PersistentMapping() for i in range(1000)})
    conn = db.open()
    monkeypatch.setattr(zrecord, "Reader", None)
    tree = conn.root()["t"]
    zrecord.state_of(db.storage.loadBefore(tree._p_oid, conn._storage._start)[0])
    bucket = tree._firstbucket
    while bucket is not None:
        zrecord.state_of(db.storage.loadBefore(bucket._p_oid, conn._storage._start)[0])
        bucket = bucket._next
    transaction.abort()
    conn.close()
    db.close()


DTYPES = [
    *[
        "?",
        "i1",
        ">u2",
        "<i4",
        "q",
        "f2",
        ">f4",
        "f8",
        "g",
        "c8",
        ">c16",
        "S5",
        "U7",
        ">U7",
        "V16",
        "S0",
        "V0",
        "M8",
        "M8[25us]",
        ">m8[ns]",
        "(2,3)>f4",
    ],
    [],
    [("a", ">f4"), ("t", "M8[25us]")],
    np.dtype([("a", ">f4"), ("b", [("c", "i2"), ("d", "S3", (2,))])], align=True),
    np.dtype((np.record, [("a", "i4"), ("b", ">f8")])),
    {
        "names": ["a", "b"],
        "formats": ["f4", "i2"],
        "offsets": [4, 0],
        "titles": ["A", None],
        "itemsize": 12,
    },
]


@pytest.mark.parametrize("of", DTYPES, ids=str)
def test_dtypes(of):
    for protocol in range(6):
        data = pickle.dumps(np.dtype(of), protocol)
        expected, found = pickle.loads(data), dtype_of(Reader(data).load())
        assert found == expected
        assert (repr(found), found.type, found.byteorder, found.itemsize) == (
            repr(expected),
            expected.type,
            expected.byteorder,
            expected.itemsize,
        )


def test_dtypes_that_are_refused():
    nested = np.dtype("i1")
    for _ in range(15):
        nested = np.dtype([("a", nested), ("b", nested)])
    for of in (np.dtype("O"), np.dtype([("a", "O")]), nested):
        with pytest.raises(InertError):
            dtype_of(Reader(pickle.dumps(of)).load())
    random.seed(1)
    for of in map(np.dtype, DTYPES):
        data = pickle.dumps(of, 2)
        for _ in range(200):
            at = random.randrange(len(data))
            cut = data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
            try:
                dtype = dtype_of(Reader(cut).load())
            except InertError:
                continue
            assert not dtype.hasobject


def test_numbers():
    for value in (np.int64(5), np.float32(1.5), np.bool_(True), np.datetime64("2020-01-01")):
        found = scalar_of(Reader(pickle.dumps(value)).load())
        assert (found, type(found)) == (value, type(value))
    with pytest.raises(InertError):
        scalar_of(Reader(pickle.dumps(datetime.date(2020, 1, 1))).load())
