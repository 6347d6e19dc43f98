"""Every cell of the grid generates, and none fails its gate."""


def test_generation(cell, bench):
    """The cell is measured, and its verdict against the accepted baseline is one that passes."""
    verdict = bench.judge(bench.measure(cell))
    assert verdict.passes, verdict.message
