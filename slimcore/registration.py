"""Make transformers' Auto classes know slimcore's, without importing transformers before its user does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_CONFIGS = "transformers.models.auto.configuration_auto"
_MODELS = "transformers.models.auto.modeling_auto"


def register_with_transformers() -> None:
    """Register now what transformers has imported already, and the rest the moment it is imported."""
    for name, register in _REGISTER.items():
        if name in sys.modules:
            register(sys.modules[name])
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _register(models: ModuleType) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

    from slimcore import modeling_slimcore as slim
    from slimcore.structure import FAMILIES

    for family in FAMILIES:
        config = getattr(slim, slim.PREFIX + CONFIG_MAPPING[family].__name__)
        model = getattr(slim, slim.PREFIX + models.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])
        AutoConfig.register(config.model_type, config, exist_ok=True)
        models.AutoModelForCausalLM.register(config, model, exist_ok=True)


def _import_models(_configs: ModuleType) -> None:
    """A config class cannot be made before the model classes' module is there, which may be importing this one."""
    if _MODELS not in sys.modules:
        import_module(_MODELS)


_REGISTER = {_CONFIGS: _import_models, _MODELS: _register}


class _AfterImport(MetaPathFinder):
    """Finds nothing itself: it lets the two modules be found as ever, and registers once they have run."""

    def __init__(self) -> None:
        self.looking: set[str] = set()

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of one of the two modules, its loader extended by the registration."""
        if fullname not in _REGISTER or fullname in self.looking:
            return None
        self.looking.add(fullname)
        try:
            spec = find_spec(fullname)
        finally:
            self.looking.discard(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _REGISTER[fullname](module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
