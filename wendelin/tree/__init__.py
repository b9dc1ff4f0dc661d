"""A tree of arrays in a database: groups and paths, attributes, and past states.

moments      a moment of a database: a tid, a time, "3 days ago", a tag
containers   mappings of ZODB, and what groups keep in them besides
tags         names for moments
group        Group: a container, for programs
filling      data of a program, put into an array
opening      open(): the root group of a database
shown        groups as text and HTML
history      transactions of a database, and what they changed
retry        transact(): a function, again after a conflict

The database has only objects of ZODB: BTrees, mappings, ZBigArrays. No class of this package is
stored.
"""
