"""How layers are scored. A new method is one file with a `score` function, and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from slimcore.errors import TextError, UnknownNameError
from slimcore.plan import Scores

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from slimcore.calibration import Tokens
    from slimcore.structure import Decoder


@dataclass(frozen=True)
class Method:
    """A way to score layers, by the name users type."""

    name: str
    label: str  # in figures
    needs_tokens: bool
    summary: str

    @property
    def function(self) -> Callable[[Decoder, Tensor | None, int], list[float]]:
        """`score(view, ids, batch_size)` of the method's file: one value a layer."""
        module = import_module(f"{__name__}.{self.name.replace('-', '_')}")
        return cast("Callable[[Decoder, Tensor | None, int], list[float]]", module.score)


METHODS = {
    method.name: method
    for method in (
        Method("depth-ppl", "Ours", True, "perplexity of the model without the layer (Shortened LLaMA)"),
        Method("depth-taylor", "Taylor+", True, "|weight x gradient| summed over the layer (Shortened LLaMA)"),
        Method("depth-magnitude", "Magnitude+", False, "|weight| summed over the layer (Shortened LLaMA)"),
    )
}


def method_named(name: str) -> Method:
    """The method users call `name`. Raises UnknownNameError with the nearest."""
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name]


def score(model: PreTrainedModel, tokens: Tokens | Tensor | None = None, *, method: str, batch_size: int = 5) -> Scores:
    """Score every layer of `model`: low = cut first.

    `tokens`: calibration windows (N, T), for the methods that need them. `batch_size`: windows computed at once.
    Weights, gradients and training mode of the model are left as they were.
    Raises UnknownNameError, UnsupportedModelError, TextError.
    """
    from slimcore.calibration import Tokens, as_ids
    from slimcore.structure import decoder

    chosen = method_named(method)
    view = decoder(model)
    if chosen.needs_tokens and tokens is None:
        raise TextError(f"{method} scores on calibration tokens: pass tokens (see calibration_tokens)")
    ids = as_ids(tokens, view.vocabulary) if chosen.needs_tokens and tokens is not None else None
    was_training = model.training
    model.eval()
    try:
        values = chosen.function(view, ids, batch_size)
    finally:
        model.train(was_training)
    provenance: dict[str, object] = {"dtype": str(model.dtype).removeprefix("torch.")}
    if ids is not None:
        provenance |= (tokens if isinstance(tokens, Tokens) else Tokens(ids)).describe()
    return _scores(model, method, values, provenance)


def unscored(model: PreTrainedModel, *, method: str) -> Scores:
    """Equal scores for every layer: to count what a cut leaves, on the meta device or with random weights."""
    layers = model.config.num_hidden_layers
    return _scores(model, method_named(method).name, [0.0] * layers, {"unscored": True})


def _scores(model: PreTrainedModel, method: str, values: list[float], provenance: dict[str, object]) -> Scores:
    from slimcore.structure import decoder, layer_parameters

    return Scores(
        method=method,
        values=tuple(values),
        layer_parameters=tuple(layer_parameters(layer) for layer in decoder(model).layers),
        total_parameters=sum(p.numel() for p in model.parameters()),
        provenance=provenance,
    )
