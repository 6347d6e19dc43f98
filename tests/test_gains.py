"""How many times faster than dense, in turn with it or not: arithmetic, no clock."""

from dataclasses import replace

import pytest

from slimcore.bench.grid.cells import Cell
from slimcore.bench.judge.gains import times
from slimcore.bench.records.records import Measurement, Pairs, Times

CELL = Cell("m", "depth-ppl:9L", 12, 128, 8, "eager", "fp16", "cuda")
DENSE = Measurement(replace(CELL, method="dense"), "ok", times=Times((3.0, 3.1, 2.9)))


def ours(pairs=None, status="ok"):
    """The cut model's cell."""
    return Measurement(CELL, status, times=Times((1.0, 1.1, 0.9)) if status == "ok" else Times(), dense=pairs)


def test_a_gain_in_turn_is_of_the_pairs_and_not_of_the_two_cells():
    """The machine doubles its time half way: the ratio of each pair stays, that of the medians means nothing."""
    drift = [1, 1, 1, 1.01, 2, 2, 2, 2.02]
    time = times([DENSE, ours(Pairs(tuple(drift), tuple(1.5 * x for x in drift)))])[CELL.id]
    assert time.paired
    assert time.gain.ratio == pytest.approx(1.5)
    assert 1.49 < time.gain.low <= time.gain.high < 1.51


def test_few_pairs_show_their_whole_range():
    """An interval from the scatter of five would promise too much."""
    gain = times([ours(Pairs((1.0, 1.0, 1.0), (1.1, 1.5, 2.0)))])[CELL.id].gain
    assert (gain.low, gain.ratio, gain.high) == pytest.approx((1.1, 1.5, 2.0), rel=0.05)
    assert gain.low == pytest.approx(1.1)
    assert gain.high == pytest.approx(2.0)


def test_a_gain_without_pairs_is_of_two_measurements_and_says_so():
    """Its interval is that of both together; without dense there is none."""
    time = times([DENSE, ours()])[CELL.id]
    assert not time.paired
    assert (time.gain.ratio, time.gain.low, time.gain.high) == pytest.approx((3.0, 2.9 / 1.1, 3.1 / 0.9))
    assert times([ours()])[CELL.id].gain is None
    assert times([DENSE, ours(status="oom")]).keys() == {DENSE.id}
    assert times([DENSE])[DENSE.id].gain is None
