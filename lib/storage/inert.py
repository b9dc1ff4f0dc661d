"""Pickles, read as data: nothing that a pickle names is imported, and nothing is called.

This is for pickles of strangers. A class or function becomes its name (Global), and an object
becomes its parts (Object): the name of its class, arguments, states, items. A dict becomes its
pairs (Pairs): no key is hashed or compared, as hostile keys can make that take for ever.

Time and memory grow with the size of the pickle, not with numbers in it. A length, or a place in
the memo, is checked against that size, and `_most()` limits the number of objects.

It knows pickles of protocols 0 to 5, and the few reduced forms in which pickles have bytes and
objects without arguments. Values may be shared, and may contain themselves: code that goes
through them must make sure that it ends.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

from wendelin.lib.memlimit import memory_limit

__all__ = ["Global", "InertError", "Object", "Pairs", "Reader", "printable", "shown"]

_OBJECT = 512  # about what a value takes in memory, with its place in the memo [bytes]
_ENCODED = 1 << 20  # limit of bytes that a pickle has as text, besides its own size [bytes]
_LONG = 60  # of a text in an error [characters]
_DIGITS = 1000  # of a number that is written as text


class InertError(ValueError):
    """It is not a pickle, or one that is not read here."""


def printable(name: str) -> str:
    """Return the name of a class, safe to show on a terminal."""
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


class Global:
    """A class or function that a pickle names."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = printable(name)  # "module.name"

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Pairs:
    """A dict: its pairs, in the order of insertion; the last pair of a key counts."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a key that is a str."""
        found = default
        for key, value in self.pairs:
            if type(key) is str and key == name:
                found = value
        return found

    def __repr__(self) -> str:
        return f"<dict of {len(self.pairs)}>"


class Object:
    """An object that a pickle makes, by a call or from a class."""

    __slots__ = ("args", "cls", "items", "pairs", "states")

    def __init__(self, cls: str, args: tuple[Any, ...] = ()) -> None:
        self.cls = cls  # "module.name" of its class, or of the function that is called for it
        self.args = args
        self.states: list[Any] = []
        self.items: list[Any] = []  # appended
        self.pairs: list[tuple[Any, Any]] = []  # set, as in a dict

    def __repr__(self) -> str:
        return f"<{self.cls}>"


