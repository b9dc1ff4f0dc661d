"""neoppod: whether its client runs on this Python.

pip installs the releases for Python 2 (up to 1.12) on Python 3 as well, as they do not say what
they need; then the scheme neo:// is registered, and its resolver cannot be imported. It uses no
private name: NEO's storage is opened by the resolver, as zodburi does it.
"""

from __future__ import annotations

import sys

__all__ = ["why_no_resolver"]


def why_no_resolver(scheme: str) -> str | None:
    """Return why the resolver of a scheme cannot be imported; None: it can.

    Parameters
    ----------
    scheme : str
        That a package has registered for zodburi.
    """
    from importlib.metadata import entry_points  # slow, and only opening such a URL needs it

    (found, *_) = entry_points(group="zodburi.resolvers", name=scheme)
    try:
        found.load()
    except Exception as e:  # of code for another Python: SyntaxError, AttributeError, ImportError
        package = f"{found.dist.name} {found.dist.version}" if found.dist else found.value
        return (
            f"{package}, which is installed, does not run on Python "
            f"{sys.version_info[0]}.{sys.version_info[1]} ({type(e).__name__}: {e})"
        )
    return None
