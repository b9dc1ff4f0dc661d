"""How many examples tests of properties try.

A run for a person at work tries few. WENDELIN_CORE_TEST_EXAMPLES, a factor, says how many times as
many another run tries.
"""

import os

_FACTOR = int(os.environ.get("WENDELIN_CORE_TEST_EXAMPLES", "1"))


def examples(few):
    """Return how many examples to try, where a run for a person at work tries `few`."""
    return few * _FACTOR
