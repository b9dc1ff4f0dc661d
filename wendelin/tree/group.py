"""Group: a container of a database, as a tree of arrays with paths.

A Group has no data of its own: it is a view of a BTree or another persistent mapping, made when it
is needed. Two Groups of one container are equal. A container in it is returned as a Group, and any
other object as it is.

This module knows containers, arrays and transactions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, MutableMapping
from types import TracebackType
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike
from persistent import Persistent
from ZODB.POSException import ReadOnlyError

from wendelin.bigarray.array import Order
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigarray.attrs import Attributes, new_table
from wendelin.bigarray.plain import warn_of_plain
from wendelin.lib.zodb import zconn_check_open, zconn_is_open, zconn_name
from wendelin.sparse import ZSparse, is_matrix
from wendelin.tree.containers import (
    ATTRS,
    find,
    is_container,
    names,
    new_container,
    path_names,
    put,
)
from wendelin.tree.filling import fill, labels_of, layout_of
from wendelin.tree.history import Entry, log, undo
from wendelin.tree.moments import Moment
from wendelin.tree.opening import moment_of, open_root, past_root
from wendelin.tree.retry import has_changes
from wendelin.tree.shown import Tree, group_html
from wendelin.tree.tags import read_tags, remove_tag, set_tag

__all__ = ["Group", "open"]


def open(url: str | os.PathLike[str], mode: str = "a", at: Moment | None = None) -> Group:
    """Open a database as a tree of arrays; return its root group.

    In a `with` statement, changes are committed at the end, or aborted after an exception, and the
    database is closed. Otherwise, call transaction.commit() and g.close().

    Parameters
    ----------
    url : str or path
        A file, or a URL, as for dbopen(): each opens databases of the other.
    mode : {'a', 'r', 'r+', 'x'}
        'r': read it, even while another process changes it; 'r+': change it; 'a': change it, or
        make it if it does not exist; 'x': make it.
    at : tid, datetime or str, optional
        A past state, read-only: after a transaction, at a time ("2026-01-31T18:30", "3 days ago"),
        or at a tag.

    Raises
    ------
    ValueError
        The mode, the URL or the moment is wrong.
    FileNotFoundError, FileExistsError, OSError, zc.lockfile.LockError
        The file does not exist, or does; it cannot be opened; another process has it open.
    ZEO.Exceptions.ClientDisconnected
        No ZEO server has answered in time.

    Examples
    --------
    >>> with wendelin.open("run.fs") as g:
    ...     A = g.create_array("run/7/signal", data=np.zeros((1000, 8)))
    ...     A.attrs["unit"] = "mV"
    """
    root, close = open_root(url, mode, at)
    return Group(root, close=close)


class Group(MutableMapping[Any, Any]):
    """A mapping of names to arrays, groups, and other objects of a database.

    Parameters
    ----------
    obj : persistent mapping
        A BTree, a PersistentMapping, or the root that dbopen() returned.
    path : str
        From the root of the database, for messages.
    close : () -> None, optional
        Closes the database, at the end of `with`.

    Raises
    ------
    TypeError
        The object is not a persistent mapping.
    """

    def __init__(
        self, obj: Any, path: str = "", *, close: Callable[[], None] | None = None
    ) -> None:
        if not is_container(obj):
            raise TypeError(
                f"a {type(obj).__name__} is not a group: it must be a BTree or another persistent "
                f"mapping, such as the root that dbopen() returns"
            )
        self._obj, self._path, self._close = obj, path, close

    # ---- what it is ----

    @property
    def obj(self) -> Any:
        """The container, which is an object of ZODB."""
        return self._obj

    @property
    def path(self) -> str:
        """The path from the root of the database; '' for the root."""
        return self._path

    @property
    def name(self) -> str:
        """The last name in the path."""
        return self._path.rpartition("/")[2]

    @property
    def attrs(self) -> Attributes:
        """Names, units, numbers, small arrays that belong to the group; see Attributes."""
        return Attributes(self._where(), lambda: self._here().get(ATTRS), self._make_attrs)

    def _make_attrs(self) -> MutableMapping[str, Any]:
        container = self._changed()
        if ATTRS not in container:
            put(container, ATTRS, new_table(), self._where())
        found: MutableMapping[str, Any] = container[ATTRS]
        return found

    def __eq__(self, other: object) -> bool:
        return self._obj is other._obj if isinstance(other, Group) else NotImplemented

    def __hash__(self) -> int:
        return hash(id(self._obj))

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self!r} cannot be sent to another process: send its arrays, which go as references, "
            f"or open the database there"
        )

    def __repr__(self) -> str:
        if self._conn is not None and not zconn_is_open(self._conn):
            return f"<closed Group {self._path!r}>"
        count = len(self)
        return f"<Group {self._path!r} of {self._database()}: {count} name{'s' * (count != 1)}>"

    def _repr_html_(self) -> str | None:
        """Return HTML for a notebook; no data is loaded."""
        if self._conn is not None and not zconn_is_open(self._conn):
            return None
        return group_html(self)

    def tree(self, depth: int | None = None) -> Tree:
        """Return the contents of the group, as text and for a notebook; no data is loaded.

        Parameters
        ----------
        depth : int, optional
            How many levels are shown; None: all.
        """
        return Tree(self, depth)

    # ---- the Connection ----

    @property
    def _conn(self) -> Any:
        return self._obj._p_jar

    def _database(self) -> str:
        return zconn_name(self._conn) if self._conn is not None else "no database yet"

    def _where(self) -> str:
        return (
            f"group {self._path!r} of {self._database()}"
            if self._path
            else (f"the root group of {self._database()}")
        )

    def _here(self) -> Any:
        """Return the container, to be read."""
        if self._conn is not None:
            zconn_check_open(self._conn)
        return self._obj

    def _changed(self) -> Any:
        """Return the container, to be changed.

        Raises
        ------
        ReadOnlyError
            It cannot be changed.
        """
        obj, conn = self._here(), self._conn
        if conn is not None and conn.isReadOnly():
            past = "a past state" if conn.before is not None else "opened read-only"
            raise ReadOnlyError(f"{self._where()} cannot be changed: it is {past}")
        return obj

    # ---- a mapping ----

    def _as_seen(self, value: Any, path: str) -> Any:
        return Group(value, path) if is_container(value) else value

    def _path_of(self, key: Any) -> str:
        text = key.strip("/") if isinstance(key, str) else str(key)
        return f"{self._path}/{text}" if self._path else text

    def __getitem__(self, path: Any) -> Any:
        """Return the object at a path: `g["run/7/signal"]`.

        A container is returned as a Group; an array, and any other object, as it is.

        Raises
        ------
        KeyError
            There is nothing at that path; the message lists what there is.
        """
        container, key = find(self._here(), path, self._where())
        value = container[key]
        warn_of_plain(value, f"{self._path_of(path)!r}")
        return self._as_seen(value, self._path_of(path))

    def __contains__(self, path: object) -> bool:
        try:
            find(self._here(), path, "")
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the names in the group; for a BTree in alphabetical order."""
        return names(self._here())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        """Return True, also for an empty group."""
        return True

    def __setitem__(self, path: str, value: Any) -> None:
        """Put an array or another object at a path; it replaces an existing one.

        An ndarray becomes an array of the database, as by create_array(data=...), and a sparse
        matrix of SciPy a ZSparse.

        Raises
        ------
        TypeError
            The value is neither an array, nor a group or another persistent object.
        """
        if isinstance(value, Group):
            value = value.obj
        container, name, where = self._place(path)
        if isinstance(value, np.ndarray | np.generic):
            value = _new_array(container, name, None, None, value, "C", {}, where)
            return
        if is_matrix(value):
            S = ZSparse.csr((0, value.shape[1]), value.dtype)
            put(container, name, S, where)
            S.append_rows(value)
            return
        if not isinstance(value, Persistent):
            raise TypeError(
                f"{path!r} is a {type(value).__name__}, and is not saved when it changes: put an "
                f"array, a group or another persistent object; small values are attributes, "
                f"g.attrs[{path!r}] = …; and g.obj[{path!r}] = … puts any object of ZODB"
            )
        put(container, name, value, where)

    def __delitem__(self, path: Any) -> None:
        """Remove an array, or a group with its contents, from the tree.

        A pack frees its space in a file: until then, past states have it.
        """
        self._changed()
        container, key = find(self._obj, path, self._where())
        del container[key]

    def _place(self, path: str) -> tuple[Any, str, str]:
        """Return (container, name, its name in messages); missing groups are made."""
        *way, name = path_names(path)
        container, where = self._changed(), self._where()
        for step in way:
            if step not in container:
                put(container, step, new_container(), where)
            container, where = container[step], f"{where}/{step}"
            if not is_container(container):
                raise TypeError(f"{where} is a {type(container).__name__}, not a group")
        return container, name, where

    # ---- making and moving ----

    def create_array(
        self,
        name: str,
        shape: SupportsIndex | tuple[SupportsIndex, ...] | None = None,
        dtype: DTypeLike | None = None,
        data: Any = None,
        *,
        order: Order = "C",
        blksize: int = 2 * 1024 * 1024,
        zblk_fmt: str | None = None,
        attrs: Any = None,
    ) -> ZBigArray:
        """Make an array, which can be filled at once.

        Parameters
        ----------
        name : str
            Or a path: missing groups are made.
        shape : int or tuple of int, optional
            By default that of the data.
        dtype : data-type, optional
            By default that of the data; without data, float.
        data : array_like, optional
            Copied in steps: also an object with a shape, a dtype and slices, such as a dataset of
            h5py or an array of zarr. Only values are copied; of an xarray.DataArray, also its
            attributes and names of dimensions. Masked values and units are refused.
        order, blksize, zblk_fmt
            See ZBigArray.
        attrs : mapping, optional
            Attributes; instead of those of the data.

        Raises
        ------
        ValueError
            The name is in use; the data has another shape.
        TypeError
            Neither a shape nor data is given; values are masked or have a unit; see ZBigArray.
        """
        self._check_free(name)
        container, last, where = self._place(name)
        options = {"order": order, "blksize": blksize, "zblk_fmt": zblk_fmt}
        A = _new_array(container, last, shape, dtype, data, order, options, where)
        attrs = labels_of(data) if attrs is None else attrs
        if attrs is not None:
            A.attrs.update(attrs)
        return A

    def create_group(self, name: str, attrs: Any = None) -> Group:
        """Make a group, and the groups on the way to it.

        Raises
        ------
        ValueError
            The name is in use.
        """
        self._check_free(name)
        container, last, where = self._place(name)
        put(container, last, new_container(), where)
        group = Group(container[last], self._path_of(name))
        if attrs is not None:
            group.attrs.update(attrs)
        return group

    def require_group(self, name: str) -> Group:
        """Return the group of a name; make it if it does not exist.

        Raises
        ------
        TypeError
            The object of that name is not a group.
        """
        if name not in self:
            return self.create_group(name)
        found = self[name]
        if not isinstance(found, Group):
            raise TypeError(f"{name!r} of {self._where()} is a {type(found).__name__}")
        return found

    def _check_free(self, name: str) -> None:
        path_names(name)
        self._changed()
        if name in self:
            raise ValueError(
                f"{self._where()} has {name!r} already: del g[{name!r}] first, or give another name"
            )

    def move(self, old: Any, new: str) -> None:
        """Give the object at a path another name or place; nothing is copied.

        Parameters
        ----------
        old : str
        new : str
            The new path, with the name; missing groups are made.

        Raises
        ------
        KeyError
            There is nothing at the old path.
        ValueError
            The new path is in use, or is inside the old one.
        """
        container, key = find(self._changed(), old, self._where())
        value = container[key]
        if new in self and find(self._obj, new, "") == (container, key):
            return
        self._check_free(new)
        at: Any = self._obj
        for step in path_names(new):
            at = at[step] if is_container(at) and step in at else None
            if at is value:
                raise ValueError(f"{old!r} cannot be moved to {new!r}, which is in it")
        into, last, where = self._place(new)
        put(into, last, value, where)
        del container[key]

    def walk(self) -> Iterator[tuple[str, Any]]:
        """Iterate over (path, array or group or other object) for all objects under this group.

        Paths begin at this group. A group is entered once, as there may be cycles.
        """
        seen = {id(self._here())}
        todo = [("", self)]
        while todo:
            at, group = todo.pop()
            below = []
            for key in group:
                path = f"{at}/{key}" if at else str(key)
                value = group._as_seen(group._obj[key], group._path_of(key))
                yield path, value
                if isinstance(value, Group) and id(value.obj) not in seen:
                    seen.add(id(value.obj))
                    below.append((path, value))
            todo += reversed(below)

    # ---- transactions ----

    def __enter__(self) -> Group:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        manager = self._conn.transaction_manager if self._conn is not None else None
        try:
            if manager is not None and zconn_is_open(self._conn):
                if kind is None and not self._conn.isReadOnly():
                    manager.commit()
                else:
                    manager.abort()
        except BaseException:
            if manager is not None:
                manager.abort()
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Close the database, if this is the group that open() returned.

        Raises
        ------
        ZODB.POSException.ConnectionStateError
            There are changes: commit or abort first.
        """
        if self._close is not None:
            if zconn_is_open(self._conn):
                self._close()
            self._close = None

    # ---- time ----

    def at(self, moment: Moment) -> Group:
        """Return the root group of a past state of this database; see open().

        close() it, or use `with`. This database stays open, unlike with open(at=...) of a file.
        """
        root, close = past_root(self._root_conn(), moment)
        return Group(root, close=close)

    def log(self, count: int = 20) -> list[Entry]:
        """Return the last transactions of the database, the newest one first.

        Each has its time, its user, its note, and its changes: arrays, with ranges of
        rows, and groups.

        Parameters
        ----------
        count : int
            How many, at most.
        """
        return log(self._root_conn(), count)

    def undo(self, moment: Moment) -> None:
        """Undo a transaction: restore the previous state of what it changed.

        This is a transaction of its own, which is committed at once. Past states keep the change.

        Parameters
        ----------
        moment : bytes or str
            The tid of the transaction, as log() has it.

        Raises
        ------
        ValueError
            There is no such transaction; or there are changes: commit or abort them first.
        ZODB.POSException.UndoError
            A later transaction has changed the same objects.
        """
        self._changed()
        conn = self._root_conn()
        if has_changes(conn.transaction_manager):
            raise ValueError(
                "there are changes that are not committed: commit or abort them before undo(), "
                "which "
                "is a transaction of its own"
            )
        undo(conn, moment_of(conn, moment))

    def tag(self, name: str, at: Moment | None = None) -> None:
        """Name a moment: that of the next commit, with its changes, or a past one.

        open(at=name) opens it. A pack keeps it, and all later states, until untag().

        Raises
        ------
        ValueError
            The tag exists already; the moment is not valid.
        """
        self._changed()
        conn = self._root_conn()
        set_tag(conn, name, None if at is None else moment_of(conn, at))

    def untag(self, name: str) -> None:
        """Remove a tag; then a pack may drop its moment.

        Raises
        ------
        KeyError
            There is no such tag.
        """
        self._changed()
        remove_tag(self._root_conn(), name)

    @property
    def tags(self) -> dict[str, bytes | None]:
        """Names of moments, and their tids; None for the next commit."""
        return read_tags(self._root_conn())

    def _root_conn(self) -> Any:
        conn = self._conn
        if conn is None:
            raise ValueError(f"{self._where()}: put it into a database first")
        zconn_check_open(conn)
        return conn


def _new_array(
    container: Any,
    name: str,
    shape: Any,
    dtype: DTypeLike | None,
    data: Any,
    order: Order,
    options: dict[str, Any],
    where: str,
) -> ZBigArray:
    """Put a new array into a container, and fill it."""
    shape, dtype, data = layout_of(name, shape, dtype, data)
    A = ZBigArray(shape, dtype, **options)
    put(container, name, A, where)
    if data is not None:
        try:
            fill(A, data)
        except BaseException:
            del container[name]  # a part of the data is not under its name
            raise
    return A
