"""So does generation."""


def test_generation(perf_cell, perf_bench):
    """Of each cell of grids.toml."""
    verdict = perf_bench.measure(perf_cell)
    assert verdict.passes, verdict.message
