"""BTrees as real BTrees write them, read from records: what BTrees can write is not damaged."""

import numpy as np
import pytest
import transaction
from clients import Client

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.check import check_blocks
from wendelin.bigfile.survey import stored_numbers, survey
from wendelin.bigfile.zblk import CHUNK

BLK = 4096


# ---- arrays whose trees lose nodes ----


@pytest.mark.parametrize("left", [1, 10, 40, 0])
def test_a_block_table_that_deletes_leave_one_bucket_of(testdb, root, left):
    root["A"] = A = ZBigArray((300 * BLK,), "u1", blksize=BLK)
    transaction.commit()
    A[::BLK] = np.arange(300) % 251 + 1
    transaction.commit()
    A.resize((left * BLK,))
    transaction.commit()
    expected = np.arange(left) % 251 + 1
    assert (A[::BLK] == expected).all()
    other = Client(root)
    assert (other["A"][::BLK] == expected).all()
    assert list(stored_numbers(other["A"].zfile)) == list(range(left))
    assert [s.blk for some in survey(other["A"].zfile) for s in some] == list(range(left))
    assert not any(c.bad for c in check_blocks(other["A"].zfile))
    other["A"].resize((300 * BLK,))
    other["A"][::BLK] = 7
    other.tm.commit()
    other.close()
    transaction.begin()
    assert (A[::BLK] == 7).all()


def test_a_chunk_table_that_deletes_leave_one_bucket_of(root):
    root["A"] = A = ZBigArray((200 * CHUNK,), "u1", blksize=200 * CHUNK, zblk_fmt="ZBlk1")
    transaction.commit()
    A[::CHUNK] = 1
    transaction.commit()
    A[10 * CHUNK :] = 0
    transaction.commit()
    other = Client(root)
    assert (np.flatnonzero(other["A"][:]) == np.arange(10) * CHUNK).all()
    assert not any(c.bad for c in check_blocks(other["A"].zfile))
    other.close()
