"""wendelin import --as ragged: files of the library bigarray; t/data has one that it wrote."""

from pathlib import Path

import numpy as np
import pytest
from support.clidata import database

pytestmark = pytest.mark.once

DATA = Path(__file__).parent.parent / "data" / "bigarray-0.2.2"


def expected():
    return {"a": [[0, 0]], "é": [[0, 1], [2, 3], [4, 5]], 5: [[0, 1]]}


def test_a_file_of_the_library(call, tmp_path):
    """It was written twice: rows were added, and a piece was replaced."""
    url = f"{tmp_path}/1.fs"
    assert "3 pieces, 80 B" in call("import", "--as", "ragged", DATA, f"{url}#R").stdout
    with database(url) as root:
        R = root["R"]
        assert {key: piece.tolist() for key, piece in R.items()} == expected()
        assert R.dtype == np.dtype("i8")
        assert len(R[:]) == 5
    assert "exists already" in call("import", "--as", "ragged", DATA, f"{url}#R", code=1).stderr
    done = call("import", "--as", "ragged", "--replace", "--step", "10", "--json", DATA, f"{url}#R")
    assert done.json == {"path": "R", "pieces": 3, "bytes": 80, "resumed_at": None}
    assert call("verify", url).stdout.endswith("all good\n")


def test_files_that_are_damaged(call, tmp_path):
    """Each byte of the header and of the index is changed: the file is read, or refused."""
    from wendelin.cli.errors import Failure
    from wendelin.cli.files.bigarrays import PointerFile

    data, path = DATA.read_bytes(), tmp_path / "x"
    refused = 0
    for at in [*range(40), *range(len(data) - 60, len(data))]:
        for bit in 1, 0x80, 0xFF:
            changed = bytearray(data)
            changed[at] ^= bit
            path.write_bytes(changed)
            try:
                file = PointerFile(str(path))
            except Failure:
                refused += 1
                continue
            for rows in file.pieces.values():
                file.read(*rows)
            file.close()
    assert refused > 150
    for cut in 0, 7, 100, 504, 600, len(data) - 1:
        path.write_bytes(data[:cut])
        with pytest.raises(Failure, match=r"bigarray|no index"):
            PointerFile(str(path))
    url = f"{tmp_path}/1.fs"
    for args, code, why in [
        ((path,), 1, "bigarray"),
        ((tmp_path,), 1, "is a folder"),
        ((tmp_path / "none",), 1, "No such file"),
        (("--dtype", "f4", DATA), 2, "--dtype is not for ragged files"),
    ]:
        assert why in call("import", "--as", "ragged", *args, f"{url}#R", code=code).stderr


def test_a_file_that_the_library_writes_now(call, tmp_path):
    bigarray = pytest.importorskip("bigarray")
    if bigarray.__file__ is None:
        pytest.skip("bigarray is not installed: it is the folder of tests")
    pieces = {f"name{i}": np.arange(i * 3).reshape(i, 3) for i in range(1, 50)}
    rows = sum(map(len, pieces.values()))
    path = tmp_path / "array"
    writer = bigarray.PointerArrayWriter(str(path), shape=(rows, 3), dtype=">f4")
    writer.write(pieces)
    writer.flush()
    writer.close()
    call("import", "--as", "ragged", path, f"{tmp_path}/1.fs#R")
    there = bigarray.PointerArray(str(path))
    with database(tmp_path / "1.fs") as root:
        R = root["R"]
        assert set(R) == set(pieces)
        for key, piece in pieces.items():
            assert np.array_equal(R[key], there[key])
            assert np.array_equal(R[key], piece)
    mapped = bigarray.MmapArrayWriter(str(tmp_path / "m"), shape=(3, 4), dtype="f4")
    mapped.write(np.arange(12.0).reshape(3, 4))
    mapped.flush()
    mapped.close()
    why = call("import", "--as", "ragged", tmp_path / "m", f"{tmp_path}/1.fs#m", code=1).stderr
    assert "--offset 504" in why
    args = "--dtype", "<f4", "--shape", "3,4", "--offset", "504"
    (tmp_path / "m").rename(tmp_path / "m.raw")
    call("import", *args, tmp_path / "m.raw", f"{tmp_path}/1.fs#m")
    with database(tmp_path / "1.fs") as root:
        assert np.array_equal(root["m"][:], np.arange(12.0).reshape(3, 4))
