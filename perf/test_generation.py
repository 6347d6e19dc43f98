"""Every cell of the grid generates, and none fails its gate."""


def test_generation(perf_cell, perf_bench):
    """The cell is measured, and its verdict is one that passes."""
    verdict = perf_bench.measure(perf_cell)
    assert verdict.passes, verdict.message
