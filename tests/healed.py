"""What tests of healing share: windows of two kinds, plans drawn by hand, and healing that is always kept."""

from unittest.mock import patch

import slimcore
from slimcore import healing
from slimcore.calibration import Tokens
from slimcore.trial import Verdict
from tests.helpers import ids

TOKENS = Tokens(ids(windows=16, length=16, seed=1), kinds=("a",) * 8 + ("b",) * 8)
FITTED = [*range(6), *range(8, 14)]  # two of each kind are held out
HELD = [6, 7, 14, 15]


def plan_of(model, keep, width=None):
    """A plan that keeps these layers."""
    shapes = slimcore.unscored(model, method="flap").shapes
    return slimcore.Plan("drawn", shapes, sum(p.numel() for p in model.parameters()), tuple(keep), width or {})


def heal(model, plan, tokens=TOKENS, **options):
    """heal_, where what it changes is kept: weights drawn at random know nothing of the tokens."""
    kept = Verdict(1.0, {"a": 2.0, "b": 30.0}, {"a": 1.0, "b": 20.0})
    with patch.object(healing, "judge", return_value=kept):
        return slimcore.heal_(model, plan, tokens, **options)


def changes(plan):
    """The record of what was changed."""
    return plan.steps[-1].healed
