"""Make transformers' Auto classes know slimcore's at `import slimcore`, and change nothing else in transformers.

Configs are registered at once. A model class is made, and registered, with the first config of its kind: that imports
the family's modules, which not everybody needs.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from types import FrameType

# Run by name, not used in a program. They start without torch, and load models through slimcore, which registers then.
TOOLS = ("slimcore.__main__", "slimcore.cli", "slimcore.bench")


def register() -> None:
    """Make AutoConfig know slimcore's config classes. Raises ImportError where transformers, or torch, is not there."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

    from slimcore import modeling_slimcore as slim
    from slimcore.structure import FAMILIES

    for family in FAMILIES:
        config = getattr(slim, slim.PREFIX + CONFIG_MAPPING[family].__name__)
        AutoConfig.register(config.model_type, config, exist_ok=True)


def register_at_import() -> None:
    """The same when slimcore is imported, unless to run a tool, or where transformers cannot be imported."""
    if _for_a_tool():
        return
    with suppress(Exception):  # a broken transformers raises anything, and raises it again where it is needed
        register()


def _for_a_tool() -> bool:
    """Whether Python is importing this package on its way to one of TOOLS.

    A package is imported before what is inside it. What was asked for stands in the calls that are waiting for it, of
    the import system and of `python -m`. Where it is not found there, the answer is no, which is right and slower.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") in ("importlib._bootstrap", "_frozen_importlib", "runpy"):
            wanted = str(frame.f_locals.get("name", frame.f_locals.get("mod_name")))
            if any(f"{wanted}.".startswith(f"{tool}.") for tool in TOOLS):
                return True
        frame = frame.f_back
    return False
