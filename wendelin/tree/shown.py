"""Groups as a tree, in text and in a notebook. No data is loaded.

This module knows the contents of groups, and HTML. Names may be a stranger's: all text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from wendelin.bigarray import BigArray
from wendelin.lib.shown import shown
from wendelin.lib.sizes import size_text
from wendelin.sparse import ZSparse

if TYPE_CHECKING:
    from wendelin.tree.group import Group

__all__ = ["Tree", "group_html", "line_of"]

_MOST = 1000  # lines of a tree
_OPEN = 3  # levels that a notebook shows opened


def line_of(value: Any) -> str:
    """Return the text about an object behind its name."""
    if isinstance(value, BigArray):
        shape = " × ".join(map(str, value.shape)) or "scalar"
        return f"{shape} {value.dtype}, {size_text(value.nbytes)}"
    if isinstance(value, ZSparse):
        rows, columns = value.shape
        return f"{rows} × {columns} {value.dtype}, sparse, {value.nnz} numbers"
    return "" if hasattr(value, "tree") else type(value).__name__


class Tree:
    """The contents of a group, to be shown."""

    def __init__(self, group: Group, depth: int | None = None) -> None:
        self._group, self._depth = group, depth

    def __str__(self) -> str:
        lines = [shown(self._group.path) or "/"]
        for line in self._lines(self._group, "", 1, {id(self._group.obj)}):
            if len(lines) == _MOST:
                lines.append("…")
                break
            lines.append(line)
        return "\n".join(lines)

    __repr__ = __str__

    def _lines(self, group: Group, indent: str, level: int, above: set[int]) -> Iterator[str]:
        if self._depth is not None and level > self._depth:
            return
        keys = list(group)
        for i, key in enumerate(keys):
            last = i == len(keys) - 1
            value = group._as_seen(group.obj[key], group._path_of(key))
            about = line_of(value)
            name = shown(str(key)) + ("/" if hasattr(value, "tree") else "")
            yield f"{indent}{'└── ' if last else '├── '}{name}{'  ' if about else ''}{about}"
            if hasattr(value, "tree"):
                if id(value.obj) in above:
                    continue  # a circle
                deeper = indent + ("    " if last else "│   ")
                yield from self._lines(value, deeper, level + 1, above | {id(value.obj)})

    def _repr_html_(self) -> str:
        return group_html(self._group, self._depth)


def group_html(group: Group, depth: int | None = None) -> str:
    """Return a group as HTML: its groups can be opened and closed."""
    count = [0]
    body = _html(group, 1, depth, {id(group.obj)}, count)
    title = f"{shown(group.path) or '/'} of {group._database()}"
    return f"<div><strong>Group {escape(shown(title))}</strong>{_attrs(group)}{body}</div>"


def _attrs(obj: Any) -> str:
    rows = "".join(
        f'<tr><th style="text-align: left">{escape(shown(name))}</th>'
        f'<td style="text-align: left">{escape(shown(_short(value)))}</td></tr>'
        for name, value in obj.attrs.items()
    )
    return f"<table>{rows}</table>" if rows else ""


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _html(group: Group, level: int, depth: int | None, above: set[int], count: list[int]) -> str:
    if depth is not None and level > depth:
        return ""
    items = []
    for key in group:
        count[0] += 1
        if count[0] > _MOST:
            items.append("<li>…</li>")
            break
        value = group._as_seen(group.obj[key], group._path_of(key))
        name, about = escape(shown(str(key))), escape(line_of(value))
        if hasattr(value, "tree") and id(value.obj) not in above:
            inner = _html(value, level + 1, depth, above | {id(value.obj)}, count)
            opened = " open" if level < _OPEN else ""
            items.append(f"<li><details{opened}><summary>{name}/</summary>{inner}</details></li>")
        else:
            items.append(f"<li><b>{name}</b> {about}</li>")
    return f'<ul style="list-style: none">{"".join(items)}</ul>'
