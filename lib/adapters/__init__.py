"""Private names of dependencies: each module here adapts one dependency, and offers public names.

No other module of the package uses a private name of a dependency. PRIVATE of each module lists
the names that it uses, by where they are; t/test_private_names.py looks for every one of them in
what is installed, so that a release that drops one is told by its name.

The modules know nothing of blocks, pages or arrays. docs/development.md says what we would want of
the dependencies instead.
"""
