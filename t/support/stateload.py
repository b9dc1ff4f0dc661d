"""What ZODB raises for an object whose state cannot be loaded: StateLoadError from 6.4 on."""

from ZODB import POSException

#: before 6.4, it was the exception of the class itself
StateLoadError = getattr(POSException, "StateLoadError", Exception)


def reason(error):
    """Return the text of what the class itself has raised, for an error that pytest caught."""
    has_class = hasattr(POSException, "StateLoadError")
    return str(error.value.__cause__ if has_class else error.value)
