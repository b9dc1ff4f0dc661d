"""The pool of threads that ask storages."""

import os
import threading

import pytest

from wendelin.lib import pool


def test_several_threads_work_together():
    at_once = threading.Barrier(pool.THREADS)

    def work(i):
        if i < pool.THREADS:
            at_once.wait(60)
        return i * i, pool.in_pool()

    done = pool.together(work, range(100))
    assert [square for square, _ in done] == [i * i for i in range(100)]
    assert {in_pool for _, in_pool in done} >= {True}
    assert not pool.in_pool()


def test_jobs_of_the_pool_may_work_together():
    """Each thread of the pool asks the others, which are as busy."""
    busy, results = threading.Barrier(pool.THREADS), []
    done = threading.Semaphore(0)

    def job():
        busy.wait(60)
        results.append(pool.together(lambda i: i + 1, range(50)))
        done.release()

    for _ in range(pool.THREADS):
        pool.submit(job)
    for _ in range(pool.THREADS):
        assert done.acquire(timeout=60)
    assert results == [list(range(1, 51))] * pool.THREADS


@pytest.mark.parametrize("n", [1, 2, 50])
def test_what_fails_is_raised_and_nothing_more_is_begun(n):
    begun = []

    def work(i):
        begun.append(i)
        raise OSError(f"gone: {i}")

    with pytest.raises(OSError, match="gone"):
        pool.together(work, range(n))
    assert len(begun) <= pool.THREADS
    assert pool.together(work, []) == []


def test_a_child_of_a_fork_has_threads_of_its_own():
    pool.together(str, range(4))
    pid = os.fork()
    if pid == 0:
        os._exit(0 if pool.together(str, range(4)) == list("0123") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
