"""Why a TLS connection to a server failed: ZEO tries again and again, and only logs the reason.

This module knows ssl, and the options of zeo:// that its messages name.
"""

from __future__ import annotations

import ssl
import weakref

from wendelin.lib.utils import override

__all__ = ["note_failures", "tls_failed", "tls_failure", "tls_works"]

#: Context -> the last failure of its connections, as long as none has worked since.
_failures: weakref.WeakKeyDictionary[ssl.SSLContext, str] = weakref.WeakKeyDictionary()


class _Noting(ssl.SSLObject):
    @override
    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError as e:
            tls_failed(self.context, e)
            raise


def note_failures(context: ssl.SSLContext) -> None:
    """Make connections of a context record why they fail."""
    context.sslobject_class = _Noting


def tls_failed(context: ssl.SSLContext | None, why: Exception) -> None:
    """Note that a connection has failed: with an SSLError, or as the server closed it."""
    if context is not None:
        _failures[context] = _words_of(
            why
        )  # not the exception: it holds frames, and sockets in them


def tls_works(context: ssl.SSLContext | None) -> None:
    """Note that a connection is made."""
    if context is not None:
        _failures.pop(context, None)


def tls_failure(context: ssl.SSLContext | None) -> str | None:
    """Return why connections of a context fail; None if TLS is not known to be the reason."""
    return None if context is None else _failures.get(context)


def _words_of(why: Exception) -> str:
    if isinstance(why, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not accepted: {why.verify_message} (ca= names the file of "
            f"trusted certificates, server_hostname= the name in the certificate)"
        )
    if not isinstance(why, ssl.SSLError):  # so asyncio ends a handshake that it does not like
        return (
            "it closes the connection at once. It may want a certificate of this client that it "
            "knows (cert= and key= name its files)"
        )
    reason = (why.reason or str(why)).lower().replace("_", " ")
    if "alert" in reason:
        return (
            f"it refuses this client: {reason} (cert= and key= name the files of the client's "
            f"certificate)"
        )
    return f"TLS failed: {reason}. Does the server use TLS at this port?"
