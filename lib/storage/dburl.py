"""Factories of storages, by the path or the URL of a database.

This module knows schemes and their options, but not databases: wendelin.lib.zodb opens these. Files
and ZEO servers get storages of ours (filestorage, zeoclient); zodburi resolves all other URLs. For
storurl, the URL of a storage is remembered as long as the storage lives.
"""

from __future__ import annotations

import errno
import os
import re
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from zc.lockfile import LockError
from ZODB.DemoStorage import DemoStorage
from ZODB.FileStorage.FileStorage import FileStorageFormatError
from ZODB.MappingStorage import MappingStorage

from wendelin.lib.adapters import neo
from wendelin.lib.interrupt import handlers_optional
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.fsholder import lock_holder
from wendelin.lib.storage.readonly import made_read_only
from wendelin.lib.storage.storlimits import limit, opened_within
from wendelin.lib.storage.zeokind import WAIT

if TYPE_CHECKING:
    import ssl

__all__ = [
    "opened_by",
    "read_only",
    "resolve",
    "shown_name",
    "split_demo",
    "without_password",
]

Factory = Callable[[], Any]
_Option = tuple[str, Callable[[str], Any]]


# What zodburi has is imported when there is a URL that has any of it: that takes a while.


def _zodburi(url: str) -> tuple[Factory, dict[str, Any]]:
    from zodburi import resolve_uri

    factory, arguments = resolve_uri(url)
    return factory, arguments


@lru_cache(32)
def _db_arguments(query: str) -> dict[str, Any]:
    """Return the arguments of DB that options of a URL mean: do not change them.

    Options are few, and zodburi reads what every installed package says for each URL.
    """
    return _zodburi(f"memory://?{query}")[1]


def convert_int(value: str) -> int:
    """Return the number, or truth, that an option says."""
    from zodburi import datatypes

    number: int = datatypes.convert_int(value)
    return number


def convert_bytesize(value: str) -> int:
    """Return the size that an option says [bytes]."""
    from zodburi import datatypes

    size: int = datatypes.convert_bytesize(value)
    return size


#: options of file:// -> argument of the storage, and what makes its value
_FILE_OPTIONS: dict[str, _Option] = {
    "align": ("align", convert_int),
    "align_from": ("align_from", convert_bytesize),
    "blobstorage_dir": ("blob_dir", str),
    "create": ("create", convert_int),
    "ordered": ("ordered", convert_int),
    "pack_gc": ("pack_gc", convert_int),
    "pack_keep_old": ("pack_keep_old", convert_int),
    "quota": ("quota", convert_bytesize),
    "read_only": ("read_only", convert_int),
}

#: the same of zeo://
_ZEO_OPTIONS: dict[str, _Option] = {
    "storage": ("storage", str),
    "name": ("name", str),
    "client_label": ("client_label", str),
    "read_only": ("read_only", convert_int),
    "read_only_fallback": ("read_only_fallback", convert_int),
    "wait": ("wait", convert_int),
    "wait_timeout": ("wait_timeout", convert_int),
    "server_sync": ("server_sync", convert_int),
    "cache_size": ("cache_size", convert_bytesize),
    "client": ("client", str),
    "var": ("var", str),
    "blob_dir": ("blob_dir", str),
    "shared_blob_dir": ("shared_blob_dir", convert_int),
    "blob_cache_size": ("blob_cache_size", convert_bytesize),
    "blob_cache_size_check": ("blob_cache_size_check", convert_int),
    "ca": ("ca", str),
    "cert": ("cert", str),
    "key": ("key", str),
    "server_hostname": ("server_hostname", str),
}

_ZEO_PORT = 9991  # zodburi's default
_NEO = ("neo", "neos")


#: options of zeo:// that belong to one process, and are not shared; and those that are paths
_ZEO_OWN = ("client", "client_label", "name", "var")
_ZEO_PATHS = ("blob_dir", "ca", "cert", "key")

_opened: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def opened_by(storage: Any) -> str | None:
    """Return the URL by which another process can open a storage, if it was opened by one."""
    return _opened.get(storage)


