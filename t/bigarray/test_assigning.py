"""Assignments of whole blocks, which need no touch, beside NumPy's, in transactions."""

import os

import numpy as np
import pytest
import transaction
from support.clients import Client
from ZODB.POSException import ConflictError

from wendelin.bigarray import assigning
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.virtmem.stats import stats_of

BLK = 4096
N = BLK // 8  # elements of a block
SEED = int(os.environ.get("WENDELIN_CORE_TEST_SEED", "0"))


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    monkeypatch.setattr(assigning, "LARGE", 1)


def test_an_append_of_whole_blocks_touches_nothing(root):
    root["A"] = A = ZBigArray((N // 2,), "f8", blksize=BLK)
    transaction.commit()
    a = np.arange(10 * N, dtype="f8")
    A[:] = a[: N // 2]
    faults = stats_of(A._fileh()).faults
    A.append(a[N // 2 :])
    assert stats_of(A._fileh()).faults <= faults + 1, "only the block that has other numbers"
    transaction.commit()
    np.testing.assert_array_equal(A[:], a)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
def test_random_assignments_appends_and_transactions(root, order, seed):
    rng = np.random.default_rng(seed)
    width = 4
    root["A"] = A = ZBigArray((3, width), "f8", order=order, blksize=BLK)
    axis = 0 if order == "C" else 1
    transaction.commit()
    model = np.zeros((3, width), order=order)
    committed = model.copy(order)
    views = []
    for step in range(60):
        what = rng.integers(0, 10)
        n = model.shape[axis]
        lo, hi = sorted(rng.integers(0, n + 1, 2).tolist())
        rows = (slice(lo, hi), slice(None))[:: 1 if axis == 0 else -1]
        if what < 4:
            values = np.asarray(rng.random(model[rows].shape), order=order)
            if what == 0 and rng.integers(2):
                values = values.astype(">f8")
            A[rows] = values
            model[rows] = values
        elif what == 4 and hi > lo:  # of the same array, through another mapping
            shift = rng.integers(0, lo + 1)
            source = (slice(lo - shift, hi - shift), slice(None))[:: 1 if axis == 0 else -1]
            A[rows] = A[source]
            model[rows] = model[source].copy()
        elif what < 7:
            shape = list(model.shape)
            shape[axis] = int(rng.integers(0, 12 * N // width))
            values = np.asarray(rng.random(shape), order=order)
            A.append(values)
            model = np.asarray(np.concatenate([model, values], axis), order=order)
        elif what == 7:
            transaction.commit()
            committed = model.copy(order)
        elif what == 8:
            transaction.abort()
            model = committed.copy(order)
        else:
            savepoint = transaction.savepoint()
            A[rows] = np.asarray(rng.random(model[rows].shape), order=order)
            savepoint.rollback()
        assert A.shape == model.shape, step
        np.testing.assert_array_equal(A[...], model, err_msg=f"step {step}, {what}")
        views = [*views[-2:], A[...]]
    transaction.commit()
    other = Client(root)
    np.testing.assert_array_equal(other["A"][...], model)
    other.close()


def test_another_client_that_overwrites_the_same_block_has_a_conflict(root):
    root["A"] = A = ZBigArray((4 * N,), "f8", blksize=BLK)
    transaction.commit()
    A[:] = 1
    transaction.commit()
    client = Client(root)
    np.testing.assert_array_equal(client["A"][:], 1)
    A[:] = np.full(4 * N, 2.0)
    client["A"][N : 3 * N] = np.full(2 * N, 3.0)
    transaction.commit()
    with pytest.raises(ConflictError):
        client.tm.commit()
    client.tm.abort()
    np.testing.assert_array_equal(client["A"][:], 2)
    client.close()
