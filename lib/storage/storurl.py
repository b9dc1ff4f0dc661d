"""The URL of an open storage: the reverse of dburl.

With it, another process can open the same database. A storage that a URL cannot describe is
refused, so that the process does not open another database, or one without its TLS.

This module knows storages of ZODB and ZEO. For others it knows the URL by which they were opened.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlencode

from ZODB.DemoStorage import DemoStorage
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConnectionStateError
from ZODB.valuedoc import ValueDoc

from wendelin.lib.adapters.connection import Adapter, under
from wendelin.lib.adapters.filestorage import options_of
from wendelin.lib.storage.dburl import opened_by, split_demo
from wendelin.lib.storage.fsalign import SMALLEST
from wendelin.lib.storage.zeokind import WAIT, is_client

if TYPE_CHECKING:
    from ZEO.ClientStorage import ClientStorage

__all__ = ["zstor_2zurl"]


def zstor_2zurl(storage: Any) -> str:
    """Return the URL of a storage, by which dbstoropen() opens the same in any process.

    zodburi alone can open the URL of a FileStorage, too, if that packs as by default.

    Parameters
    ----------
    storage : storage
        A FileStorage, an AlignedFileStorage; a client of ZEO, with its TLS if it was opened by a
        URL; a DemoStorage of these; and any other that was opened by a URL with dbopen() or
        dbstoropen(), such as NEO's. Or the instance that a DB or a Connection has of it, but not
        one of a RelStorage: take conn.db().storage.

    Raises
    ------
    NotImplementedError
        Its URL is not known, or there is none, as for a storage in memory.
    ConnectionStateError
        Its DB was closed.
    """
    if isinstance(storage, ValueDoc):
        raise ConnectionStateError("the database is closed: open it again, as with dbopen()")
    while isinstance(storage, Adapter):
        storage = under(storage)
    if isinstance(storage, FileStorage):
        return _of_file(storage)
    if isinstance(storage, DemoStorage):
        return _of_demo(storage)
    url = opened_by(storage)
    if url is not None:
        return url
    if is_client(storage):
        return _of_zeo(storage)
    raise NotImplementedError(
        f"the URL of {_name(storage)} is not known, so another process cannot open it. Open it by "
        f"its URL, with dbopen()"
    )


def _name(storage: Any) -> str:
    return f"{type(storage).__name__} {storage.getName()!r}"


def _query(options: dict[str, Any]) -> str:
    said = {name: value for name, value in options.items() if value is not None}
    return f"?{urlencode(said, quote_via=quote, safe='/')}" if said else ""


def _quoted(path: str) -> str:
    """Return a path as it is in a URL. Most do not change: zodburi does not decode them."""
    return path if unquote(path) == path else path.replace("%", "%25")


def _of_file(storage: FileStorage) -> str:
    path, pack_gc, quota = options_of(storage)
    if "?" in path:
        raise NotImplementedError(f"no URL can name {_name(storage)}: there is a '?' in its path")
    if storage.isReadOnly() and getattr(storage, "follower", True) is None:
        raise NotImplementedError(f"no URL can name a past state (stop=) of {_name(storage)}")
    helper = getattr(storage, "fshelper", None)
    smallest = getattr(storage, "align_from", SMALLEST)
    return f"file://{_quoted(path)}" + _query(
        {
            # A plain FileStorage gets a URL of zodburi, without our options if possible.
            "align": None if getattr(storage, "align", True) else "false",
            "align_from": None if smallest == SMALLEST else smallest,
            "blobstorage_dir": getattr(storage, "blob_dir", None)
            or getattr(helper, "base_dir", None),
            "ordered": "true" if getattr(storage, "ordered", False) else None,
            "pack_gc": None if pack_gc else "false",
            "pack_keep_old": None if storage.pack_keep_old else "false",
            "quota": quota,
            "read_only": "true" if storage.isReadOnly() else None,
        }
    )


def _of_zeo(storage: ClientStorage) -> str:
    from wendelin.lib.adapters.zeo import Server  # late: see zeokind

    server = Server(storage)
    if server.ssl is not None:
        raise NotImplementedError(
            f"the files of the TLS keys of {_name(storage)} are not known: open it by its URL, "
            f"zeo://HOST:PORT?ca=…, with dbopen()"
        )
    if len(server.addresses) != 1:
        raise NotImplementedError(
            f"{_name(storage)} has {len(server.addresses)} addresses, and a URL has one"
        )
    (address,) = server.addresses
    if isinstance(address, str):
        if "?" in address or "#" in address:
            raise NotImplementedError(f"no URL can name the socket {address!r}")
        where = _quoted(address)
    else:
        host, port = address
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    blobs = storage.blob_dir is not None
    return f"zeo://{where}" + _query(
        {
            "storage": server.storage,
            "wait_timeout": server.timeout if server.timeout != WAIT else None,
            "server_sync": None if storage.server_sync else "false",
            "read_only": "true" if server.read_only else None,
            "read_only_fallback": "true" if server.read_only_fallback else None,
            "blob_dir": storage.blob_dir,
            "shared_blob_dir": "true" if blobs and storage.shared_blob_dir else None,
        }
    )


def _of_demo(storage: DemoStorage) -> str:
    base, changes = zstor_2zurl(storage.base), zstor_2zurl(storage.changes)
    url = f"demo:({base})/({changes})"
    with suppress(ValueError):
        if split_demo(url) == (base, changes, ""):
            return url
    raise NotImplementedError(f"no demo: URL can name {url}: its brackets do not match")