def shown_name(storage: Any) -> str:
    """Return the name of a storage in messages: a path, or a URL without options and passwords."""
    if isinstance(storage, DemoStorage):
        return f"demo:({shown_name(storage.base)})/({shown_name(storage.changes)})"
    url = opened_by(storage)
    if url is not None:
        return without_password(url.partition("?")[0])
    return str(storage.getName()) if hasattr(storage, "getName") else type(storage).__name__


def without_password(url: str) -> str:
    """Return a URL as messages show it."""
    return re.sub(r"(//[^/?#@:]*):[^/?#@]*@", r"\1@", url)


def _remembered(factory: Factory, url: str) -> Factory:
    def make() -> Any:
        storage = factory()
        if not isinstance(storage, MappingStorage):  # in memory, of this process
            _opened[storage] = url
        return storage

    return make


def read_only(url: str) -> str:
    """Return a URL for the same database that needs no exclusive access."""
    if url.startswith("file://"):
        path, _, query = url.partition("?")
        options = [(n, v) for n, v in parse_qsl(query) if n not in ("create", "read_only")]
        return f"{path}?{urlencode([*options, ('read_only', 'true')], quote_via=quote, safe='/')}"
    if url.startswith("demo:"):
        base, changes, rest = split_demo(url)
        return f"demo:({read_only(base)})/({read_only(changes)}){rest}"
    return url


def _read_only(factory: Factory, url: str) -> Factory:
    """Return a factory whose storages can only be read."""

    def make() -> Any:
        storage = factory()
        try:
            return made_read_only(storage)
        except AttributeError as e:
            storage.close()
            raise ValueError(
                f"{url!r} cannot be opened with read_only: a {type(storage).__name__} cannot be "
                f"kept from writing ({e})"
            ) from e

    return make


def _schemes() -> set[str]:
    from importlib.metadata import entry_points  # late: it takes a while

    return {ep.name for ep in entry_points(group="zodburi.resolvers")}


def resolve(url: str, read_only: bool = False) -> tuple[Factory, dict[str, Any]]:
    """Return the factory of the storage of a path or URL, and arguments of DB.

    Parameters
    ----------
    url : str
    read_only : bool
        The database cannot be changed, whatever the URL says. Other programs may have a file open.

    Raises
    ------
    ValueError
        The scheme is unknown, or the URL is wrong; or a path has options, which only URLs have; or
        a new database in memory is to be read-only.
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?", url)
    scheme = match[1] if match is not None else ""
    if match is None or (match[2] is None and scheme not in _schemes()):
        _check_path(url)
        options = {"read_only": True} if read_only else {}
        return lambda: _file_storage(os.path.abspath(url), **options), {}
    if scheme == "file":
        return _resolve_file(url, read_only)
    if scheme == "zeo":
        return _resolve_zeo(url, read_only)
    if scheme == "demo":
        return _resolve_demo(url, read_only)
    if scheme in _NEO:
        factory, arguments = _resolve_neo(url, scheme)
    elif scheme in _schemes():
        factory, arguments = _resolve_other(url)
    else:
        known = ", ".join(sorted(_schemes().union(_NEO)))
        raise ValueError(
            f"{url!r} is not a database: it must be a path (test.fs), or a URL with one of the "
            f"schemes {known}"
        )
    factory = _remembered(factory, url)
    if read_only:
        if scheme == "memory":
            raise ValueError(
                f"{url!r} is a new, empty database in memory: do not open it read-only"
            )
        return _read_only(factory, url), arguments
    return factory, arguments


def _resolve_other(url: str, shown: str = "") -> tuple[Factory, dict[str, Any]]:
    try:
        with handlers_optional():  # its client may be imported now
            factory, arguments = _zodburi(url)
    except (KeyError, ValueError) as e:
        raise ValueError(f"{shown or url!r} is not a valid URL: {e}") from e

    def make() -> Any:
        with handlers_optional():
            return factory()

    return make, dict(arguments)


def _options(
    url: str, query: str, known: dict[str, _Option]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return arguments of the storage, and of DB, from the query of a URL."""
    options, others = {}, []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in known:
            argument, convert = known[name]
            try:
                options[argument] = convert(value)
            except ValueError as e:
                raise ValueError(f"{url!r}: {name} is {value!r}: {e}") from e
        else:
            others.append((name, value))
    try:
        # the rest is for zodburi: arguments of DB
        arguments = _db_arguments(urlencode(others))
    except (KeyError, ValueError) as e:
        raise ValueError(f"{url!r} is not a valid URL: {e} (options: {', '.join(known)})") from e
    return options, dict(arguments)


