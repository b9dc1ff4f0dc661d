"""Text that is shown to people: names out of databases and files may have any characters.

It knows only texts.
"""

__all__ = ["shown"]


def shown(text: str, keep: str = "") -> str:
    r"""Return a text with unprintable characters as escapes, as in a literal of Python.

    These are the characters for which str.isprintable() is false: control characters, which move
    the cursor of a terminal or set its title, and marks of direction (U+202E), by which a text
    looks like another one. They become \x1b, \u202e and so on.

    Parameters
    ----------
    text : str
    keep : str
        Characters that stay, such as line ends.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)
