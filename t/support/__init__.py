"""What tests, benchmarks and checks by hand have in common.

Programs of it run as `python t/support NAME ARGUMENTS`; `python t/support` says which there are.
It may use the package that is tested, but nothing of a test.
"""

from pathlib import Path

SUPPORT = Path(__file__).parent
#: of all tests: what a child process has in PYTHONPATH, so that it can import `support`
TESTS = SUPPORT.parent
#: databases that are kept
DATA = TESTS / "data"
#: of the checkout
ROOT = TESTS.parent