# ---- files ----


def _resolve_file(url: str, read_only: bool) -> tuple[Factory, dict[str, Any]]:
    """Of file://PATH?option=value&..."""
    if not url.startswith("file://"):
        raise ValueError(f"{url!r} is not a valid URL: it must begin with file://")
    path, _, query = url.removeprefix("file://").partition("?")
    options, arguments = _options(url, query, _FILE_OPTIONS)
    if read_only:
        options["read_only"] = True
    path = _decoded(url, path)
    return lambda: _file_storage(os.path.abspath(path), **options), arguments


def _decoded(url: str, path: str) -> str:
    """Return the path in a URL: %20 is a space.

    Earlier versions, and zodburi, do not decode it; a file that was made so is found.

    Raises
    ------
    ValueError
        Files of both names exist.
    """
    decoded = unquote(path)
    if decoded == path or not os.path.lexists(path):
        return decoded
    if os.path.lexists(decoded):
        raise ValueError(
            f"{url!r} may mean {decoded!r} or {path!r}, and both exist: give the path without "
            f"file://, or write file://{path.replace('%', '%25')} for the second one"
        )
    return path


def _check_path(path: str) -> None:
    """Check that a path has no options, which only URLs have.

    Raises
    ------
    ValueError
        It has options, and there is no file of that name.
    """
    if re.search(r"\?[A-Za-z_]+=", path) and not os.path.lexists(path):
        plain, _, query = path.partition("?")
        raise ValueError(
            f"{path!r} is a path, and paths have no options: write "
            f"file://{os.path.abspath(plain)}?{query}"
        )


def _file_storage(path: str, **options: Any) -> AlignedFileStorage:
    """Return the FileStorage of an absolute path.

    A file that cannot be one is refused first: FileStorage would leave its lock and .tmp file.
    """
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
    _check_begin(path)
    try:
        return AlignedFileStorage(path, **options)
    except LockError as e:
        holder = lock_holder(os.path.realpath(path))
        by = f" by {holder}" if holder else ", in this program or in another"
        raise LockError(
            f"Couldn't lock {path!r}: this file is open to write already{by}, maybe by another "
            f"name "
            f"of it (a link). Use the root that is there, or dbclose() it; open it with "
            f"read_only=True; or share it by a ZEO server (see docs/cluster.md)"
        ) from e


def _check_begin(path: str) -> None:
    """Check that a file, if it exists, begins as those of FileStorage do."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError:  # FileStorage says it, or makes one
        return
    # a new one whose maker came no further may have zeros, or a part of it
    if magic.strip(b"\0") and not any(known.startswith(magic) for known in (b"FS30", b"FS21")):
        raise FileStorageFormatError(
            f"{path!r} is not a database: it begins with {magic!r}, but a FileStorage begins with "
            f"'FS30', or 'FS21' if Python 2 wrote it"
        )


# ---- ZEO ----


def _resolve_zeo(url: str, read_only: bool) -> tuple[Factory, dict[str, Any]]:
    """Resolve zeo://HOST:PORT?..., or zeo:///SOCKET?..."""
    split = urlsplit(url)
    options, arguments = _options(url, split.query, _ZEO_OPTIONS)
    if read_only:
        options["read_only"] = True
    address = _zeo_address(url, split)
    tls = {name: options.pop(name) for name in ("ca", "cert", "key") if name in options}
    hostname = options.pop("server_hostname", None)
    if tls or hostname:
        if "key" in tls and "cert" not in tls:
            raise ValueError(f"{url!r}: key= needs cert=, the certificate of the key")
        if isinstance(address, tuple):
            hostname = hostname or address[0]
        options.update(ssl_server_hostname=hostname)

    def make() -> Any:
        if tls or hostname:
            options["ssl"] = _tls(**tls)
        from wendelin.lib.storage.zeoclient import ZEOClient  # late: see zeokind

        return ZEOClient(address, **options)

    same = [
        (name, os.path.abspath(value) if name in _ZEO_PATHS else value)
        for name, value in parse_qsl(split.query, keep_blank_values=True)
        if name in _ZEO_OPTIONS and name not in _ZEO_OWN
    ]
    where = url.partition("?")[0].partition("#")[0]
    query = urlencode(same, quote_via=quote, safe="/")
    return _remembered(make, f"{where}?{query}" if query else where), arguments


