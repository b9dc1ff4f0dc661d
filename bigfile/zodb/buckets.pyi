from array import array

def read_bucket(
    record: bytes, cls: bytes
) -> tuple[array[int], bytes, bytes | None, tuple[str, ...]] | None: ...
