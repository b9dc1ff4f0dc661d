"""How a notebook shows arrays."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
import transaction
from support.clients import BLK, Client, fill, zeros
from ZODB.DB import DB
from ZODB.MappingStorage import MappingStorage
from ZODB.utils import oid_repr

from wendelin.bigarray import BigArray
from wendelin.bigarray.array_ram import RAMArray
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.zodb.blocktable import stored_blocks
from wendelin.bigfile.zodb.inspect import inspect_blocks, stored_size
from wendelin.lib.sizes import size_text
from wendelin.lib.zodb import zconn_at, zconn_load_all, zstor_2zurl

pytestmark = pytest.mark.formats


def parsed(A):
    """Return (table, picture) of an array: {row: text}; [(what, from, to)] of its bands."""
    html = A._repr_html_()
    root = ElementTree.fromstring(html)  # raises, if it is not well-formed
    rows = {}
    for tr in root.iter("tr"):
        cells = list(tr)
        if [cell.tag for cell in cells] == ["th", "td"]:
            rows[cells[0].text] = cells[1].text
    bands = []
    for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
        title = rect.find("{http://www.w3.org/2000/svg}title")
        if title is not None:
            numbers, _, what = title.text.partition(": ")
            first, *last = map(int, re.findall(r"\d+", numbers))
            bands.append((what, first, last[0] if last else first))
    return rows, bands


def stored_bytes(A):
    """Return how many bytes a database has of an array's blocks, as `wendelin ls` counts them."""
    return sum(block.size for blocks in inspect_blocks(A.zfile) for block in blocks)


def test_an_array_in_a_database(root):
    A = fill(root, None)
    root["B"] = B = ZBigArray((300, 70), "f4", order="F", blksize=4096)
    transaction.commit()
    client = Client(root)
    rows, bands = parsed(client["A"])
    assert rows["Shape"] == "98304"
    assert rows["Data type"] == "uint8, order C"
    assert rows["Bytes"] == "96 KiB"
    assert rows["Blocks"] == "6 of 16 KiB"
    assert rows["Stored"] == f"4 blocks, {size_text(stored_bytes(A))}"
    assert rows["In memory"] == "0 B"
    assert rows["Database"] == zstor_2zurl(root._p_jar.db().storage)
    assert rows["Object"] == oid_repr(A._p_oid)
    assert "State of" not in rows
    assert bands == [("stored", 0, 3), ("not stored", 4, 5)]
    # the table has loaded nothing, and opened no handle
    assert getattr(client["A"], "_v_fileh", None) is None
    client.close()

    A[0] = A[5 * BLK] = 1
    rows, bands = parsed(A)
    assert rows["In memory"].endswith("32 KiB of changes")
    assert bands == [("changed", 0, 0), ("stored", 1, 3), ("not stored", 4, 4), ("changed", 5, 5)]
    rows, bands = parsed(B)
    assert rows["Shape"] == "300 × 70"
    assert rows["Data type"] == "float32, order F"
    assert rows["Stored"] == "0 blocks"
    assert bands == [("not stored", 0, 20)]


def test_bytes_that_are_stored(root):
    """The bytes of the records count, not whole blocks. Too many records are not counted."""
    root["few"] = few = ZBigArray((10,), "f8", zblk_fmt="ZBlk1")
    root["many"] = many = ZBigArray((10, 1 << 19), "u1", blksize=1 << 19, zblk_fmt="ZBlk1")
    transaction.commit()
    few[:] = 1
    many[:, ::4096] = 1
    transaction.commit()
    client = Client(root)
    few, many = client["few"], client["many"]
    n = stored_bytes(few)
    assert 80 < n < 4096
    assert parsed(few)[0]["Stored"] == f"1 block, {n} B"
    n = stored_bytes(many)
    records = 10 * (1 + 128)  # and those of chunk tables
    assert stored_size(many.zfile, 2 * records) == n
    assert stored_size(many.zfile, records) is None
    client.close()


def test_a_past_state(root):
    A = fill(root, None)
    at = zconn_at(root._p_jar)
    A[0] = 1
    transaction.commit()
    old = Client(root, at=at)
    assert re.fullmatch(r"20\d\d-.* UTC", parsed(old["A"])[0]["State of"])
    old.close()


def test_an_array_that_is_in_no_database_yet(root):
    A = ZBigArray((3, 4), "u1")
    assert parsed(A)[0]["Database"] == "none yet"
    root["A"] = A
    root._p_jar.add(A)
    assert parsed(A)[0]["Stored"] == "0 blocks"
    A[1] = 5
    assert parsed(A)[1] == [("changed", 0, 0)]


def test_a_database_without_url():
    db = DB(MappingStorage("memory of <this>"))
    A = fill(db.open().root(), None)
    assert parsed(A)[0]["Database"] == "memory of <this>"
    db.close()


def test_a_storage_that_fails(root, monkeypatch):
    A = fill(root, None)

    def fail(oids):
        raise OSError("no <server>")

    monkeypatch.setattr(A, "_stored_blocks", lambda: fail([]))
    assert parsed(A)[0]["Stored"] == "not known: OSError: no <server>"


def test_a_table_of_many_nodes(root):
    A = zeros(root)
    A.resize(3000 * 4096)
    A[::4096] = 1
    transaction.commit()
    oid, conn = A.zfile.blktab._p_oid, A._p_jar
    reads = []

    def load_all(oids):
        reads.extend(oids)
        return zconn_load_all(conn, oids)

    assert stored_blocks(oid, load_all, 10_000) == (list(range(3000)), True)
    assert len(set(reads)) == len(reads) > 50
    reads.clear()
    some, is_all = stored_blocks(oid, load_all, 20)
    assert not is_all
    assert len(reads) < 100
    assert 0 < len(some) < 3000
    rows, bands = parsed(A)
    assert rows["Stored"] == "3000 blocks"
    assert bands == [("stored", 0, 2999)]


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize(
    "shape", [(), (0,), (5, 0), (1,), (1 << 70,), (3, 4), (1, 1 << 40), (2, 3, 4), (5, 1, 1, 2, 7)]
)
def test_shapes(shape, order):
    A = RAMArray(shape, "f8", order)
    rows, bands = parsed(A)
    assert rows["Shape"] == (" × ".join(map(str, shape)) or "()")
    if A.size and shape:
        assert bands == [("", 0, max(0, -(-A.nbytes // (64 << 10)) - 1))]
    else:
        assert bands == []


def test_memory():
    A = RAMArray((1 << 20,), "u1")
    A[: 1 << 18] = 1
    assert parsed(A)[0]["In memory"] == "256 KiB"


def test_all_text_is_escaped():
    class Weird(BigArray):
        pass

    Weird.__name__ = "<script>alert(1)</script>"
    dtype = np.dtype([("<img src=x onerror='alert(2)'>", "i4"), ('&amp;"', "S3")])
    A = Weird((3, 4), dtype, RAMArray((1,), "u1")._fileh())
    html = A._repr_html_()
    assert "<script" not in html
    assert "<img" not in html
    assert str(dtype) in parsed(A)[0]["Data type"]


def test_text_has_the_colour_of_the_page():
    """The page may be dark."""
    root = ElementTree.fromstring(RAMArray((3, 4, 5), "u1")._repr_html_())
    texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
    assert [text.text for text in texts] == ["5", "3", "4"]
    assert {text.get("fill") for text in texts} == {"currentColor"}
