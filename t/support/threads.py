"""Other threads: one of a test, what it does, returns and raises; and those of the pool."""

import threading

from wendelin.lib import pool

#: for what a thread has to do [s]
SECONDS = 30


def pending():
    """Let Python raise a pending asynchronous exception, as it does when a function is entered."""


class Running(threading.Thread):
    """A thread that calls act(). `results` gets what that returns or raises, once it has ended."""

    def __init__(self, act):
        super().__init__(daemon=True)
        self._act = act
        self.results = []

    def run(self):
        try:
            self.results.append(self._act())
        except BaseException as e:
            self.results.append(e)

    def finish(self):
        """Wait for the end; return what act() has returned, or raise what it has raised."""
        self.join(SECONDS)
        assert self.results, f"the thread runs after {SECONDS} s"
        (result,) = self.results
        if isinstance(result, BaseException):
            raise result
        return result


def in_thread(act):
    """Start a thread that calls act(); return it, a Running."""
    thread = Running(act)
    thread.start()
    return thread


def wait_for_pool():
    """Wait until the pool has done what it has to do now, and what that leaves to it."""
    done = threading.Barrier(pool.THREADS + 1)
    for _ in range(2):
        for _ in range(pool.THREADS):
            pool.submit(done.wait, 60)
        done.wait(60)
