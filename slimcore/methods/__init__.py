"""How structures are scored. A new method is one file with a `score` function, and one line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from slimcore.errors import TextError, UnknownNameError
from slimcore.scores import PLUS_RULE, Means, Scores, Widths, checked_protection

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from slimcore.calibration import Tokens
    from slimcore.structure import Decoder


@dataclass(frozen=True)
class Calibration:
    """What a method scores on."""

    ids: Tensor  # (N, T); empty for methods that need none
    layers: range  # that may be cut: a method may leave out the others
    batch_size: int  # windows computed at once
    arithmetic: torch.dtype  # to run the model in; gradients are taken in float32
    metric: str  # one of the method's, "" where it has none
    seed: int


@dataclass(frozen=True)
class Inside:
    """What a width method finds inside one layer: low = cut first."""

    kv_groups: Tensor | None  # (kv_groups,); None: not scored
    channels: Tensor | None  # (channels,)
    o_means: Tensor | None = None  # mean inputs of the output projections, where biases make up for what goes
    down_means: Tensor | None = None


UNSCORED = Inside(None, None)


@dataclass(frozen=True)
class Method:
    """A way to score structures, by the name users type, and what goes with it unless told otherwise."""

    name: str
    label: str  # in figures
    summary: str
    inside: bool  # it scores KV groups and channels, not whole layers
    metrics: tuple[str, ...] = ()  # the first is the default
    on_weights: tuple[str, ...] = ()  # metrics that need no tokens
    windows: tuple[int, int] | None = (10, 128)  # of calibration; None: it never needs any
    batch_size: int = 5
    protect: tuple[int, int] = PLUS_RULE
    allocation: str = "UL-UM"
    compensates: bool = False
    standardised: bool = False  # scores of all layers and of both kinds can stand in one list as they are

    def needs_tokens(self, metric: str | None = None) -> bool:
        """Whether scoring takes calibration tokens."""
        return self.windows is not None and self.metric(metric) not in self.on_weights

    def metric(self, name: str | None = None) -> str:
        """The metric called `name`, or the default. Raises UnknownNameError."""
        if name is None:
            return self.metrics[0] if self.metrics else ""
        if name not in self.metrics:
            raise UnknownNameError(f"metric of {self.name}", name, self.metrics)
        return name

    @property
    def function(self) -> Callable[[Decoder, Calibration], list[float] | list[Inside]]:
        """`score(view, calibration)` of the method's file: one entry a layer."""
        module = import_module(f"{__name__}.{self.name.replace('-', '_')}")
        return cast("Callable[[Decoder, Calibration], list[float] | list[Inside]]", module.score)


METHODS = {
    method.name: method
    for method in (
        Method("depth-ppl", "Ours", "perplexity of the model without the layer (Shortened LLaMA)", inside=False),
        Method("depth-taylor", "Taylor+", "|weight x gradient| summed over the layer", inside=False),
        Method("depth-magnitude", "Magnitude+", "|weight| summed over the layer", inside=False, windows=None),
        Method(
            "llm-pruner", "LLM-Pruner", "|weight x gradient| summed over the structure", inside=True,
            metrics=("param_first", "vectorize", "param_second", "param_mix", "l1", "l2", "random"),
            on_weights=("l1", "l2", "random"), windows=(10, 64), batch_size=10,
        ),
        Method(
            "flap", "FLAP", "fluctuation of the structure's output, its mean kept as a bias", inside=True,
            metrics=("WIFV", "IFV", "WIFN"), windows=(128, 128), batch_size=8, protect=(0, 0), allocation="AL-AM",
            compensates=True, standardised=True,
        ),
        Method(
            "wanda-sp", "Wanda-sp", "|weight| x norm of its input", inside=True, windows=(128, 128), batch_size=8,
            protect=(0, 0),
        ),
        Method(
            "magnitude", "Magnitude", "|weight| summed over the structure", inside=True, metrics=("l1", "l2"),
            windows=None,
        ),
    )
}  # fmt: skip


def method_named(name: str) -> Method:
    """The method users call `name`. Raises UnknownNameError with the nearest."""
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name]


