"""The command line, `wendelin`: databases and arrays, looked at, filled, copied and checked.

Each command is an entry point of the group `wendelin.commands` in pyproject.toml. So commands of
packages above this one are found without an import here.

Organization
------------
The program and what all commands use:

    program             the group of all commands, and the exit code
    summary             what a command does, in a line, for --help
    arguments, address  arguments and options; URL#path[slice]
    globs, completion   paths with * and ?; paths for the shell
    errors, output      errors for the user; tables, sizes, times, JSON, progress

A database, read as data: nothing that it names is imported or called.

    database            databases, opened for a command, in their present or a past state
    stored              objects, by their records; storedzarr, storedragged, matrices, attributes
    tree                objects by path; all arrays
    arrays, slices      arrays, and slices of them, as sources
    zarrread            arrays of a ZarrGroup, by zarr
    mounted             arrays as files, for a mount

Something put into a database, in bounded transactions, resumable:

    transfer            an array; building: an object of many values; whole: all of a file
    committing          after which steps they commit, or all at once
    copyobjects         arrays and groups of another database
    changing            containers, as objects of ZODB

Something put into files:

    files               kinds of files: sources, sinks, and what is in a file
    unfinished          a file that an export has not completed yet
    wholeexport         a group; zarrgroups, raggeds, plainfiles: other objects of many arrays
    exporttargets       which files several arrays go to
    listing             what an import would do

Each other module is a command: ls, info, show (cat, head), mount, importing (import), exporting
(export), copying (copy, cp), append, attrs, mkdir, mv, rm, verify, log, undo, tag, pack, trim, du,
stats.
"""
