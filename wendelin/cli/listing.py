"""What an import would do, or has left out: as a table, as JSON, as warnings.

This module knows contents and how they are printed. It reads no element.
"""

from __future__ import annotations

from typing import Any

from wendelin.cli.address import Address, join
from wendelin.cli.files.contents import Contents, Member
from wendelin.cli.output import (
    console,
    layout_json,
    layout_texts,
    print_json,
    say,
    size_text,
    table,
    warn,
)

__all__ = ["left_out_json", "list_members", "shown_counts", "warn_left_out"]

_WARNED = 20  # lines of warnings, at most


def _note(member: Member) -> str:
    """Return what is to be said about a member."""
    if member.why:
        return f"left out: {member.why}"
    if member.same is not None:
        return f"another name of {'/'.join(member.same)}"
    notes = [f"{len(member.attrs)} attributes" if len(member.attrs) != 1 else "1 attribute"]
    if member.unkept:
        notes.append(f"left out of them: {', '.join(member.unkept)}")
    return ", ".join(notes) if member.attrs or member.unkept else ""


def list_members(contents: Contents, address: Address, as_json: bool) -> None:
    """Print what an import of all of a file would make."""
    shown = [m for m in contents.members if m.path or m.attrs or m.unkept]
    if as_json:
        print_json([_json(member, address) for member in shown])
        return
    rows = []
    for member in shown:
        shape, dtype, _ = layout_texts(member.layout if member.is_array else None)
        size = size_text(member.nbytes) if member.is_array else "-"
        rows.append((join((*address.path, *member.path)) or "/", shape, dtype, size, _note(member)))
    console().print(table(["path", "shape", "dtype", "size", ""], rows, "size"))
    say(f"{shown_counts(contents)}; nothing is done")


def _json(member: Member, address: Address) -> dict[str, Any]:
    return {
        "path": join((*address.path, *member.path)),
        **layout_json(member.layout if member.is_array else None),
        "bytes": member.nbytes,
        "same": None if member.same is None else join((*address.path, *member.same)),
        "attributes": sorted(member.attrs),
        "attributes_left_out": list(member.unkept),
        "left_out": member.why or None,
    }


def shown_counts(contents: Contents) -> str:
    """Return how many arrays and groups there are, and their size."""
    arrays = len(contents.arrays)
    groups = sum(
        m.layout is None and not m.why and m.same is None and bool(m.path) for m in contents.members
    )
    left = sum(bool(m.why) for m in contents.members)
    return (
        f"{arrays} array{'s' * (arrays != 1)}, {groups} group{'s' * (groups != 1)}, "
        f"{size_text(contents.nbytes)}" + (f", {left} left out" if left else "")
    )


def left_out_json(contents: Contents) -> list[dict[str, Any]]:
    """Return what is left out."""
    return [{"name": m.name, "why": m.why} for m in contents.members if m.why] + [
        {"name": m.name, "attributes": list(m.unkept)}
        for m in contents.members
        if m.unkept and not m.why
    ]


def warn_left_out(contents: Contents) -> None:
    """Name on stderr what an import leaves out."""
    lines = [
        f"left out, {contents.shown(m)}: {m.why}" for m in contents.members if m.why and not m.quiet
    ]
    lines += [
        f"left out, attributes of {contents.shown(m)}: {', '.join(m.unkept)}"
        for m in contents.members
        if m.unkept and not m.why
    ]
    for line in lines[:_WARNED]:
        warn("import", line)
    if lines[_WARNED:]:
        warn("import", f"left out: {len(lines) - _WARNED} more, which --dry-run lists")
