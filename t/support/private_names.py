"""Finds private names of other packages in the sources of wendelin.core.

A name is private if it begins with an underscore; what begins with _p_ and _v_ is persistent's
public interface, and so are _replace() and its like of a named tuple.
"""

import ast
import builtins
import importlib
import inspect
import pkgutil
import re
import sys
from functools import cache

PRIVATE = re.compile(r"_(?!p_|v_)[A-Za-z]\w*")
PUBLIC = {"_asdict", "_fields", "_make", "_replace"}
PACKAGE = "wendelin"
ADAPTERS = "wendelin.lib.adapters"


def is_private(name):
    """Say whether a name is private."""
    return PRIVATE.fullmatch(name) is not None and name not in PUBLIC


def modules_under(name):
    """Return a package and all modules under it that can be imported."""
    package = importlib.import_module(name)
    found = [package]
    for info in pkgutil.walk_packages(package.__path__, f"{name}.", onerror=lambda _: None):
        try:
            found.append(importlib.import_module(info.name))
        except ImportError:  # of an extra that is not installed
            continue
    return found


@cache
def tree_of(module):
    """Return the syntax tree of a module."""
    return ast.parse(inspect.getsource(module))


def _is_own(node):
    """Say whether a node is the object, or class, that a method belongs to."""
    called = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "super"
    return called or (isinstance(node, ast.Name) and node.id in ("self", "cls"))


def defined_in(tree):
    """Return the names that a module, its functions and classes define."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if _is_own(node.value):
                names.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr":
            names.update(a.value for a in node.args[1:2] if isinstance(a, ast.Constant))
    return names


def used_in(tree, ours=(), adapted=()):
    """Yield (line, name) of private names that are not the module's own.

    Parameters
    ----------
    tree : ast.Module
    ours : set of str
        Names that other modules of the package define.
    adapted : set of str
        Names that the adapters use.
    """
    here = defined_in(tree)
    theirs = set(ours) - set(adapted)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if not _is_own(node.value) and node.attr not in here | theirs:
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            module = node.module or ""
            if module.split(".")[0] not in (PACKAGE, "__future__"):
                names = [*module.split("."), *(alias.name for alias in node.names)]
                yield from ((node.lineno, name) for name in names if is_private(name))
        elif isinstance(node, ast.Import):
            names = [name for alias in node.names for name in alias.name.split(".")]
            yield from ((node.lineno, name) for name in names if is_private(name))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value  # as of getattr()
            yield from [(node.lineno, name)] if name in set(adapted) - here else []


@cache
def _of_class(cls):
    """Return the private names of a class of another package: those that its code uses of self."""
    names = {name for name in vars(cls) if is_private(name)}
    try:
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return names
    used = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return names | {n.attr for n in used if _is_own(n.value) and is_private(n.attr)}


def _is_foreign(cls):
    module = cls.__module__.split(".")[0]
    return module not in (PACKAGE, builtins.__name__, "abc", "typing", "_io", "enum")


def inherited_by(module):
    """Yield (line, name) of inherited private names that classes of a module use, or replace.

    Only names of base classes of other packages count.
    """
    for node in tree_of(module).body:
        cls = getattr(module, node.name, None) if isinstance(node, ast.ClassDef) else None
        if not isinstance(cls, type):
            continue
        foreign = [base for base in cls.__mro__ if _is_foreign(base)]
        names = set().union(*map(_of_class, foreign))
        for part in ast.walk(node):
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and part.name in names:
                yield part.lineno, part.name
            elif isinstance(part, ast.Attribute) and _is_own(part.value) and part.attr in names:
                yield part.lineno, part.attr


def exists(where, name):
    """Say whether a class, or a module, has a private name; `where` is its dotted name."""
    module, _, cls = where.rpartition(".")
    # a class first: ZODB.FileStorage.FileStorage is a module, too
    owner = getattr(importlib.import_module(module), cls, None) if module else None
    if not isinstance(owner, type):
        owner = importlib.import_module(where)
    if hasattr(owner, name):
        return True
    if not isinstance(owner, type):
        return f"{where}.{name}" in sys.modules
    signature = inspect.signature(owner.__init__).parameters
    return name in signature or any(name in _assigned(base) for base in owner.__mro__)


@cache
def _assigned(cls):
    """Return the names of all attributes that methods of a class assign."""
    try:
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls)))
    except (OSError, TypeError):
        return set()
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in found if isinstance(node.ctx, ast.Store)}
