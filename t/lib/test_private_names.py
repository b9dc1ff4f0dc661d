"""Private names of dependencies: those that are used are there, and only adapters use them."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest
from support import ROOT
from support.private_names import (
    ADAPTERS,
    defined_in,
    exists,
    inherited_by,
    is_private,
    modules_under,
    tree_of,
    used_in,
)

MODULES = modules_under("wendelin")
ADAPTING = {m.__name__: m for m in MODULES if m.__name__.startswith(f"{ADAPTERS}.")}

#: other modules that adapt a dependency, or have such names: module -> names
IMPLEMENTS = {
    "wendelin.sparse.files": {"_index"},  # a name in AnnData's files
    "wendelin.zarr.store": {
        "_check_writable",
        "_get_many",
        "_is_open",
        "_open",
        "_set_many",
    },  # zarr.abc.store.Store
}


def tables(module):
    return [vars(module).get(name, {}) for name in ("PRIVATE", "UNDOCUMENTED")]


NAMES = [
    pytest.param(where, name, id=f"{where}.{name}")
    for module in ADAPTING.values()
    for table in tables(module)
    for where, names in table.items()
    for name in names
]


def names_of(module):
    """Return the private names that an adapter says it uses."""
    listed = {name for table in tables(module) for names in table.values() for name in names}
    parts = {part for where in tables(module)[0] for part in where.split(".")}
    return {name for name in listed | parts if is_private(name)}


ADAPTED = set().union(*map(names_of, ADAPTING.values()))


SOURCES = [m for m in MODULES if (m.__file__ or "").endswith(".py")]
OURS = set().union(*(defined_in(tree_of(m)) for m in SOURCES if m.__name__ not in ADAPTING))


def test_there_are_names():
    assert len(ADAPTING) >= 7
    assert len(NAMES) > 80
    assert len(SOURCES) > 60


@pytest.mark.parametrize(("where", "name"), NAMES)
def test_it_is_there(where, name):
    assert exists(where, name), (
        f"{where}.{name}, which {ADAPTERS} uses, is not in what is installed: adapt it, or bound "
        f"the version in pyproject.toml"
    )


@pytest.mark.parametrize("module", ADAPTING.values(), ids=ADAPTING)
def test_an_adapter_lists_what_it_uses(module):
    used = {name for _, name in used_in(tree_of(module))}
    used |= {name for _, name in inherited_by(module)}
    assert used <= names_of(module), sorted(used - names_of(module))


def test_each_private_name_is_of_one_adapter():
    places = [where for m in ADAPTING.values() for t in tables(m)[:1] for where in t]
    assert len(places) == len(set(places))


def test_nothing_but_adapters_uses_a_private_name():
    found = []
    for module in SOURCES:
        if module.__name__ in ADAPTING:
            continue
        allowed = IMPLEMENTS.get(module.__name__, set())
        used = [*used_in(tree_of(module), OURS, ADAPTED), *inherited_by(module)]
        path = module.__name__.replace(".", "/")
        found += [f"{path}.py:{line}: {name}" for line, name in used if name not in allowed]
    assert not found, f"private names of other packages, which {ADAPTERS} is to adapt: {found}"


@cache
def defined_in_cython():
    """Return the names that Cython modules define."""
    sources = [p.read_text() for p in Path(ROOT).glob("bigfile/**/*.p[xy][xd]")]
    return set(re.findall(r"\b(_[a-z]\w*)\b(?=\s*[=(:])|(?<=class )_\w+", "\n".join(sources)))


@pytest.mark.parametrize(
    "path", sorted(Path(ROOT).glob("bigfile/**/*.p[xy][xd]")), ids=lambda path: path.name
)
def test_no_cython_module_uses_a_private_name(path):
    text = re.sub(r'"""(.|\n)*?"""|#.*', "", path.read_text())
    used = [
        (owner, name)
        for owner, name in re.findall(r"\b(\w+)\.(_\w+)", text)
        if is_private(name) and owner not in ("self", "cls") and name not in defined_in_cython()
    ]
    imported = re.findall(r"^\s*(?:from|import)\s+\S*\b(_\w+)", text, re.M)
    # macros of C, which its standard fixes
    assert not used + [n for n in imported if is_private(n) and not n.isupper()]


def test_what_the_check_finds():
    source = """
from transaction._transaction import Status
import zodbpickle._compat
def of(conn, txn):
    conn._cache.clear()
    getattr(conn, "_cache")
    txn._mine = 1
    txn._resources
    conn._p_jar
    conn._replace(x=1)
class Mine:
    _own = 1
    def method(self, other):
        self._cache = other._own
"""
    found = [name for _, name in used_in(ast.parse(source), {"_ours"}, {"_cache"})]
    assert sorted(found) == sorted(["_transaction", "_compat", "_mine", "_resources"])
    there = "def of(conn):\n    getattr(conn, '_cache')\n    conn._cache\n    conn._ours\n"
    assert [n for _, n in used_in(ast.parse(there), {"_ours", "_cache"}, {"_cache"})] == [
        "_cache",
        "_cache",
    ]


def test_a_name_that_is_not_there_is_told_by_its_name():
    with pytest.raises(AssertionError, match=r"ZODB\.DB\.DB\._not_there"):
        test_it_is_there("ZODB.DB.DB", "_not_there")


def test_what_a_subclass_uses_is_found():
    module = importlib.import_module(f"{ADAPTERS}.zeo")
    assert "_io_call_after_closure" in {name for _, name in inherited_by(module)}
