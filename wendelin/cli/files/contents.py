"""What is in a file with several arrays: groups, arrays, their attributes, and what is left out.

Each kind of file has a function that returns Contents. They are a list, made before anything is
read: an import shows it, and fills the arrays one by one.

Dimensions have names: an array keeps these as the attribute DIMS. Values of an enumeration are
numbers, and their names are the attribute ENUM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wendelin.cli.errors import Failure
from wendelin.cli.files.base import Layout, Source

__all__ = ["DIMS", "ENUM", "Contents", "Member", "is_dims", "member_named"]

#: the names of an array's axes: a list of str; xarray has this name for it in Zarr, too
DIMS = "_ARRAY_DIMENSIONS"
#: the names of an enumeration: a dict of name -> number
ENUM = "enum"

Path = tuple[str, ...]


@dataclass
class Member:
    """An array, a group or a second name of one of them; or what is left out."""

    path: Path  # () is the file itself, a group
    #: None: a group
    layout: Layout | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    #: names of attributes that cannot be kept
    unkept: Sequence[str] = ()
    #: why it is left out; '' if it is not
    why: str = ""
    #: what it is another name of
    same: Path | None = None
    #: opens an array, to be read once; the Contents stay open meanwhile
    open: Callable[[], Source] | None = None
    #: nothing is lost with it, so no warning names it
    quiet: bool = False
    #: it is left out because it cannot be read: an import says so by its exit code
    damaged: bool = False

    @property
    def name(self) -> str:
        """The path as text."""
        return "/".join(self.path)

    @property
    def is_array(self) -> bool:
        """Whether it is an array that is kept."""
        return self.layout is not None and not self.why

    @property
    def nbytes(self) -> int:
        """Size of an array that is kept [bytes]."""
        if self.layout is None or self.why:
            return 0
        return self.layout.size * self.layout.dtype.itemsize


@dataclass
class Contents:
    """The members of a file; a group is before what is in it."""

    path: str
    members: list[Member]
    #: plain values that say whether another file is the same
    identity: dict[str, Any]
    close: Callable[[], None] = lambda: None

    def shown(self, member: Member) -> str:
        """Return FILE:NAME of a member."""
        names = [name for name in (self.identity.get("member", ""), member.name) if name]
        return ":".join([self.path, "/".join(names)]) if names else self.path

    @property
    def arrays(self) -> list[Member]:
        """The arrays that are kept."""
        return [member for member in self.members if member.is_array]

    @property
    def nbytes(self) -> int:
        """Size of all arrays that are kept [bytes]."""
        return sum(member.nbytes for member in self.members)


def is_dims(value: Any, ndim: int) -> bool:
    """Say whether the value of an attribute DIMS fits an array of `ndim` axes."""
    names = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    return names and len(value) == ndim > 0


def member_named(contents: Contents, name: str) -> Member:
    """Return the array of a name; the only one, if no name is given.

    Raises
    ------
    Failure
        There is none; or it is left out; or there are several, and no name is given.
    """
    path = contents.path
    arrays = [m for m in contents.members if m.layout is not None or m.why]
    wanted = name.strip("/")
    found = [m for m in arrays if m.name == wanted] if wanted else contents.arrays
    if len(found) == 1:
        member = found[0]
        if member.why:
            raise Failure(f"{path}:{member.name} cannot be an array: it has {member.why}")
        return member
    names = [m.name for m in contents.arrays]
    have = ", ".join(names[:8]) + (", ..." if names[8:] else "") or "no arrays"
    if wanted:
        raise Failure(f"{path} has no array {name!r}: it has {have}")
    raise Failure(f"{path} has {have}: name one of them, as in {path}:NAME")
