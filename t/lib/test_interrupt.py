"""wendelin.lib.interrupt: Ctrl-C at moments at which it must wait."""

import signal
import threading

import pytest
from support.child import check_child

from wendelin.lib.interrupt import interrupts_later

pytestmark = pytest.mark.once


def test_an_interrupt_in_a_commits_last_step_comes_after_it(tmp_path):
    """FileStorage would close itself if it were interrupted there."""
    code = """
        import importlib, os, signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)
        import transaction
        from wendelin.bigarray.array_zodb import ZBigArray
        from wendelin.lib.zodb import dbopen, dbclose

        root = dbopen(sys.argv[1])
        root["A"] = A = ZBigArray((100,), "i4", blksize=4096)
        transaction.commit()

        FileStorage = importlib.import_module("ZODB.FileStorage.FileStorage")
        def interrupted(fd):
            FileStorage.fsync = os.fsync
            signal.raise_signal(signal.SIGINT)
            for _ in range(1000):
                pass
            os.fsync(fd)

        for i in range(2):
            A[:] = 7 + i
            FileStorage.fsync = interrupted
            try:
                transaction.commit()
            except KeyboardInterrupt:
                pass
            else:
                raise AssertionError("not interrupted")
            transaction.abort()
            assert (A[:] == 7 + i).all(), A[:]
        A[:] = 9
        transaction.commit()
        dbclose(root)
        root = dbopen(sys.argv[1])
        assert (root["A"][:] == 9).all()
        dbclose(root)
    """
    for url in (f"file://{tmp_path}/1.fs", f"file://{tmp_path}/2.fs?align=false"):
        check_child(code, url)


@pytest.fixture(autouse=True)
def handled():
    """Set a handler of SIGINT: a program that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_is_handled_at_the_end():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts_later():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)
    assert done == [1]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_error_is_the_context_of_an_interrupt():
    with pytest.raises(KeyboardInterrupt) as error, interrupts_later():
        signal.raise_signal(signal.SIGINT)
        raise ValueError
    assert isinstance(error.value.__context__, ValueError)


def test_an_ignored_interrupt_stays_ignored_and_other_threads_set_no_handler():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_later():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    seen = []

    def other():
        with interrupts_later():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [before]
