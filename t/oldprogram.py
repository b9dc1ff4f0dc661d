"""A program for wendelin.core 0.x with classes of its own; it also runs with olddb.py's stand-ins.

This module is not in support/, because pickles in t/data name its classes with `oldprogram`.
"""

from wendelin.bigarray.array_zodb import ZBigArray


class Channel(ZBigArray):
    """An array with attributes."""

    gain = 1.0

    def volts(self, i):
        return self[i] * self.gain


class Slotted(ZBigArray):
    """An array with slots."""

    __slots__ = ("__secret", "_v_cache", "unit")

    def tell(self, secret):
        self.__secret = secret

    def told(self):
        return self.__secret


class Versioned(ZBigArray):
    """An array that makes its state itself."""

    history = ()

    def __getstate__(self):
        return 2, super().__getstate__(), list(self.history)

    def __setstate__(self, state):
        _, state, history = state
        super().__setstate__(state)
        self.history = (*history,)
