MOST_READ: int

def cold_at(fd: int, pos: int, size: int) -> bool: ...
def drop(fd: int, pos: int, size: int) -> None: ...
def read_heads(
    fd: int,
    flags: int,
    oids: list[bytes],
    positions: list[int],
    before_tid: bytes,
    likes: list[tuple[bytes, bytes, bytes]],
    magic: bytes,
    read: int,
    stop: bool,
    cold: set[int] | None,
) -> list[tuple[int, int, bytes | None, int] | bytes | None]: ...
