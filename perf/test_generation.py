"""Every cell of the grid generates, and none fails its gate."""


def test_generation(cell, bench):
    """The cell is measured, and its verdict is one that passes."""
    verdict = bench.measure(cell)
    assert verdict.passes, verdict.message
