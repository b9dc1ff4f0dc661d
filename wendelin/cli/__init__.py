"""The command line, `wendelin`: databases and arrays, looked at, filled, copied and checked.

Each command is an entry point of the group `wendelin.commands` in pyproject.toml. So commands of
packages above this one are found without an import here.

Organization
------------
    program     the group of all commands, and the exit code
    summary     what a command does, in a line, without an import of it
    address     URL#path[slice]
    arguments   other arguments and options of a call
    database    databases, opened for a command, in their present or a past state
    tree        objects in a database, by path; all its arrays
    output      tables, sizes, times, JSON; progress
    files       arrays in files: sources that are read, sinks that are written
    transfer    an array filled from a source, in bounded transactions, resumable
    unfinished  a file that an export has not completed yet
    ls, info, importing, exporting, show, verify, copying      commands
"""
