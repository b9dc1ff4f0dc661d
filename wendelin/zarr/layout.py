"""What Zarr's metadata documents say of arrays: as far as it concerns those that hold chunks.

It knows names of keys, and the JSON of versions 2 and 3.
"""

from __future__ import annotations

import json
from typing import Any

__all__ = ["METADATA", "folder_of", "is_metadata", "is_sharded", "layouts", "nodes_above"]

#: last names of keys that are metadata
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
#: of an array
ARRAY = ("zarr.json", ".zarray")


def is_metadata(key: str) -> bool:
    """Say whether a key is that of a metadata document."""
    return key.rpartition("/")[2] in METADATA


def folder_of(key: str) -> str:
    """Return the path of the node that a metadata document is of."""
    return key.rpartition("/")[0]


def nodes_above(key: str) -> list[str]:
    """Return the paths of nodes that the key of a chunk may be in, the innermost first."""
    names = key.split("/")[:-1]
    return ["/".join(names[:n]) for n in range(len(names), -1, -1)]


def _parsed(data: bytes | memoryview | bytearray | None) -> dict[str, Any]:
    try:
        found = json.loads(bytes(data or b""))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _layout(document: Any) -> str | None:
    """Return what an array's chunks depend on, as text; None if it is not of an array."""
    if not isinstance(document, dict) or "shape" not in document:
        return None
    return json.dumps({k: v for k, v in document.items() if k != "attributes"}, sort_keys=True)


def layouts(key: str, data: bytes | memoryview | bytearray | None) -> dict[str, str]:
    """Return what a metadata document says of arrays: path -> what their chunks depend on.

    Parameters
    ----------
    key : str
    data : bytes or None
        The document; None: there is none.
    """
    folder, _, name = key.rpartition("/")
    if name not in ("zarr.json", ".zarray", ".zmetadata"):
        return {}
    document = _parsed(data)
    if name == ".zmetadata":
        inner = document.get("metadata")
        inner = inner if isinstance(inner, dict) else {}
        found = {folder_of(k): v for k, v in inner.items() if k.rpartition("/")[2] == ".zarray"}
    else:
        found = {"": document}
        consolidated = document.get("consolidated_metadata")
        if isinstance(consolidated, dict) and isinstance(consolidated.get("metadata"), dict):
            found.update(consolidated["metadata"])
    result = {}
    for path, value in found.items():
        layout = _layout(value)
        if layout is not None:
            result["/".join(filter(None, (folder, path)))] = layout
    return result


def is_sharded(data: bytes | memoryview) -> bool:
    """Say whether a metadata document is of an array whose values are shards."""
    codecs = _parsed(data).get("codecs")
    if not isinstance(codecs, list):
        return False
    return any(isinstance(c, dict) and c.get("name") == "sharding_indexed" for c in codecs)