def shown(value: object, depth: int = 2) -> str:
    """Return a short text for a value in errors, even if it is large or contains itself."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str | bytes):
        return repr(value[:_LONG]) + ("..." if len(value) > _LONG else "")
    if isinstance(value, tuple | list):
        items = [shown(item, depth - 1) for item in value[:3]] if depth else []
        text = ", ".join(items + ["..."] * (len(items) < len(value)))
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    text = repr(value)
    return text if len(text) <= 2 * _LONG else f"{text[: 2 * _LONG]}..."


@cache
def _most() -> int:
    """Return how many objects a pickle may have, to fit into half of the memory."""
    return memory_limit() // 2 // _OBJECT


_float64 = struct.Struct(">d").unpack_from


class Reader:
    """Reads pickles that follow each other, and share their memo.

    Parameters
    ----------
    data : bytes
    persistent : (value) -> object
        Makes a value of a persistent reference; raises InertError if it is not one.
    python2 : {'text', 'bytes'}
        What a str of Python 2 becomes: 'text' if it is ASCII and bytes if not, as in ZODB; or
        always bytes.
    """

    def __init__(
        self,
        data: bytes,
        persistent: Callable[[Any], object] | None = None,
        python2: str = "text",
    ) -> None:
        self.data = data
        self.pos = 0  # where the next pickle begins
        self._persistent = persistent
        self._text2 = python2 == "text"
        self._memo: dict[int, Any] = {}
        self._encoded = len(data) + _ENCODED
        self._left = _most()

    # ---- parts ----

    def _str2(self, raw: bytes) -> str | bytes:
        return raw.decode("ascii") if self._text2 and raw.isascii() else raw

    def _line(self, pos: int) -> tuple[bytes, int]:
        """Return a line, and where the next one begins."""
        end = self.data.index(b"\n", pos)
        return self.data[pos:end], end + 1

    def _piece(self, pos: int, width: int) -> tuple[bytes, int]:
        """Return the bytes that follow their length, and where they end."""
        start = pos + width
        size = int.from_bytes(self.data[pos:start], "little")
        stop = start + size
        if stop > len(self.data):
            raise InertError(f"a length of {size} bytes, where there are fewer")
        return self.data[start:stop], stop

    def _number(self, text: bytes) -> int:
        if len(text) > _DIGITS:
            raise InertError(f"a number of {len(text)} digits")
        return int(text)

    def _index(self, index: int) -> int:
        # each object takes a byte, at least
        if not 0 <= index <= len(self.data):
            raise InertError(f"place {index} of the memo, in a pickle of {len(self.data)} bytes")
        return index

    def _load_persistent(self, value: Any) -> Any:
        if self._persistent is None:
            raise InertError("a persistent object in a place where it cannot be")
        return self._persistent(value)

    # ---- calls ----

    def _call(self, function: Any, args: Any) -> Any:
        """Return the value for the result of a call."""
        if type(args) is not tuple:
            raise InertError(f"arguments that are a {type(args).__name__}")
        name = function.name if type(function) is Global else "?"
        first = args[0] if args else None
        if name == "_codecs.encode" and len(args) == 2 and args[1] == "latin1":
            if type(first) is not str:
                raise InertError(f"bytes that are a {type(first).__name__}")
            return self._bytes(first)
        if name in ("__builtin__.bytes", "builtins.bytes") and not args:
            return b""
        if name == "zodbpickle.binary" and len(args) == 1:  # of Python 2
            if type(first) is bytes:
                return first
            raise InertError(f"bytes that are a {type(first).__name__}")
        if name in _RECONSTRUCT and len(args) == 3 and type(first) is Global:
            if first.name == "zodbpickle.binary" and type(args[2]) is bytes:
                return args[2]
            return Object(first.name, args[2:] if args[2] is not None else ())
        if name in _NEW and type(first) is Global:
            return self._call(first, args[1:])
        return Object(name, args)

    def _bytes(self, text: str) -> bytes:
        """Return bytes that a pickle has as text. A pickle may use one text many times."""
        self._encoded -= len(text)
        if self._encoded < 0:
            raise InertError("more bytes than are in it")
        return codecs.latin_1_encode(text)[0]

    @staticmethod
    def _build(obj: Any, state: Any) -> None:
        if type(obj) is not Object:
            raise InertError(f"a state of a {type(obj).__name__}")
        obj.states.append(state)

    @staticmethod
    def _append(obj: Any, items: list[Any]) -> None:
        if type(obj) is list:
            obj.extend(items)
        elif type(obj) is Object:
            obj.items.extend(items)
        else:
            raise InertError(f"items of a {type(obj).__name__}")

    @staticmethod
    def _set(obj: Any, items: list[Any]) -> None:
        if type(obj) not in (Pairs, Object):
            raise InertError(f"keys of a {type(obj).__name__}")
        if len(items) % 2:
            raise InertError("a key without a value")
        obj.pairs.extend(zip(items[0::2], items[1::2], strict=True))

    # ---- a pickle ----

    def load(self) -> Any:
        """Return the value of the next pickle.

        Raises
        ------
        InertError
            It is not a pickle, is truncated, or is over a limit.
        """
        try:
            return self._load()
        except InertError:
            raise
        except (IndexError, KeyError, ValueError, struct.error, UnicodeError, OverflowError) as e:
            raise InertError(f"{type(e).__name__}: {e}") from e

    def _load(self) -> Any:
        data, pos, memo = self.data, self.pos, self._memo
        value: Any
        stack: list[Any] = []
        marks: list[int] = []  # where in the stack
        push, pop = stack.append, stack.pop
        left = self._left

        while True:
            op = data[pos]
            pos += 1
            left -= 1
            if left < 0:
                raise InertError(f"more than {_most()} objects, for which there is no memory")
            # the most frequent ones first
            if op == 0x71:  # BINPUT
                memo[data[pos]] = stack[-1]
                pos += 1
            elif op == 0x68:  # BINGET
                push(memo[data[pos]])
                pos += 1
            elif op == 0x43 or op == 0x42 or op == 0x8E:  # SHORT_BINBYTES, BINBYTES, BINBYTES8
                value, pos = self._piece(pos, _WIDTH[op])
                push(value)
            elif op == 0x58 or op == 0x8C or op == 0x8D:  # BINUNICODE, SHORT_…, BINUNICODE8
                value, pos = self._piece(pos, _WIDTH[op])
                push(value.decode("utf-8", "surrogatepass"))
            elif op == 0x51:  # BINPERSID
                push(self._load_persistent(pop()))
            elif 0x85 <= op <= 0x87:  # TUPLE1, TUPLE2, TUPLE3
                n = op - 0x84
                if len(stack) < n:
                    raise InertError("nothing to make a tuple of")
                value = tuple(stack[-n:])
                del stack[-n:]
                push(value)
            elif op == 0x4B:  # BININT1
                push(data[pos])
                pos += 1
            elif op == 0x28:  # MARK
                marks.append(len(stack))
            elif op == 0x74:  # TUPLE
                push(tuple(_take(stack, marks)))
            elif op == 0x4D:  # BININT2
                push(int.from_bytes(data[pos : pos + 2], "little"))
                pos += 2
            elif op == 0x4A:  # BININT
                push(int.from_bytes(data[pos : pos + 4], "little", signed=True))
                pos += 4
            elif op == 0x94:  # MEMOIZE
                memo[len(memo)] = stack[-1]
            elif op == 0x72:  # LONG_BINPUT
                memo[self._index(int.from_bytes(data[pos : pos + 4], "little"))] = stack[-1]
                pos += 4
            elif op == 0x6A:  # LONG_BINGET
                push(memo[int.from_bytes(data[pos : pos + 4], "little")])
                pos += 4
            elif op == 0x4E:  # NONE
                push(None)
            elif op == 0x7D:  # EMPTY_DICT
                push(Pairs())
            elif op == 0x75:  # SETITEMS
                items = _take(stack, marks)
                self._set(stack[-1], items)
            elif op == 0x73:  # SETITEM
                value, key = pop(), pop()
                self._set(stack[-1], [key, value])
            elif op == 0x63:  # GLOBAL
                module, pos = self._line(pos)
                name, pos = self._line(pos)
                push(Global(f"{_text(module)}.{_text(name)}"))
            elif op == 0x93:  # STACK_GLOBAL
                name, module = pop(), pop()
                if type(name) is not str or type(module) is not str:
                    raise InertError("a name that is not text")
                push(Global(f"{module}.{name}"))
            elif op == 0x5D:  # EMPTY_LIST
                push([])
            elif op == 0x65:  # APPENDS
                items = _take(stack, marks)
                self._append(stack[-1], items)
            elif op == 0x61:  # APPEND
                value = pop()
                self._append(stack[-1], [value])
            elif op == 0x2E:  # STOP
                value = pop()
                if marks or stack:
                    raise InertError("more than one value")
                self.pos, self._left = pos, left
                return value
            elif op == 0x52 or op == 0x81:  # REDUCE, NEWOBJ
                args, function = pop(), pop()
                push(self._call(function, args))
            elif op == 0x62:  # BUILD
                state = pop()
                self._build(stack[-1], state)
            elif op == 0x80:  # PROTO
                if data[pos] > 5:
                    raise InertError(f"protocol {data[pos]}")
                pos += 1
            elif op == 0x95:  # FRAME
                pos += 8
            elif op == 0x29:  # EMPTY_TUPLE
                push(())
            elif op == 0x88 or op == 0x89:  # NEWTRUE, NEWFALSE
                push(op == 0x88)
            elif op == 0x47:  # BINFLOAT
                push(_float64(data, pos)[0])
                pos += 8
            elif op == 0x8A or op == 0x8B:  # LONG1, LONG4
                value, pos = self._piece(pos, _WIDTH[op])
                push(int.from_bytes(value, "little", signed=True))
            elif op == 0x54 or op == 0x55:  # BINSTRING, SHORT_BINSTRING
                value, pos = self._piece(pos, _WIDTH[op])
                push(self._str2(value))
            elif op in _BY_LINE:
                pos = self._load_line(op, pos, stack)
            else:
                pos = self._load_rare(op, pos, stack, marks)

    def _load_rare(self, op: int, pos: int, stack: list[Any], marks: list[int]) -> int:
        """Do what an opcode says that is rare in records; return where the next one is."""
        push, pop = stack.append, stack.pop
        value: Any
        if op == 0x96:  # BYTEARRAY8
            value, pos = self._piece(pos, 8)
            push(Object("builtins.bytearray", (value,)))
        elif op == 0x8F:  # EMPTY_SET
            push(Object("builtins.set"))
        elif op == 0x90:  # ADDITEMS
            items = _take(stack, marks)
            self._append(stack[-1], items)
        elif op == 0x91:  # FROZENSET
            value = Object("builtins.frozenset")
            value.items = _take(stack, marks)
            push(value)
        elif op == 0x92:  # NEWOBJ_EX
            named, args, cls = pop(), pop(), pop()
            value = self._call(cls, args)
            if type(named) is not Pairs:
                raise InertError("arguments without names")
            push(value)
        elif op == 0x30:  # POP
            if marks and marks[-1] == len(stack):
                marks.pop()
            else:
                pop()
        elif op == 0x31:  # POP_MARK
            _take(stack, marks)
        elif op == 0x32:  # DUP
            push(stack[-1])
        elif op == 0x6C:  # LIST
            push(_take(stack, marks))
        elif op == 0x64:  # DICT
            items = _take(stack, marks)
            value = Pairs()
            self._set(value, items)
            push(value)
        elif op == 0x69:  # INST
            module, pos = self._line(pos)
            name, pos = self._line(pos)
            args = tuple(_take(stack, marks))
            push(self._call(Global(f"{_text(module)}.{_text(name)}"), args))
        elif op == 0x6F:  # OBJ
            cls, *rest = _take(stack, marks)
            push(self._call(cls, tuple(rest)))
        elif op in (0x82, 0x83, 0x84):  # EXT1, EXT2, EXT4
            raise InertError("a class by a number, which other programs have given to it")
        elif op in (0x97, 0x98):  # NEXT_BUFFER, READONLY_BUFFER
            raise InertError("a buffer that is not in it")
        else:
            raise InertError(f"an opcode that there is not: {op:#x} at {pos - 1}")
        return pos

    def _load_line(self, op: int, pos: int, stack: list[Any]) -> int:
        """Do what an opcode of protocol 0 says with its line; return where the next one is."""
        push, memo = stack.append, self._memo
        line, pos = self._line(pos)
        if op == 0x49 or op == 0x4C:  # INT, LONG
            if op == 0x49 and line in (b"00", b"01"):
                push(line == b"01")
            else:
                push(self._number(line.removesuffix(b"L") if op == 0x4C else line))
        elif op == 0x46:  # FLOAT
            push(float(line))
        elif op == 0x53:  # STRING
            if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
                raise InertError("a text without quotes")
            push(self._str2(_ESCAPE.sub(_unescaped, line[1:-1])))
        elif op == 0x56:  # UNICODE
            push(line.decode("raw-unicode-escape"))
        elif op == 0x70:  # PUT
            memo[self._index(self._number(line))] = stack[-1]
        elif op == 0x67:  # GET
            push(memo[self._number(line)])
        elif op == 0x50:  # PERSID
            push(self._load_persistent(line))
        return pos


def _take(stack: list[Any], marks: list[int]) -> list[Any]:
    """Pop the values above the last mark off the stack."""
    if not marks:
        raise InertError("no mark")
    at = marks.pop()
    items = stack[at:]
    del stack[at:]
    return items


#: opcodes of protocol 0, before a line: INT, LONG, FLOAT, STRING, UNICODE, PUT, GET, PERSID
_BY_LINE = frozenset(b"ILFSVpgP")

#: opcode -> size of the length that follows [bytes]
_WIDTH = {
    0x42: 4,
    0x43: 1,
    0x54: 4,
    0x55: 1,
    0x58: 4,
    0x8A: 1,
    0x8B: 4,
    0x8C: 1,
    0x8D: 8,
    0x8E: 8,
}

_RECONSTRUCT = ("copyreg._reconstructor", "copy_reg._reconstructor")
_NEW = ("copyreg.__newobj__", "copy_reg.__newobj__")


#: in a str of Python 2, as its repr() has it
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def _unescaped(match: re.Match[bytes]) -> bytes:
    what = match[1]
    return bytes([int(what[1:], 16)]) if len(what) == 3 else _ESCAPED.get(what, what)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
