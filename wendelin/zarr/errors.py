"""What is raised for a Zarr group."""

from ZODB.POSException import ReadConflictError

__all__ = ["StaleArrayError"]


class StaleArrayError(ReadConflictError):  # type: ignore[misc]  # ZODB has no type hints
    """An array was opened before its shape, chunks or codecs changed, and knows the previous ones.

    Open it again, as in `zarr.open_group(root["g"].store())`. It is a ReadConflictError: a loop
    that retries transactions retries this one.
    """
