"""slimcore prunes LLaMA-family language models and measures what the pruning bought.

Four verbs, in this order: `calibration_tokens`, `score`, `select`, `prune_`, or `heal_` in its place. Around them
`load`, `save`, `perplexity`.
Importing it makes transformers' Auto classes know the models it saves. All else is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slimcore.registration import register_at_import

if TYPE_CHECKING:
    from slimcore.calibration import Tokens, calibration_tokens, heldout_tokens
    from slimcore.checkpoint import save
    from slimcore.cost import Footprint, footprint
    from slimcore.errors import SlimcoreError
    from slimcore.healing import heal_
    from slimcore.methods import score, unscored
    from slimcore.models import load
    from slimcore.plan import Plan
    from slimcore.quality import perplexity
    from slimcore.recovery import Recovery, recover
    from slimcore.scores import Scores
    from slimcore.selection import select
    from slimcore.surgery import prune_

__version__ = "0.1.0"

_HOME = {
    "Footprint": "cost",
    "Plan": "plan",
    "Recovery": "recovery",
    "Scores": "scores",
    "SlimcoreError": "errors",
    "Tokens": "calibration",
    "calibration_tokens": "calibration",
    "footprint": "cost",
    "heal_": "healing",
    "heldout_tokens": "calibration",
    "load": "models",
    "perplexity": "quality",
    "prune_": "surgery",
    "recover": "recovery",
    "save": "checkpoint",
    "score": "methods",
    "select": "selection",
    "unscored": "methods",
}

__all__ = [
    "Footprint",
    "Plan",
    "Recovery",
    "Scores",
    "SlimcoreError",
    "Tokens",
    "calibration_tokens",
    "footprint",
    "heal_",
    "heldout_tokens",
    "load",
    "perplexity",
    "prune_",
    "recover",
    "save",
    "score",
    "select",
    "unscored",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'slimcore' has no attribute {name!r}")
    value = getattr(import_module(f"slimcore.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_at_import()
