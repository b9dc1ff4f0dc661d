"""All of a file that is put into a database: groups, arrays, attributes; in bounded transactions.

Until it is complete, everything is in a group of its own, with the name of the new group and
`~import`; for the root of a database, that name is `~import` alone. The group notes what the file
is, and how many members are done. So an import that was killed can go on: a large array in its
middle, see transfer. The last transaction puts the group, or what is in it, in its place.

This module knows contents and groups. It knows no kind of file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import transaction
from BTrees.OOBTree import OOBTree
from numpy.typing import NDArray
from persistent.mapping import PersistentMapping

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.cli.address import Address, Path, join
from wendelin.cli.arrays import flat_bytes
from wendelin.cli.changing import group_at
from wendelin.cli.committing import in_steps, step_done
from wendelin.cli.compound import convert
from wendelin.cli.errors import Failure, explain
from wendelin.cli.files.base import Source
from wendelin.cli.files.contents import Contents, Member
from wendelin.cli.files.convert import as_bytes
from wendelin.cli.output import Advance, warn
from wendelin.cli.stored import class_of
from wendelin.cli.transfer import Target, fill, put_elements
from wendelin.cli.tree import SUFFIX
from wendelin.lib.utils import override
from wendelin.tree.containers import is_container, is_hidden, new_container
from wendelin.tree.group import Group

__all__ = ["Whole", "leave_out_names"]

_NOTES = {"source", "done"}  # keys, and maybe
_DAMAGED = "damaged"  # name -> why, of members that could not be read
_TOGETHER = 1000  # members that are committed together, at most


def leave_out_names(contents: Contents) -> None:
    """Leave out members whose names cannot be in a group, with what is in them."""
    bad: set[Path] = set()
    seen: set[Path] = set()
    for member in contents.members:
        path = member.path
        if any(path[:n] in bad for n in range(1, len(path))):
            member.why = member.why or "a group that is left out"
        elif path and (is_hidden(path[-1]) or path[-1] in ("", ".", "..")):
            member.why = f"a name that is reserved, {path[-1]!r}"
        elif path in seen and not member.why:
            member.why = "a name that another object has, too"
        if member.why:
            bad.add(path)
        else:
            seen.add(path)
            bad.discard(path)
    for member in contents.members:
        if member.same is not None and member.same not in seen:
            member.why = "a link to what is left out"


class _Unreadable(Failure):
    """A member of a file cannot be read; the text says why."""


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except Exception as e:
        raise _Unreadable(explain(e)) from e


class _Read(Source):
    """A member that is read: what goes wrong then is of the file, not of the database.

    Parameters
    ----------
    member : Member

    Raises
    ------
    _Unreadable
    """

    def __init__(self, member: Member) -> None:
        assert member.open is not None
        with _reading():
            self._source = member.open()
        self.layout, self.attrs = self._source.layout, member.attrs

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        with _reading():
            return self._source.read(start, stop)

    @override
    def next_data(self, start: int) -> int:
        with _reading():
            return self._source.next_data(start)

    @override
    def identity(self) -> dict[str, Any]:
        return self._source.identity()

    @override
    def close(self) -> None:
        self._source.close()


class Whole:
    """An import of all of a file: a new one, or one to go on with.

    Parameters
    ----------
    root
        Of the database.
    address : Address
        Of a group, which may exist; without a path, the root.
    contents : Contents
    replace : bool
        Replace what has the same names.
    blksize : int
        Of the arrays [bytes].
    zblk_fmt : str, optional

    Raises
    ------
    Failure
        Other objects have the names; another import was begun there.
    """

    def __init__(
        self,
        root: Any,
        address: Address,
        contents: Contents,
        replace: bool,
        blksize: int,
        zblk_fmt: str | None,
    ) -> None:
        self._root, self.address, self._contents, self._replace = root, address, contents, replace
        self._blksize, self._zblk_fmt = blksize, zblk_fmt
        *way, name = address.path or ("",)
        self._name = name
        self._staged = name + SUFFIX
        self._path = (*way, self._staged)  # of the staging group
        self._parent = group_at(root, address.url, tuple(way))
        self._kept = [m for m in contents.members if not m.why]
        self._check_there()
        identity = {n: v for n, v in contents.identity.items() if n != "file"}
        identity.update(members=len(self._kept), bytes=contents.nbytes)
        self.resumed = False
        notes: Any = None
        staging = self._parent.obj.get(self._staged)
        if staging is not None:
            notes = staging.get(SUFFIX) if is_container(staging) else None
            if not isinstance(notes, PersistentMapping) or notes.keys() - {_DAMAGED} != _NOTES:
                raise Failure(
                    f"{self._where(self._path)} is a {class_of(staging)}: the import needs that "
                    f"name. It may be an unfinished import of an array: `wendelin rm` removes it"
                )
            self.resumed = notes["source"] == identity and in_steps()
            if not self.resumed and not replace and in_steps():
                raise Failure(f"{address} was begun from another source: --replace begins again")
        if not self.resumed:
            staging = new_container()
            self._parent.obj[self._staged] = staging
            notes = PersistentMapping(source=identity, done=0)
            staging[SUFFIX] = notes
            root._p_jar.add(staging)
        self._staging, self._notes = Group(staging, join(self._path)), notes

    def _where(self, path: Path) -> Address:
        return Address(self.address.url, path)

    @property
    def done(self) -> int:
        """Members that are done."""
        return int(self._notes["done"])

    @property
    def done_bytes(self) -> int:
        """What is done [bytes], without the part of an array."""
        return sum(m.nbytes for m in self._kept[: self.done])

    @property
    def damaged(self) -> dict[str, str]:
        """Name of each member that could not be read -> why."""
        return dict(self._notes.get(_DAMAGED, {}))

    @property
    def total(self) -> int:
        """Number of members."""
        return len(self._kept)

    def _check_there(self) -> None:
        """Check that names are free, or their objects may be replaced."""
        there = self._there()
        if there is None or self._replace:
            return
        if not is_container(there):
            raise Failure(
                f"{self.address} exists already: it is a {class_of(there)}; --replace replaces it"
            )
        both = [m.path[0] for m in self._kept if len(m.path) == 1 and m.path[0] in there]
        if both:
            have = ", ".join(both[:8]) + (", ..." if both[8:] else "")
            raise Failure(
                f"{self.address} has {have} already: --replace replaces what the file has, too; "
                f"{self.address.url}#name puts the file into a group of its own"
            )

    def _there(self) -> Any:
        """Return the object that the address has; None: there is none."""
        return self._parent.obj.get(self._name) if self.address.path else self._root

    # ---- members ----

    def run(self, step: int, tell: Advance) -> None:
        """Import what is not done yet.

        Parameters
        ----------
        step : int
            About how much one transaction writes [bytes].
        tell
            Called with the number of bytes that were added.

        A member that cannot be read is noted, and left out with what was done of it: see damaged.

        Raises
        ------
        Failure
            A part was not done; the message says how much is.
        """
        limit, _, _ = ram_stat()
        most = max(self._blksize, min(step, limit // 4))
        member: Member | None = None
        try:
            waiting = 0  # memory of what is not committed yet [bytes]
            first = done = self.done
            for member in self._kept[first:]:
                large = member.is_array and member.nbytes > most
                if large and done != self.done:
                    self._commit(done)
                    waiting = 0
                try:
                    if large:
                        self._large(member, step, tell)
                    else:
                        waiting += self._small(member)
                        tell(member.nbytes)
                except _Unreadable as e:
                    self._leave_out(member, e)
                done += 1
                if waiting >= most or (done - self.done) >= _TOGETHER:
                    self._commit(done)
                    waiting = 0
            member = None
            self._finish()
        except (Exception, KeyboardInterrupt) as e:
            done = 0
            with suppress(Exception):
                transaction.abort()
                done = self.done
            if (not done or not in_steps()) and isinstance(e, Failure):
                raise
            where = f"{self._contents.path}:{member.name}: " if member and member.path else ""
            text = explain(e)
            if not in_steps():
                raise Failure(f"{where}{text}: nothing was imported") from e
            raise Failure(
                f"{'' if where and where[:-2] in text else where}{text}: {done} of {self.total} "
                f"arrays and groups are done, in {self._where(self._path)}; the same command goes "
                f"on from there"
            ) from e

    def _leave_out(self, member: Member, error: _Unreadable) -> None:
        """Note that a member cannot be read; the next commit saves it."""
        *way, name = member.path
        container = self._container(tuple(way))
        container.pop(name + SUFFIX, None)  # what was done of it
        self._notes[_DAMAGED] = {**self.damaged, member.name: str(error)}
        warn("import", f"left out, {self._contents.shown(member)}: {error}")

    def _small(self, member: Member) -> int:
        """Put a member into the group; return how much memory it takes [bytes].

        Raises
        ------
        _Unreadable
            Nothing was put there.
        """
        if not member.path:
            return 0  # the attributes of the file: at the end
        path = "/".join(member.path)
        *way, name = member.path
        container = self._container(tuple(way))
        if member.same is not None:
            if "/".join(member.same) in self.damaged:
                raise _Unreadable("a link to what is left out")
            container[name] = self._container(member.same)
        elif member.layout is None:
            if name not in container:
                container[name] = new_container()
                self._root._p_jar.add(container[name])
            if member.attrs:
                Group(container[name], path).attrs.update(member.attrs)
        else:
            self._array(container, name, member)
            return max(member.nbytes, self._blksize)
        return 0

    def _container(self, path: Path) -> Any:
        """Return the object at a path in the group; missing groups are made."""
        at = self._staging.obj
        for name in path:
            if name not in at:
                at[name] = new_container()
                self._root._p_jar.add(at[name])
            at = at[name]
        return at

    def _array(self, container: Any, name: str, member: Member) -> None:
        assert member.layout is not None
        assert member.open is not None
        shape, dtype, order = member.layout
        data, first = None, 0
        if member.nbytes:
            with closing(_Read(member)) as source:
                first = source.next_data(0)
                if first < source.layout.size:
                    data = source.read(first, source.layout.size)
        A = ZBigArray(shape, dtype, order, self._blksize, self._zblk_fmt)
        container[name] = A
        self._root._p_jar.add(A)
        A.attrs.update(member.attrs)
        if data is not None:
            flat_bytes(A)[first * A.itemsize :] = as_bytes(data)

    def _array_in_steps(self, container: Any, name: str, member: Member, step: int) -> None:
        """As _array(), with `step` bytes in memory at a time."""
        assert member.layout is not None
        container[name] = A = ZBigArray(*member.layout, self._blksize, self._zblk_fmt)
        self._root._p_jar.add(A)
        A.attrs.update(member.attrs)
        try:
            with closing(_Read(member)) as source:
                put_elements(A, source, max(step, self._blksize))
        except _Unreadable:
            del container[name]
            raise

    def _large(self, member: Member, step: int, tell: Advance) -> None:
        """Import an array in transactions of its own, if each step is one."""
        if not in_steps():
            *way, name = member.path
            self._array_in_steps(self._container(tuple(way)), name, member, step)
            tell(member.nbytes)
            return
        at = self._where((*self._path, *member.path))
        with closing(_Read(member)) as source:
            # an array that is there is complete: it was not counted yet
            there = self._container(member.path[:-1]).get(member.path[-1])
            if there is not None:
                tell(member.nbytes)
                return
            target = Target(self._root, at, source, False, self._blksize, self._zblk_fmt)
            tell(target.done * target.array.itemsize)
            try:
                fill(target, source, step, tell)
            except Failure as e:
                if isinstance(e.__cause__, _Unreadable):
                    raise e.__cause__ from e
                raise

    # ---- transactions ----

    def _commit(self, done: int) -> None:
        self._check_ours()
        self._notes["done"] = done
        self._step(f"{done} of {self.total}")

    def _step(self, text: str) -> None:
        step_done(join(self.address.path) or repr("/"), text)

    def _check_ours(self) -> None:
        staging = self._parent.obj.get(self._staged)
        if staging is not self._staging.obj or staging.get(SUFFIX) is not self._notes:
            raise Failure(f"another import of {self.address} has begun meanwhile")

    def _finish(self) -> None:
        """Put what was imported in its place."""
        self._check_ours()
        self._check_there()  # another client may have put something there
        staging = self._staging.obj
        del staging[SUFFIX]
        convert(staging)
        attrs = next((m.attrs for m in self._kept if not m.path), {})
        there = self._there()
        if there is None or not is_container(there):
            self._parent.obj[self._name] = staging
            if attrs:
                self._staging.attrs.update(attrs)
        else:
            for name, value in _moved(staging):
                there[name] = value
            if attrs:
                Group(there, join(self.address.path)).attrs.update(attrs)
        del self._parent.obj[self._staged]
        self._step("complete")


def _moved(container: OOBTree) -> Iterator[tuple[str, Any]]:
    """Yield what is in a container, and take it out."""
    for name in list(container):
        value = container[name]
        del container[name]
        yield name, value
