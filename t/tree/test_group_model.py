"""Groups against nested dicts of ndarrays: two clients, aborts, conflicts, moves, and the past."""

import copy
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import transaction
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import storages
from support.clients import Client
from transaction.interfaces import TransientError

import wendelin
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen, zdb_last

BLK = 4096
NAMES = st.sampled_from(["a", "b", "c", "~a", "a b", "ü"])


class Node:
    """A group or an array of the model; it has the same `id` in copies of the model."""

    count = 0

    def __init__(self, data=None):
        Node.count += 1
        self.id = Node.count
        self.data = data  # None: a group
        self.names = {}  # name -> id
        self.attrs = {}


def merged(base, mine, theirs):
    """Return the result of a commit of `mine` after `theirs`: ZODB merges differences."""
    new = copy.deepcopy(theirs)
    for id, node in mine.items():
        if id not in base:
            new[id] = copy.deepcopy(node)
            continue
        old, to = base[id], new[id]
        for was, now, then in (
            (old.names, node.names, to.names),
            (old.attrs, node.attrs, to.attrs),
        ):
            for key in was.keys() | now.keys():
                if key not in now:
                    then.pop(key, None)
                elif now[key] != was.get(key):
                    then[key] = now[key]
        if node.data is not None:
            n = len(old.data)
            changed = np.flatnonzero(node.data[:n] != old.data)
            to.data = np.concatenate([to.data, node.data[n:]])
            to.data[changed] = node.data[changed]
    return new


class User:
    """A client, the model of what it sees, and whether it has changed something since it began."""

    def __init__(self, root):
        self.client = Client(root)
        self.done = False

    @property
    def group(self):
        return wendelin.Group(self.client.root)["top"]

    def begin(self, committed):
        self.client.tm.begin()
        self.now = copy.deepcopy(committed)
        self.base, self.done = committed, False

    def do(self, change):
        change(self.now)
        self.done = True


