"""Each step stays as fast as it was accepted to be."""

import pytest
from example import step


@pytest.mark.parametrize("name", ["first", "second"])
def test_step(timed, name):
    """Timed in this process."""
    timed(lambda: step(name))
