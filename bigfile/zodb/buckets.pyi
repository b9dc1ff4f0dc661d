from array import array

def read_bucket(
    record: bytes, cls: bytes, tree: bool = False
) -> tuple[array[int], bytes, bytes | None, tuple[str, ...]] | None: ...
