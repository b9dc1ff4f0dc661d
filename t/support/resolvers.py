"""A resolver of URLs, as a package may install it, with a client that is not ours.

`neo://STORAGE@HOST:PORT` is opened by ZEO's own client. It waits for ever for its server, as NEO's
does for its master. This module sets a handler of a signal when it is imported, as NEO's does.
"""

import signal
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from ZEO.ClientStorage import ClientStorage

from support import TESTS

signal.signal(signal.SIGUSR2, lambda number, frame: None)


def neo(uri):
    """Resolve a URL, as zodburi wants it."""
    parts = urlsplit(uri)
    address = (parts.hostname, parts.port)
    return (
        lambda: ClientStorage(address, storage=parts.username, server_sync=True),
        dict(parse_qsl(parts.query)),
    )


def install(folder):
    """Write the metadata of a package that registers the resolver; return a PYTHONPATH for it."""
    info = Path(folder) / "resolvers-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: resolvers\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[zodburi.resolvers]\nneo = support.resolvers:neo\n")
    return f"{TESTS}:{folder}"
