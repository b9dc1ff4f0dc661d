"""Modules that tests, benchmarks and checks by hand have in common.

Its programs run as `python t/support NAME ARGUMENTS`; `python t/support` lists them. It may import
the package that is tested, but no test.
"""

from pathlib import Path

SUPPORT = Path(__file__).parent
#: folder of all tests; a child process has it in PYTHONPATH, to import `support`
TESTS = SUPPORT.parent
#: folder of databases that are kept
DATA = TESTS / "data"
#: folder of the checkout
ROOT = TESTS.parent
