# Nothing for Python in it.
