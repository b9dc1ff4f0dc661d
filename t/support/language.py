"""Finds the worst habits of our English, in pages, comments, docstrings and messages.

It prints file, line and rule of each, and ends with 1 if there is one. A rule is a regular
expression for a bad habit. Whole paragraphs are searched, so that a line end hides nothing.
"""

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = {".py", ".pyx", ".pxd", ".pyi"}
TEXT = {".md", ".rst"}
_MIDDLE = getattr(tokenize, "FSTRING_MIDDLE", -1)  # a part of an f-string, from Python 3.12 on

#: before "who": an actor, about whom the clause says more
_ACTOR = re.compile(
    r"\b(?:person|people|users?|readers?|developers?|clients?|authors?|those|everybody|anybody|nobody)"
    r",?\s$",
    re.I,
)
#: before "is no": "there", or "there can", "there would"
_THERE = re.compile(r"\bthere(?: \w+)? $", re.I)
#: rule -> the habit. Comparatives, as in "is no faster", are right.
RULES = {
    "name the actor, not a bare 'who'": r"\bwho\b",
    "name the actor, not 'whoever'": r"\bwhom?ever\b",
    "name the actor, not 'somebody'": r"\b(?:somebody|someone)\b",
    "a thread is 'it'": r"\b(?:he|him|his|she|her)\b",
    "write 'is not a', not 'is no'": (
        r"\b(?:is|are|was|were|be) no\b"
        r"(?! (?:longer|further|faster|slower|larger|later|harder|better|more|less)\b)"
    ),
    "write 'previous', not 'of before'": r"\bof before\b",
    "write 'this module', not 'this room'": r"\bthis room\b",
}
#: texts in the databases of t/data
STORED = ["of somebody else"]
#: files that have the habits, to find them
_OWN = {"t/support/language.py", "t/docs/test_language.py"}
_RULES = {rule: re.compile(habit, re.I) for rule, habit in RULES.items()}


def found(text):
    """Yield (offset, rule, words) of each bad habit in a text."""
    for rule, habit in _RULES.items():
        for match in habit.finditer(text):
            right = {"who": _ACTOR}.get(match[0].lower(), _THERE)
            if not right.search(text, 0, match.start()):
                yield match.start(), rule, match[0]


def paragraphs(path):
    """Yield (rows, text) of each paragraph of a file; rows has the line of each character."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in TEXT:
        yield from _split(text.split("\n"), 1)
        return
    comment, begin, last = [], 0, 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        row = token.start[0]
        if token.type == tokenize.COMMENT:
            words = token.string.lstrip("#: ")
            if row != last + 1:
                yield from _split(comment, begin)
                comment, begin = [], row
            comment.append(words)
            last = row
        elif token.type == _MIDDLE:
            yield from _split(token.string.split("\n"), row)
        elif token.type == tokenize.STRING and " " in token.string:
            yield from _split(re.sub(r"\{[^{}]*\}", "{}", token.string).split("\n"), row)
    yield from _split(comment, begin)


def _split(lines, row):
    """Yield the paragraphs of some lines, of which the first one has a number."""
    text, rows = "", []
    for number, line in enumerate([*lines, ""], row):
        words = re.sub(r"`[^`]*`", "``", line.strip())  # code
        if words:
            for stored in STORED:
                words = words.replace(stored, "_" * len(stored))
            text += f"{words} "
            rows += [number] * (len(words) + 1)
        elif text:
            yield rows, text
            text, rows = "", []


def check(path):
    """Return the bad habits of a file: "line: rule: words"."""
    try:
        return [
            f"{rows[at]}: {rule}: {words!r}"
            for rows, text in paragraphs(path)
            for at, rule, words in found(text)
        ]
    except tokenize.TokenError as e:
        return [f"{e.args[1][0]}: cannot be read: {e.args[0]}"]


def main():
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    names = [name for name in listed if Path(name).suffix in PYTHON | TEXT and name not in _OWN]
    faults = 0
    for name in names:
        if (ROOT / name).is_file():
            for fault in check(ROOT / name):
                print(f"{name}:{fault}")
                faults += 1
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
