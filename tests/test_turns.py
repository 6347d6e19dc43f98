"""How long a cell is warmed up and repeated, with made-up times: real ones would only add noise."""

from collections import Counter
from itertools import chain, repeat
from types import SimpleNamespace

import pytest

from slimcore.bench.grid.cells import Cell
from slimcore.bench.measure.protocol import PAPER, Protocol
from slimcore.bench.suite.lanes import Lane, Lanes, Machine
from slimcore.bench.suite.turns import Turns

CELL = Cell("tiny", "dense", 5, 4, 3, "eager", "fp32", "cpu")


@pytest.fixture
def taken():
    """Runs of a worker by a protocol, whose generates take the given seconds, the last again and again."""
    opened = []

    def take(protocol, *seconds, beside=()):
        asked = Counter()
        lanes = Lanes(None, Machine("cpu"), protocol, {})
        opened.append(lanes)

        def lane(series):
            left = chain(series, repeat(series[-1]))

            def ask(do, _within, **arguments):
                asked[do, arguments.get("sample")] += 1
                return {"seconds": [next(left)], "joules": None, "peaks": {}} if do == "run" else {}

            return Lane(SimpleNamespace(ask=ask), ""), CELL

        runs = Turns(lanes, protocol).take([lane(seconds), *([lane(beside)] if beside else [])], ())
        return SimpleNamespace(own=runs[0], other=runs[-1], asked=asked)

    yield take
    for lanes in opened:
        lanes.end()


def test_warm_up_goes_on_until_three_agree_and_is_capped(taken):
    """2 % apart is agreement; a machine that never settles is measured all the same."""
    protocol = Protocol(seconds=99.0, warmups=(3, 6), repeats=(1, 1))
    assert taken(protocol, 3.0, 2.0, 1.0, 1.01, 1.0).own.warmup_s == (3.0, 2.0, 1.0, 1.01, 1.0)
    assert len(taken(protocol, *[float(n) for n in range(1, 99)]).own.warmup_s) == 6


@pytest.mark.parametrize(("seconds", "count"), [(0.0, 1), (2.0, 2), (5.0, 3), (99.0, 4)])
def test_long_runs_need_fewer_warm_ups(taken, seconds, count):
    """The runs after the first, which may have compiled, have half the time of the repeats."""
    assert len(taken(Protocol(seconds=seconds), 40.0, 2.0).own.warmup_s) == count


def test_the_papers_protocol_samples_and_runs_ten_and_twenty(taken):
    """Tokens are drawn; mean and deviation come of exactly 20 runs, however long or unlike they are."""
    found = taken(PAPER, *[1e3, 1.0, 7.0] * 10)
    assert (len(found.own.warmup_s), len(found.own.latency_s)) == (10, 20)
    assert found.asked == {("open", True): 1, ("run", None): 30}


def test_what_is_expected_of_a_cell_is_what_a_noisy_one_takes():
    """Repeats until the time is used; the published protocol's numbers whatever they take."""
    assert Protocol(seconds=6.0).expected(2.0) == (3, 3)
    assert Protocol(seconds=6.0).expected(10.0) == (2, 3)
    assert Protocol(seconds=6.0).expected(0.4) == (3, 15)
    assert Protocol(seconds=6.0).expected(0.001) == (3, 30)
    assert PAPER.expected(10.0) == (10, 20)
    assert [Protocol().again([1.0] * n) for n in (3, 5, 30)] == [3, 5, 15]


@pytest.mark.parametrize(
    ("seconds", "times", "count"),
    [
        (100.0, [1.0], 5),
        (0.0, [1.0, 2.0, 1.0, 3.0] * 9, 3),
        (7.0, [1.0, 2.0, 1.0, 3.0] * 9, 4),
        (1e9, [1.0, 2.0, 1.0, 3.0] * 9, 12),
    ],
    ids=["tight early", "time used at once", "time used", "at most"],
)
def test_repeats_end_when_tight_or_out_of_time(taken, seconds, times, count):
    """Five at least while there is time, three where a run takes all of it, never more than asked."""
    found = taken(Protocol(seconds=seconds, repeats=(5, 12), warmups=(1, 1)), *times)
    assert len(found.own.latency_s) == count


@pytest.mark.parametrize(
    ("seconds", "own", "other", "count"),
    [
        (1e9, [1.0], [2.0], 5),
        (1e9, [1.0], [2.0, 2.0, 3.0] * 9, 12),
        (1e9, [1.0, 1.0, 2.0] * 9, [1.0, 1.0, 2.0] * 9, 12),
        (12.0, [1.0, 1.0, 2.0] * 9, [2.0], 4),
    ],
    ids=["tight", "one is not", "their ratio alone is", "time used by both"],
)
def test_two_in_turn_are_repeated_alike_until_all_is_tight_or_out_of_time(taken, seconds, own, other, count):
    """Each of the two, and their ratio."""
    found = taken(Protocol(seconds=seconds, repeats=(5, 12), warmups=(1, 1)), *own, beside=other)
    assert [len(runs.latency_s) for runs in (found.own, found.other)] == [count, count]
