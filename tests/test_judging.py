"""Medians, intervals and verdicts: arithmetic, no clock."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimcore.bench.grid.cells import Cell
from slimcore.bench.judge.gate import judge
from slimcore.bench.judge.references import Nights, beside
from slimcore.bench.records.records import Against, Measurement, Pairs, Times
from slimcore.bench.statistics import summarise
from tests import simulation

samples = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30)


@given(samples)
def test_the_interval_holds_the_median_and_lies_within_the_samples(values):
    """Whatever the samples."""
    s = summarise(values)
    assert min(values) <= s.low <= s.centre <= s.high <= max(values)


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    """95 % or more of 2,000 draws; not all of them, or it would be too wide to judge by."""
    rng = random.Random(0)
    hits = 0
    for _ in range(2000):
        s = summarise([rng.lognormvariate(0, 0.3) for _ in range(15)])
        hits += s.low <= 1.0 <= s.high
    assert 0.95 <= hits / 2000 < 0.985


@pytest.mark.parametrize("bad", [[], [0.0], [-1.0], [float("nan")], [1.0, float("inf")]])
def test_samples_that_are_no_times_are_refused(bad):
    """No verdict is ever made from them."""
    with pytest.raises(ValueError, match="positive numbers"):
        summarise(bad)


def timed(latencies, canary=1.0, host=None):
    """Latencies, the canary's level and the host's."""
    return Times(tuple(latencies), (math.log(canary), 0.001), host)


def measured(latencies, *, canary=1.0, host=None, device="cuda", status="ok", again=0, detail=""):
    """A measured cell; `again`: so many fresh processes found the same."""
    times = timed(latencies, canary, host)
    return Measurement(
        Cell("m", "dense", 1, 1, 1, "eager", "fp32", device), status, detail, times, fresh=(times,) * again
    )


def nights(*levels, status="ok", scatter=0.008):
    """Accepted nights of these latencies."""
    return Nights(status, [timed([x * 0.999, x, x * 1.001]) for x in levels], scatter)


QUIET = nights(*(1 + 0.005 * (n % 3 - 1) for n in range(30)))


def steady(x, count=5):
    """Samples about `x`."""
    return [x * (1 + 0.001 * (n % 3 - 1)) for n in range(count)]


@given(st.floats(1.2, 5))
def test_slower_and_faster_are_mirror_images(factor):
    """What is slower one way round is faster the other; throughput's direction cannot be mixed up."""
    assert judge(measured(steady(factor)), QUIET).suspect
    assert judge(measured(steady(factor), again=4), QUIET).verdict == "slower"
    assert judge(measured(steady(1 / factor)), QUIET).verdict == "faster"
    assert judge(measured(steady(1.0)), QUIET).verdict == "same"


def test_a_suspect_is_slower_only_where_fresh_processes_say_so():
    """The first measurement alone never fails a cell; a change that does not matter does not either."""
    slow = measured(steady(1.08))
    assert judge(slow, QUIET).suspect
    assert judge(slow, QUIET).passes
    assert not judge(measured(steady(1.08), again=4), QUIET).passes
    assert judge(replace(slow, fresh=(timed(steady(1.0)),) * 4), QUIET).verdict == "same"
    calm = nights(*(1 + 0.0005 * (n % 3 - 1) for n in range(30)), scatter=0.0005)
    assert judge(measured(steady(1.015), again=4), calm).verdict == "same"


def test_the_canarys_shift_is_taken_off():
    """A machine that is slower by 9 % makes no cell slower; a cell that is not, on that machine, is faster."""
    assert judge(measured(steady(1.09), canary=1.09), QUIET).verdict == "same"
    assert judge(measured(steady(1.0), canary=1.09), QUIET).verdict == "faster"
    assert judge(measured(steady(1.0), canary=0.9), QUIET).suspect


def test_a_canary_that_moved_far_is_believed_less_on_a_cpu():
    """Seen on two shared cores: the canary took 25 % longer, the same code 54 %. That is no verdict on the code."""
    far = measured(steady(1.54), canary=1.25, device="cpu")
    found = judge(far, QUIET)
    assert (found.verdict, found.suspect) == ("inconclusive", False)
    assert judge(replace(far, fresh=(far.times,) * 4), QUIET).verdict == "inconclusive"
    assert judge(measured(steady(1.54), canary=1.25), QUIET).suspect
    assert judge(measured(steady(1.54), device="cpu"), QUIET).suspect


def test_a_gpus_host_that_moved_far_leaves_doubt():
    """Seen on two machines with one kind of GPU: product and copy alike, launching and the same code a half slower."""
    before = Nights("ok", [timed([0.999, 1, 1.001], host=math.log(3e-3))] * 12, 0.008)
    moved = math.log(4.5e-3)
    far = judge(measured(steady(1.5), host=moved), before)
    assert far.verdict == "inconclusive"
    assert "host: it takes 50.0% longer to launch operators" in far.message
    assert judge(measured(steady(1.5), host=moved, again=4), before).verdict == "inconclusive"
    # Beyond what the host explains, and where the host did not move, it is the code.
    assert not judge(measured(steady(4.0), host=moved, again=4), before).passes
    assert not judge(measured(steady(1.08), host=math.log(3.005e-3), again=4), before).passes
    # A night from before launches were read says nothing of them.
    assert judge(measured(steady(1.0), host=moved), QUIET).verdict == "same"


