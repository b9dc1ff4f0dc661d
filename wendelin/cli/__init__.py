"""The command line, `wendelin`: databases and arrays, looked at, filled, copied and checked.

Each command is an entry point of the group `wendelin.commands` in pyproject.toml; so commands of
rooms above this one are found without being imported here.

Organization
------------
    program     the commands together, and what a failure is for who called
    address     URL#path[slice]
    arguments   what other texts of a call mean
    database    databases, opened for a command, of now or of a moment
    tree        objects in a database, by path; all arrays of it
    output      tables, sizes, times, JSON; progress
    files       arrays in files: sources that are read, sinks that are written
    transfer    an array filled from a source, in bounded transactions, resumable
    part        a file that is not complete yet
    ls, info, importing, exporting, show, verify, copying      commands
"""