class Model(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.database = storages.kind()(self.folder)
        self.root = dbopen(self.database.url)
        self.moments = []

    def teardown(self):
        for user in getattr(self, "users", ()):
            user.client.close()
        transaction.begin()
        if hasattr(self, "committed"):
            self.check(wendelin.Group(self.root)["top"], self.committed, 0)
            for at, model in self.moments[-3:]:
                with wendelin.Group(self.root).at(at) as past:
                    self.check(past["top"], model, 0)
        dbclose(self.root)
        self.database.stop()
        shutil.rmtree(self.folder)

    @initialize()
    def create(self):
        wendelin.Group(self.root).create_group("top")
        transaction.commit()
        top = Node()
        top.id = 0
        self.committed = {0: top}
        self.users = [User(self.root), User(self.root)]
        for user in self.users:
            user.begin(self.committed)

    # ---- what a client does ----

    def pick(self, user, at, arrays):
        """Return (path, node) of the array or group that a number picks, or None without any."""
        found = []
        todo = [("", 0, ())]
        while todo:
            path, id, above = todo.pop()
            node = user.now[id]
            if (node.data is not None) == arrays and path:
                found.append((path, node))
            if id not in above:
                todo += [
                    (f"{path}/{n}" if path else n, i, (*above, id)) for n, i in node.names.items()
                ]
        found.sort(key=lambda item: item[0])
        return found[at % len(found)] if found else None

    def group_of(self, user, at):
        return self.pick(user, at, False) or ("", user.now[0])

    @rule(u=st.integers(0, 1), at=st.integers(0, 9), name=NAMES, n=st.integers(0, 2 * BLK))
    def new_array(self, u, at, name, n):
        user = self.users[u]
        path, group = self.group_of(user, at)
        data = np.arange(n, dtype="u2")
        full = f"{path}/{name}" if path else name
        if name in group.names:
            with pytest.raises(ValueError, match="already"):
                user.group.create_array(full, data=data)
            return
        A = user.group.create_array(full, data=data, blksize=BLK)
        assert A.shape == (n,)
        new = Node(data)
        self.put(user, group.id, name, new)

    def put(self, user, parent, name, new):
        def change(model):
            model[new.id] = copy.deepcopy(new)
            model[parent].names[name] = new.id

        user.do(change)

    @rule(u=st.integers(0, 1), at=st.integers(0, 9), name=NAMES)
    def new_group(self, u, at, name):
        user = self.users[u]
        path, group = self.group_of(user, at)
        if name not in group.names:
            user.group.create_group(f"{path}/{name}")
            self.put(user, group.id, name, Node())

    @rule(u=st.integers(0, 1), at=st.integers(0, 9), start=st.integers(0, 2 * BLK))
    def write(self, u, at, start):
        user = self.users[u]
        if found := self.pick(user, at, True):
            path, node = found
            user.group[path][start : start + 100] = u + 1

            def change(model, id=node.id):
                model[id].data[start : start + 100] = u + 1

            user.do(change)

    @rule(u=st.integers(0, 1), at=st.integers(0, 9), n=st.integers(1, 100))
    def append(self, u, at, n):
        user = self.users[u]
        if found := self.pick(user, at, True):
            path, node = found
            user.group[path].append(np.full(n, 7, "u2"))

            def change(model, id=node.id):
                model[id].data = np.concatenate([model[id].data, np.full(n, 7, "u2")])

            user.do(change)

    @rule(u=st.integers(0, 1), at=st.integers(0, 9), arrays=st.booleans())
    def delete(self, u, at, arrays):
        user = self.users[u]
        if found := self.pick(user, at, arrays):
            path = found[0]
            parent, name = self.parent(user, path)
            del user.group[path]

            def change(model):
                del model[parent].names[name]

            user.do(change)

    def parent(self, user, path):
        *way, name = path.split("/")
        id = 0
        for step in way:
            id = user.now[id].names[step]
        return id, name

    @rule(
        u=st.integers(0, 1),
        at=st.integers(0, 9),
        to=st.integers(0, 9),
        name=NAMES,
        arrays=st.booleans(),
    )
    def move(self, u, at, to, name, arrays):
        user = self.users[u]
        found = self.pick(user, at, arrays)
        if not found:
            return
        path, node = found
        into, group = self.group_of(user, to)
        target = f"{into}/{name}" if into else name
        inside = into == path or into.startswith(f"{path}/")
        if target == path or inside or name in group.names:
            with suppress(ValueError):
                user.group.move(path, target)
            return
        old, last = self.parent(user, path)
        user.group.move(path, target)

        def change(model, id=node.id, new=group.id):
            model[new].names[name] = id
            del model[old].names[last]

        user.do(change)

    @rule(
        u=st.integers(0, 1),
        at=st.integers(0, 9),
        arrays=st.booleans(),
        name=NAMES,
        v=st.none() | st.integers(0, 9),
    )
    def attribute(self, u, at, arrays, name, v):
        user = self.users[u]
        found = self.pick(user, at, arrays)
        if not found:
            return
        path, node = found
        attrs = user.group[path].attrs
        if v is None and name not in node.attrs:
            return
        if v is None:
            del attrs[name]
        else:
            attrs[name] = v

        def change(model, id=node.id):
            if v is None:
                del model[id].attrs[name]
            else:
                model[id].attrs[name] = v

        user.do(change)

    # ---- transactions ----

    @rule(u=st.integers(0, 1))
    def commit(self, u):
        user = self.users[u]
        try:
            user.client.tm.commit()
        except TransientError:
            assert user.base is not self.committed  # the other client has changed something
            user.client.tm.abort()
        else:
            if user.done:
                self.committed = new = merged(user.base, user.now, self.committed)
                last = zdb_last(user.client.conn.db())
                self.moments.append((last, new))
        user.begin(self.committed)

    @rule(u=st.integers(0, 1))
    def abort(self, u):
        self.users[u].client.tm.abort()
        self.users[u].begin(self.committed)

    @rule(u=st.integers(0, 1))
    def forget(self, u):
        self.users[u].client.conn.cacheMinimize()

    # ---- what there is ----

    @precondition(lambda self: hasattr(self, "users"))
    @invariant()
    def same(self):
        for user in self.users:
            self.check(user.group, user.now, 0)

    def check(self, group, model, id, depth=0):
        node = model[id]
        assert list(group) == sorted(node.names)
        assert group.attrs == node.attrs
        for name, child in node.names.items():
            found, expected = group[name], model[child]
            assert isinstance(found, ZBigArray) == (expected.data is not None)
            if expected.data is None:
                self.check(found, model, child, depth + 1)
            else:
                assert np.array_equal(found, expected.data)
                assert found.attrs == expected.attrs


Model.TestCase.settings = settings(
    max_examples=15, stateful_step_count=30, deadline=None, print_blob=True
)
TestModel = pytest.mark.formats(pytest.mark.database(Model.TestCase))
