"""A moment of a database: a tid, a time, "3 days ago", "now".

A moment is the tid of the last transaction that is visible then. This module knows times and tids,
but not databases and their tags.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
from persistent.TimeStamp import TimeStamp
from ZODB.utils import p64, u64

__all__ = ["EXAMPLES", "Moment", "moment", "tid_time"]

Moment = bytes | str | datetime | date | np.datetime64

EXAMPLES = (
    "a tid (8 bytes, or 16 hexadecimal digits), a datetime, a time as in '2026-01-31T18:30', or "
    "'3 days ago'"
)

_UNITS = {
    "second": 1,
    "sec": 1,
    "minute": 60,
    "min": 60,
    "hour": 3600,
    "day": 86400,
    "week": 7 * 86400,
    "month": 30 * 86400,
    "year": 365 * 86400,
}
_AGO = re.compile(rf"(\d+(?:\.\d+)?|an?)\s*({'|'.join(_UNITS)})s?\s+ago")


def tid_time(tid: bytes) -> datetime:
    """Return the time of a transaction, in local time."""
    return datetime.fromtimestamp(TimeStamp(tid).timeTime()).astimezone()


def moment(at: Moment, now: float | None = None) -> bytes:
    """Return the last possible tid of a moment.

    Parameters
    ----------
    at : bytes, str, datetime, date or numpy.datetime64
        A tid or a time. A time without a zone is local; NumPy's times are UTC. A text is the end of
        the day, minute or second that it names, "3 days ago", "yesterday" (its end) or "now".
    now : float, optional
        The present time [s since 1970].

    Raises
    ------
    ValueError
        The text is not a moment, or the time is in the future, or before 1970.
    TypeError
        It is of another type.
    """
    now = time.time() if now is None else now
    if isinstance(at, bytes):
        if len(at) != 8:
            raise ValueError(f"{at!r} is not a tid: it must have 8 bytes")
        return at
    if isinstance(at, str):
        return _text(at, now)
    if isinstance(at, np.datetime64):
        at = at.astype("datetime64[us]").item().replace(tzinfo=UTC)
    elif isinstance(at, date) and not isinstance(at, datetime):
        return _text(at.isoformat(), now)
    if not isinstance(at, datetime):
        raise TypeError(f"{at!r} is not a moment: it must be {EXAMPLES}")
    return _before(at.timestamp(), now, at)


def _text(text: str, now: float) -> bytes:
    text = text.strip()
    if match := re.fullmatch(r"(?:0x)?([0-9a-fA-F]{16})", text):
        return bytes.fromhex(match[1])
    if match := _AGO.fullmatch(text.lower()):
        number = 1.0 if match[1].startswith("a") else float(match[1])
        return _before(now - number * _UNITS[match[2]], now, text)
    if text.lower() == "now":
        return _before(now, now, text)
    if text.lower() == "yesterday":
        return _text((datetime.fromtimestamp(now) - timedelta(days=1)).date().isoformat(), now)
    try:
        begin = datetime.fromisoformat(text).astimezone()
        end = begin + _precision(text)
    except (ValueError, OverflowError, OSError) as e:
        raise ValueError(f"{text!r} is not a moment: it must be {EXAMPLES} ({e})") from None
    if begin.timestamp() > now:
        raise ValueError(f"{text!r} is in the future")
    return _tid(end.timestamp(), text, exclusive=True)


def _before(when: float, now: float, of: Any) -> bytes:
    if when > now:
        raise ValueError(f"{str(of)!r} is in the future")
    return _tid(when, of)


def _tid(when: float, of: Any, exclusive: bool = False) -> bytes:
    """Return the tid of a time [s since 1970]."""
    try:
        at = datetime.fromtimestamp(when, UTC)
        stamp = TimeStamp(*at.timetuple()[:5], at.second + at.microsecond / 1e6).raw()
    except (ValueError, OverflowError, OSError) as e:
        raise ValueError(f"{str(of)!r} is not a time that databases have: {e}") from None
    if exclusive:
        return bytes(p64(u64(stamp) - 1))
    return bytes(p64(u64(stamp) + _MICROSECOND))  # transactions of that microsecond are visible


_MICROSECOND = (1 << 32) // 60_000_000  # of a tid, whose lower half counts a minute


def _precision(text: str) -> timedelta:
    """Return the length of what a time names: from a day down to a microsecond."""
    match = re.match(r"[^T ]+([T ]\d\d(:?\d\d(:?\d\d([.,]\d+)?)?)?)?", text)
    hours, minutes, seconds, fraction = match.groups() if match else (None,) * 4
    if fraction:
        return timedelta(microseconds=10 ** max(0, 7 - len(fraction)))
    if seconds:
        return timedelta(seconds=1)
    if minutes:
        return timedelta(minutes=1)
    return timedelta(hours=1) if hours else timedelta(days=1)
