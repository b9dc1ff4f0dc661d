"""Zarr in the database: chunks along several axes, compressed, in the transactions of all else.

    root["g"] = ZarrGroup()
    z = zarr.open_group(root["g"].store())

ZarrGroup needs no zarr: a database that has some can be read, copied and packed without. ZODBStore
does, and is made with `pip install wendelin.core[zarr]`.

Organization
------------
    group       ZarrGroup and its values, as objects of the database
    layout      what metadata documents say
    keys        keys -> oids of values, from records
    values      values, and ranges of their bytes, from records
    table       ZarrTable: a group as its Connection sees it, in transactions
    spool       where values wait for the commit
    writing     changes -> objects
    store       ZODBStore, as zarr asks; byteranges: which bytes it asks for
    dask        Dask arrays into arrays of a group
    errors      StaleArrayError
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wendelin.zarr.errors import StaleArrayError
from wendelin.zarr.group import ZarrGroup, ZarrParts, ZarrValue

if TYPE_CHECKING:
    from wendelin.zarr.store import ZODBStore

__all__ = ["StaleArrayError", "ZODBStore", "ZarrGroup", "ZarrParts", "ZarrValue"]


def __getattr__(name: str) -> Any:
    if name != "ZODBStore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from zarr.abc.store import Store  # noqa: F401  # of zarr >= 3
    except ImportError as e:
        raise ImportError(
            "a ZarrGroup is read and written with zarr, version 3 or later: "
            "pip install 'wendelin.core[zarr]'"
        ) from e
    from wendelin.zarr.store import ZODBStore

    return ZODBStore
