"""What ZODB raises for an object whose state cannot be loaded: StateLoadError from 6.4 on."""

from ZODB import POSException

#: before, it was what the class itself raised
StateLoadError = getattr(POSException, "StateLoadError", Exception)


def reason(error):
    """Return what the class itself has raised, of an error that was caught."""
    has_class = hasattr(POSException, "StateLoadError")
    return str(error.value.__cause__ if has_class else error.value)
