"""Medians, intervals and verdicts: arithmetic, no clock."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimcore.bench.gate import judge
from slimcore.bench.statistics import summarise

samples = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30)


def cell(*latency, status="ok", **more):
    """A record of results, as far as the gate reads it."""
    return {"id": "m/dense/i1-o1/m1/eager-fp32", "device": "cuda", "status": status, "latency_s": list(latency), **more}


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


@given(samples, st.floats(1.2, 5))
def test_slower_and_faster_are_mirror_images(values, factor):
    """What is slower one way round is faster the other; throughput's direction cannot be mixed up."""
    values = [1 + v % 0.01 for v in values]
    slow, fast = cell(*(v * factor for v in values)), cell(*values)
    assert judge(slow, fast).verdict == "slower"
    assert judge(fast, slow).verdict == "faster"
    assert judge(fast, fast).verdict == "same"


def test_overlapping_intervals_are_the_same_however_far_the_medians():
    """The first rule: over 10 % on a CUDA device, and disjoint."""
    assert judge(cell(1.0, 1.5, 2.0), cell(1.0, 1.2, 1.6)).verdict == "same"
    assert judge(cell(1.08), cell(1.0)).verdict == "same"
    assert judge(cell(1.12), cell(1.0)).verdict == "slower"


def test_cells_of_a_cpu_are_given_more_room():
    """Its unchanged code wanders further."""
    assert judge(cell(1.28, device="cpu"), cell(1.0)).verdict == "same"
    assert judge(cell(1.32, device="cpu"), cell(1.0)).verdict == "slower"


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
    old = None if accepted is None else cell(1.0, status=accepted)
    judgement = judge(cell(1.0, status=now, detail="why"), old)
    assert (judgement.verdict, judgement.passes) == (verdict, passes)
    if verdict == "status changed":
        assert f"{accepted} -> {now}\nwhy" in judgement.message


def test_a_verdict_says_old_new_and_ratio():
    """Enough to act on without opening a file."""
    message = judge(cell(1.5, 1.5, 1.5), cell(1.0, 1.0, 1.0)).message
    assert "slower, 1 s -> 1.5 s (x1.500, between x1.500 and x1.500)" in message
