def cold_at(fd: int, pos: int, size: int) -> bool: ...
def drop(fd: int, pos: int, size: int) -> None: ...
def find_alike(
    fd: int,
    flags: int,
    oids: list[bytes],
    positions: list[int],
    before_tid: bytes,
    before: bytes,
    after: bytes,
    end: bytes,
    magic: bytes,
    payload: int,
    read: int,
    cold: set[int],
) -> list[tuple[int, bytes | None] | None]: ...
