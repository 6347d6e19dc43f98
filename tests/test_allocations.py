"""How a budget is shared out: over layers, over attention and MLP, and scores of any unit in one list."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import slimcore
from slimcore.methods import METHODS
from slimcore.scores import Means, Scores, Widths
from slimcore.selection import select
from tests.helpers import tiny
from tests.test_selection import SIX, attempt, counts, scored, shape


@given(scored(compensated=False), st.floats(0.01, 0.99))
def test_al_am_is_one_list_over_layers_and_modules(scores, ratio):
    """FLAP's own: but for the last of its kind in a layer, nothing kept scores lower than anything removed."""
    plan = attempt(scores, ratio=ratio, allocation="AL-AM")
    kept, gone = [], []
    for i, widths in enumerate(scores.widths):
        inside = plan.inside(i)
        for stay, values in ((inside.kv_groups, widths.kv_groups), (inside.channels, widths.channels)):
            kept += [values[j] for j in stay if len(stay) > 1]
            gone += [v for j, v in enumerate(values) if j not in stay]
    assert not gone or not kept or max(gone) <= min(kept)


@given(st.integers(2, 6), st.integers(8, 60), st.integers(2, 5), st.floats(0.05, 0.8))
def test_uniform_layers_differ_by_one_structure_at_most(groups, channels, layers, ratio):
    """UL-UM takes the same share of every layer, whatever the scores, as nearly as whole structures allow."""
    shapes = (shape(groups, channels),) * layers
    widths = tuple(Widths((float(i),) * groups, (-float(i),) * channels) for i in range(layers))
    scores = Scores("wanda-sp", shapes, sum(s.parameters for s in shapes), widths=widths, protect=(0, 0))
    found = counts(attempt(scores, ratio=ratio))
    for kind in range(2):
        assert max(c[kind] for c in found) - min(c[kind] for c in found) <= 1


def test_the_manual_share_of_attention_is_kept_to():
    """AL-MM with attention_ratio: that share of KV groups goes, and channels make up the rest."""
    scores = replace(SIX, protect=(0, 0))
    plan = select(scores, ratio=0.3, allocation="AL-MM", attention_ratio=0.5)
    groups, channels = (sum(c[k] for c in counts(plan)) for k in range(2))
    assert groups == 12
    assert plan.ratio == pytest.approx(0.3, abs=0.01)
    none = counts(select(scores, ratio=0.3, allocation="UL-MM", attention_ratio=0.0))
    assert {g for g, _ in none} == {4}
    assert sum(c for _, c in none) < channels


@st.composite
def of_magnitudes(draw):
    """Scores that are not standardised, all different, on layers that have more than one of each."""
    layers = draw(st.lists(st.tuples(st.integers(2, 6), st.integers(8, 60)), min_size=2, max_size=5))
    values = iter(draw(st.permutations(range(1, 1 + sum(map(sum, layers))))))
    widths = tuple(Widths(tuple(float(next(values)) for _ in range(g)), tuple(float(next(values)) for _ in range(c)))
                   for g, c in layers)  # fmt: skip
    shapes = tuple(shape(g, c) for g, c in layers)
    return Scores("magnitude", shapes, sum(s.parameters for s in shapes), widths=widths, protect=(0, 0))


@given(of_magnitudes(), st.floats(0.1, 0.6), st.sampled_from(["AL-AM", "AL-MM"]), st.data())
def test_scores_of_different_units_share_a_list(scores, ratio, allocation, data):
    """Multiplying all scores of one kind in one layer by a constant changes nothing."""
    layer, kind = (
        data.draw(st.integers(0, len(scores.shapes) - 1)),
        data.draw(st.sampled_from(["kv_groups", "channels"])),
    )
    factor = 2.0 ** data.draw(st.integers(-60, 60))
    one = scores.widths[layer]
    changed = replace(one, **{kind: tuple(factor * v for v in getattr(one, kind))})
    other = replace(scores, widths=(*scores.widths[:layer], changed, *scores.widths[layer + 1 :]))
    assert (
        attempt(scores, ratio=ratio, allocation=allocation).width
        == attempt(other, ratio=ratio, allocation=allocation).width
    )


def test_attention_a_thousand_times_larger_loses_the_same_share():
    """AL-AM of magnitude: without standardising, channels alone would go."""
    shares = []
    for factor in (1.0, 1000.0):
        model = tiny(layers=4, heads=8, kv_heads=8)
        for layer in model.model.layers:
            for weight in layer.self_attn.parameters():
                weight.data *= factor
        scores = slimcore.score(model, method="magnitude", protect=(0, 0))
        plan = slimcore.select(scores, ratio=0.25, allocation="AL-AM")
        shares.append([1 - sum(c[k] for c in counts(plan)) / total for k, total in enumerate((32, 160))])
        raw = counts(slimcore.select(replace(scores, standardised=True), ratio=0.25, allocation="AL-AM"))
    assert shares[0] == pytest.approx(shares[1], abs=0.04)
    assert min(shares[1]) > 0.1
    assert sum(c[0] for c in raw) == 32


def test_scores_that_are_all_equal_or_huge_share_a_list_too():
    """No division by zero, no overflow."""
    widths = (Widths((0.0,) * 4, (1e308,) * 100), Widths((1e308, -1e308, 5e-324, 0.0), (7.0,) * 100)) * 3
    plan = select(replace(SIX, widths=widths, protect=(0, 0)), ratio=0.3, allocation="AL-AM")
    assert plan.ratio == pytest.approx(0.3, abs=0.01)


def test_flap_shares_out_as_before():
    """Its scores are standardised by the method: the counts of 0.1.0, in one list and in two."""

    def values(count, seed):
        return tuple(((i * 2654435761 + seed * 40503) % 1000) / 250 - 2 for i in range(count))

    scores = Scores(
        "flap", (shape(4, 100),) * 6, 10**6,
        widths=tuple(Widths(values(4, i), values(100, i + 10)) for i in range(6)),
        means=tuple(Means(values(128, i), values(100, i)) for i in range(6)), protect=(0, 0), standardised=True,
    )  # fmt: skip
    for allocation, ratio, expected in (
        ("AL-AM", 0.1, [(3, 98), (3, 98), (3, 97), (4, 98), (3, 97), (4, 98)]),
        ("AL-AM", 0.3, [(3, 74), (2, 74), (3, 73), (2, 73), (3, 72), (3, 73)]),
        ("AL-AM", 0.5, [(2, 50), (2, 50), (2, 49), (2, 50), (2, 49), (2, 50)]),
        ("AL-MM", 0.3, [(3, 70), (2, 69), (3, 69), (3, 69), (3, 70), (3, 70)]),
        ("UL-UM", 0.3, [(3, 62), (3, 62), (3, 63), (3, 63), (3, 63), (3, 63)]),
    ):
        plan = select(scores, ratio=ratio, allocation=allocation)
        assert counts(plan) == expected
        for i, width in plan.width.items():
            assert width.down_means == tuple(m for j, m in enumerate(values(100, i)) if j not in width.channels)
    assert {m.name for m in METHODS.values() if m.standardised} == {"flap"}