def score(
    model: PreTrainedModel,
    tokens: Tokens | Tensor | None = None,
    *,
    method: str,
    metric: str | None = None,
    protect: tuple[int, int] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    arithmetic: torch.dtype | None = None,
) -> Scores:
    """Score every layer of `model`, or every KV group and channel: low = cut first.

    `tokens`: calibration windows (N, T), for the methods that need them. `metric`: one of the method's (None: its
    default). `protect`: so many first and last layers will not be cut (None: the method's own), and gradients are not
    taken for them. `batch_size`: windows computed at once (None: the method's). `seed`: of the metric `random`.
    `arithmetic`: what the model is run in, float16, bfloat16 or float32 (None: its weights' dtype; on a CPU float32);
    gradients, and what is squared, summed or exponentiated, are float32 or wider in any case.
    Weights, gradients and training mode of the model are left as they were.
    Raises UnknownNameError, UnsupportedModelError, TextError, BudgetError.
    """
    import torch

    from slimcore import layerwise
    from slimcore.calibration import Tokens, as_ids
    from slimcore.digest import digest
    from slimcore.structure import check_weights, decoder, layer_shapes

    chosen = method_named(method)
    measure = chosen.metric(metric)
    view = decoder(model)
    check_weights(model)
    layer_shapes(view)  # refused before the work
    rule = checked_protection(chosen.protect if protect is None else protect)
    needed = chosen.needs_tokens(metric)
    if needed and tokens is None:
        raise TextError(f"{method} scores on calibration tokens: pass tokens (see calibration_tokens)")
    ids = as_ids(tokens, view) if needed and tokens is not None else None
    on = Calibration(
        torch.empty(0, 0, dtype=torch.long) if ids is None else ids,
        range(rule[0], max(rule[0], len(view.layers) - rule[1])),
        batch_size or chosen.batch_size,
        layerwise.arithmetic(view.head.weight, arithmetic),
        measure,
        seed,
    )
    was_training = model.training
    model.eval()
    try:
        found = chosen.function(view, on)
    finally:
        model.train(was_training)
    provenance: dict[str, object] = {"dtype": str(model.dtype).removeprefix("torch."), "weights_sha256": digest(model)}
    if on.arithmetic != layerwise.arithmetic(view.head.weight):
        provenance |= {"arithmetic": str(on.arithmetic).removeprefix("torch.")}
    provenance |= {"metric": measure} if measure else {}
    provenance |= {"metric_seed": seed} if measure == "random" else {}
    if ids is not None:
        provenance |= (tokens if isinstance(tokens, Tokens) else Tokens(ids)).describe()
    return _scores(model, chosen, found, provenance, protect=rule)


def unscored(model: PreTrainedModel, *, method: str) -> Scores:
    """Equal scores for everything: to count what a cut leaves, on the meta device or with random weights.

    Every layer that may be cut then loses the same share, where the method's own allocation needs scores.
    """
    import torch

    from slimcore.structure import decoder, layer_shapes

    chosen = method_named(method)
    found: list[float] | list[Inside] = [0.0] * model.config.num_hidden_layers
    if chosen.inside:
        found = [
            Inside(
                torch.zeros(shape.kv_groups),
                torch.zeros(shape.channels),
                torch.zeros(shape.heads * shape.head_dim) if chosen.compensates else None,
                torch.zeros(shape.channels) if chosen.compensates else None,
            )
            for shape in layer_shapes(decoder(model))
        ]
    return _scores(model, chosen, found, {"unscored": True}, allocation="UL-UM")


def _scores(
    model: PreTrainedModel,
    method: Method,
    found: list[float] | list[Inside],
    provenance: dict[str, object],
    *,
    protect: tuple[int, int] | None = None,
    allocation: str | None = None,
) -> Scores:
    from slimcore.structure import decoder, layer_shapes

    inside = [one for one in found if isinstance(one, Inside)]
    view = decoder(model)
    return Scores(
        method=method.name,
        shapes=layer_shapes(view),
        total_parameters=sum(p.numel() for p in model.parameters()),
        values=tuple(value for value in found if isinstance(value, float)),
        widths=tuple(Widths(_numbers(one.kv_groups), _numbers(one.channels)) for one in inside),
        means=tuple(
            Means(_numbers(one.o_means), _numbers(one.down_means))
            for one in inside
            if one.o_means is not None and one.down_means is not None
        ),
        bytes_per_parameter=view.embedding.weight.element_size(),
        protect=method.protect if protect is None else protect,
        allocation=allocation or method.allocation,
        standardised=method.standardised,
        provenance=provenance,
    )


def _numbers(values: Tensor | None) -> tuple[float, ...]:
    """As float32 holds them, in the fewest digits that give it back: plans are text."""
    if values is None:
        return ()
    numbers: Iterable[float] = values.detach().float().cpu().tolist()
    return tuple(float(f"{number:.9g}") for number in numbers)
