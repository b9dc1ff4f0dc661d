"""Text that is shown to people: names out of databases and files may have any characters.

It knows nothing else.
"""

__all__ = ["shown"]


def shown(text: str, keep: str = "") -> str:
    r"""Return a text without characters that do something: as Python has them in a literal.

    Such are control characters, which move the cursor of a terminal or set its title, and marks of
    direction (U+202E), by which a text looks like another one: all that str.isprintable() says no
    of. They become \x1b, \u202e and so on.

    Parameters
    ----------
    text : str
    keep : str
        Characters that stay, as line ends.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)