def _zeo_address(url: str, split: SplitResult) -> str | tuple[str, int]:
    if not split.netloc:
        if split.path in ("", "/"):
            raise ValueError(f"{url!r} names no server: zeo://HOST:PORT, or zeo:///PATH/OF/SOCKET")
        return os.path.normpath(_decoded(url, split.path))
    try:
        port = split.port
    except ValueError as e:
        raise ValueError(f"{url!r} is not a valid URL: {e}") from e
    if split.path not in ("", "/"):
        raise ValueError(
            f"{url!r} is not a valid URL: {split.path!r} follows the address; to name a storage, "
            f"write ?storage={split.path[1:]}"
        )
    return split.hostname or "", _ZEO_PORT if port is None else port


def _tls(ca: str | None = None, cert: str | None = None, key: str | None = None) -> ssl.SSLContext:
    """Return the TLS context of a connection; files are in PEM."""
    import ssl  # late: it takes a while

    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


# ---- one over another ----


def _closed(text: str) -> int:
    """Return the position of the bracket that closes the first one; -1 if there is none."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return i if i else -1
    return -1


def split_demo(url: str) -> tuple[str, str, str]:
    """Return the parts of demo:(BASE)/(CHANGES)#option=value&..., the last with its '#'.

    Raises
    ------
    ValueError
        It is not such a URL.
    """
    text = url.removeprefix("demo:")
    middle = _closed(text)
    base, rest = text[1:middle], text[middle + 1 :]
    end = _closed(rest[1:]) + 1
    if middle < 0 or end < 1 or rest[:1] != "/" or rest[end + 1 : end + 2] not in ("", "#"):
        raise ValueError(f"{url!r} is not a valid URL: it must be demo:(URL)/(URL)")
    return base, rest[2:end], rest[end + 1 :]


def _resolve_demo(url: str, read_only: bool) -> tuple[Factory, dict[str, Any]]:
    """Resolve demo:(BASE)/(CHANGES)#option=value&..."""
    *both, rest = split_demo(url)
    _, arguments = _options(url, rest[1:], {})
    _, usual = _options(url, "", {})
    factories = []
    for inner in both:
        # a storage in memory begins empty, so it is opened to write; read_only is applied below
        factory, others = resolve(inner, read_only and not inner.startswith("memory:"))
        if others and others != usual:
            raise ValueError(
                f"{url!r} is not a valid URL: options of the database must be at its end, after "
                f"'#', not in {inner}"
            )
        factories.append(factory)

    def make() -> Any:
        base = factories[0]()
        try:
            return DemoStorage(base=base, changes=factories[1]())
        except BaseException:
            base.close()
            raise

    return _read_only(make, url) if read_only else make, arguments


# ---- NEO ----


def _resolve_neo(url: str, scheme: str) -> tuple[Factory, dict[str, Any]]:
    """Resolve neo://NAME@MASTER:PORT,..., by the resolver that a neoppod registers.

    Its client tries for ever to reach a master that is not there, or that speaks another protocol.
    So each of its calls is abandoned after wait_timeout.
    """
    if scheme not in _schemes():
        raise _no_client(url, "no NEO client for this Python is installed")
    with handlers_optional():
        failure = neo.why_no_resolver(scheme)
    if failure is not None:
        raise _no_client(url, failure)
    base, _, query = url.partition("?")
    wait = float(WAIT)
    others = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name != "wait_timeout":
            others.append((name, value))
            continue
        try:
            wait = float(value)
        except ValueError as e:
            raise ValueError(f"{url!r}: wait_timeout is {value!r}: it must be seconds") from e
    factory, arguments = _resolve_other(
        f"{base}?{urlencode(others)}" if others else base, repr(url)
    )
    return lambda: limit(opened_within(wait, factory, base), base, wait), arguments


def _no_client(url: str, why: str) -> ValueError:
    return ValueError(
        f"{url!r} cannot be opened: {why}. Either install a neoppod that runs on Python 3 (its "
        f"releases up to 1.12 do not); or run a ZEO gateway next to the cluster, and open "
        f"zeo://HOST:PORT (see docs/cluster.md)"
    )
