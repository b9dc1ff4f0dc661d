"""BTrees, and the index of a FileStorage, which is made of them.

A bucket knows the next one, and an index has a bucket of each first six bytes of oids. Both are
read as they are: their public interfaces give one object, or load others.
"""

from __future__ import annotations

from typing import Any

from BTrees.fsBTree import fsBucket
from ZODB.fsIndex import fsIndex

__all__ = ["buckets_of", "first_bucket", "is_bucket", "is_tree", "next_bucket"]

#: class -> private names of its instances
PRIVATE = {
    "BTrees.LOBTree.LOBTree": ("_firstbucket",),
    "BTrees.LOBTree.LOBucket": ("_next",),
    "ZODB.fsIndex.fsIndex": ("_data",),
}


def first_bucket(tree: Any) -> Any:
    """Return the first bucket of a BTree, or None."""
    return getattr(tree, "_firstbucket", None)


def next_bucket(bucket: Any) -> Any:
    """Return the bucket that follows another one, or None."""
    return getattr(bucket, "_next", None)


def is_tree(obj: Any) -> bool:
    """Say whether an object is a tree of BTrees."""
    return hasattr(obj, "_firstbucket")


def is_bucket(obj: Any) -> bool:
    """Say whether an object is a bucket of BTrees."""
    return hasattr(obj, "_next")


def buckets_of(index: fsIndex) -> dict[bytes, fsBucket]:
    """Return what an index consists of: the first six bytes of oids -> the last two -> position."""
    return index._data  # type: ignore[no-any-return]
