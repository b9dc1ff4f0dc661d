"""A tree of arrays: groups, in a database, by path; attributes; and moments of it in time.

moments      what stands for a moment of a database: a tid, a time, "3 days ago", a tag
containers   objects of ZODB that have names, and what groups keep in them besides
tags         names for moments
group        Group: a container, as programs see it
opening      open(): the root group of a database
shown        groups as text and HTML
history      transactions of a database, and what they changed
retry        transact(): a function, again after a conflict

What is in the database are objects of ZODB: BTrees, mappings, ZBigArrays. No class of this package
is stored.
"""
