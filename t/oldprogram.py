"""A program for wendelin.core 0.x, with classes of its own; also for the stand-ins of olddb.py.

It lies here, and not in support/, because pickles in t/data name its classes as they are called.
"""

from wendelin.bigarray.array_zodb import ZBigArray


class Channel(ZBigArray):
    """One with attributes."""

    gain = 1.0

    def volts(self, i):
        return self[i] * self.gain


class Slotted(ZBigArray):
    """One with slots."""

    __slots__ = ("__secret", "_v_cache", "unit")

    def tell(self, secret):
        self.__secret = secret

    def told(self):
        return self.__secret


class Versioned(ZBigArray):
    """One whose state is its own."""

    history = ()

    def __getstate__(self):
        return 2, super().__getstate__(), list(self.history)

    def __setstate__(self, state):
        _, state, history = state
        super().__setstate__(state)
        self.history = (*history,)