def test_the_canarys_readings_become_two_levels():
    """Product and copy are the device's; launches, which only a GPU has, the host's; an empty reading was none."""
    assert Times.of([], [[1.0, 1.0]]) == Times((), (0.0, 0.0))
    found = Times.of([2.0], [[1.0, math.e**2, math.e], [], [1.0, math.e**2, math.e]])
    assert found == Times((2.0,), (1.0, 0.0), 1.0)
    assert Times.of([], [[], []]) == Times()


def test_a_cell_too_noisy_for_the_wanted_effect_is_inconclusive():
    """By its nights or by tonight's samples; it says what it could have seen; what is asked for can be less."""
    noisy = nights(*(1 + 0.05 * (n % 3 - 1) for n in range(30)), scatter=0.04)
    verdict = judge(measured(steady(1.0)), noisy)
    assert verdict.verdict == "inconclusive"
    assert "could have seen" in verdict.message
    assert judge(measured(steady(1.0)), noisy, detect=0.9).verdict == "same"
    assert judge(measured([0.8, 1.0, 1.25, 0.9, 1.1]), QUIET).verdict == "inconclusive"


def test_one_night_is_enough_to_judge_by():
    """What is expected of the device stands in for the nights that are not there yet."""
    one = nights(1.0)
    assert judge(measured(steady(1.0)), one).verdict in ("same", "inconclusive")
    assert judge(measured(steady(1.3), again=4), one).verdict == "slower"


def test_two_versions_are_judged_by_their_pairs():
    """A machine that doubles its time in the middle moves neither; a version that is slower is."""
    drift = (1, 1, 2, 2, 1.5, 1.2)

    def judged(factor, again=0):
        pairs = Pairs(tuple(factor * x for x in drift), drift)
        cell = in_turn("ok", Against("ok", pairs=pairs, fresh=(pairs,) * again, pooled=0.005))
        return judge(cell, beside(cell))

    assert judged(1.0).verdict == "same"
    assert judged(1.1).suspect
    verdict = judged(1.1, again=4)
    assert (verdict.verdict, round(verdict.change, 3)) == ("slower", 0.1)
    assert "24 pairs in turn in 4 fresh pairs of processes" in verdict.message


def in_turn(status, against):
    """A cell measured in turn with another version."""
    return replace(measured([1.0] if status == "ok" else [], status=status, detail="why"), against=against)


@pytest.mark.parametrize(
    ("now", "other", "verdict", "passes"),
    [
        ("oom", "ok", "status changed", False),
        ("error", "ok", "status changed", False),
        ("ok", "oom", "status changed", True),
        ("oom", "oom", "same", True),
        ("error", "error", "same", False),
    ],
)
def test_a_version_that_alone_ran_out_of_memory_is_told_and_no_pair_is_needed(now, other, verdict, passes):
    """This one fails, the other one is good news, both are the same; where both failed nothing was compared."""
    cell = in_turn(now, Against(other))
    found = judge(cell, beside(cell))
    assert (found.verdict, found.passes) == (verdict, passes)
    assert "why" in found.message


def test_without_another_measurement_all_cells_together_rarely_err():
    """Comparing two saved runs: z of 4.1 for 500 cells, 2.6 for two."""
    suspect = measured(steady(1.03))
    assert judge(suspect, QUIET, alone=2).verdict == "slower"
    assert judge(suspect, QUIET, alone=500).verdict != "slower"


@pytest.mark.parametrize(
    ("now", "accepted", "verdict", "passes"),
    [
        ("ok", None, "no baseline", True),
        ("oom", None, "no baseline", True),
        ("error", None, "no baseline", False),
        ("oom", "ok", "status changed", False),
        ("error", "ok", "status changed", False),
        ("ok", "oom", "status changed", True),
        ("oom", "oom", "same", True),
    ],
)
def test_a_changed_status_is_told_and_fails_where_something_is_lost(now, accepted, verdict, passes):
    """ok to oom is a failure with its own words; oom to ok is good news."""
    old = None if accepted is None else nights(1.0, status=accepted)
    judgement = judge(measured([1.0], status=now, detail="why"), old)
    assert (judgement.verdict, judgement.passes) == (verdict, passes)
    if verdict == "status changed":
        assert f"{accepted} -> {now}\n  why" in judgement.message


def test_a_verdict_says_old_new_ratio_and_z():
    """Enough to act on without opening a file."""
    message = judge(measured(steady(1.5), again=4), QUIET).message
    assert "slower, 50.0% longer (" in message
    assert ", z " in message
    assert "median latency: 1 s over 30 accepted nights -> 1.5 s in 4 fresh processes" in message


def test_the_gate_keeps_its_promise():
    """At medium noise: hardly a false alarm, 5 % and 10 % caught; at high noise cells say they cannot be judged."""
    quiet, _ = simulation.run("medium", 0.0, 60)
    assert quiet["slimcore"][0] <= 0.02
    assert quiet["mean over baseline by 5 %"][0] > 0.5
    five, _ = simulation.run("medium", 0.05, 4, seed=1)
    assert five["slimcore"][1] >= 0.95
    assert five["median over baseline by 5 %"][1] < 0.6
    ten, _ = simulation.run("medium", 0.10, 4, seed=2)
    assert ten["slimcore"][1] >= 0.99
    _, verdicts = simulation.run("high", 0.0, 4)
    assert verdicts["inconclusive"] > 0.95
