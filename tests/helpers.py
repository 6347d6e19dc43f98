"""Tiny models, and plain references to hold slimcore against."""

import os
import shlex
import subprocess
import sys

import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast

import slimcore
from slimcore.models import random_model
from slimcore.plan import Width

VOCABULARY = 256


ROPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
# Real configs of these families have a head_dim, whose default is not for tiny models.
HEAD_DIM = {"qwen3": 8, "gemma": 8}


def tiny(
    layers=6, heads=4, kv_heads=2, *, family="llama", tied=False, bias=False, seed=0, dtype=torch.float32,
    head_dim=None, rope="default", positions=256,
):  # fmt: skip
    """A random model whose weights are large enough that a wrong one shows; `bias` where the family has a choice.

    `head_dim` None: hidden / heads, 8, and not in the config where real ones lack it.
    """
    kind, width = CONFIG_MAPPING[family], head_dim or HEAD_DIM.get(family)
    config = kind(
        num_hidden_layers=layers,
        hidden_size=8 * heads,
        intermediate_size=40,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        initializer_range=0.25,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        rope_parameters=rope_parameters(rope, width or 8),
        **{name: bias for name in ("attention_bias", "mlp_bias") if hasattr(kind, name)},
        **({"head_dim": width} if width else {}),
    )
    model = random_model(config, dtype=dtype, device="cpu", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype) / 4
    return model


def rope_parameters(kind, head_dim):
    """RoPE of a model of 256 positions; llama3 and YaRN were trained on 8, so that a few tokens are scaled already."""
    numbers = range(head_dim // 2)
    return {"rope_type": kind, "rope_theta": 10000.0} | {
        "default": {},
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 4.0},
        "llama3": {
            "factor": 32.0, "original_max_position_embeddings": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0
        },
        "yarn": {"factor": 32.0, "original_max_position_embeddings": 8},
        "longrope": {
            "factor": 4.0, "original_max_position_embeddings": 64,
            "short_factor": [1 + n / 8 for n in numbers], "long_factor": [1.0 + n for n in numbers],
        },
    }[kind]  # fmt: skip


def ids(windows=3, length=12, seed=0):
    """Random token ids (windows, length)."""
    return torch.randint(VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(seed))


@st.composite
def models_drawn(draw, min_layers=2, families=("llama",)):
    """Tiny models as real ones are: over families, depth, MHA and GQA, heads of any size, RoPE, ties, biases, seeds."""
    heads = draw(st.sampled_from([4, 6]))
    return tiny(
        layers=draw(st.integers(min_layers, 7)),
        heads=heads,
        kv_heads=draw(st.sampled_from([n for n in (1, 2, 3, 4, 6) if heads % n == 0])),
        family=draw(st.sampled_from(families)),
        tied=draw(st.booleans()),
        bias=draw(st.booleans()),
        head_dim=draw(st.sampled_from([None, 8, 4, 16])),
        rope=draw(st.sampled_from(ROPES)),
        seed=draw(st.integers(0, 99)),
    )


def kept(count):
    """Indices to keep of `count`: one at least, ascending."""
    return st.sets(st.integers(0, count - 1), min_size=1).map(sorted).map(tuple)


@st.composite
def width_plans(draw, model, *, compensated=None, depth=False):
    """Any plan for `model` that cuts inside its layers, with means or without, and with `depth` whole layers too."""
    shapes = slimcore.unscored(model, method="flap").shapes
    count = sum(p.numel() for p in model.parameters())
    keep = draw(kept(len(shapes))) if depth else tuple(range(len(shapes)))
    means = draw(st.booleans()) if compensated is None else compensated
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    width = {}
    for layer in draw(st.sets(st.sampled_from(keep), min_size=1)):
        shape = shapes[layer]
        groups, channels = draw(kept(shape.kv_groups)), draw(kept(shape.channels))
        gone = ((shape.kv_groups - len(groups)) * shape.group_inputs, shape.channels - len(channels))
        drawn = [tuple(torch.randn(n, generator=generator).tolist()) if means else () for n in gone]
        width[layer] = Width(groups, channels, *drawn)
    return slimcore.Plan("drawn", shapes, count, keep, width)


@torch.no_grad()
def masked_logits(model, tokens, plan):
    """Logits of the dense `model` with what `plan` cuts masked: a plain reference that cuts nothing.

    What goes is set to zero, or to its mean, where it enters the two output projections.
    """

    def mask(size, inputs, keep, means):
        gone = [i for j in range(size) if j not in keep for i in range(j * inputs, (j + 1) * inputs)]
        value = torch.tensor(means) if means else torch.zeros(len(gone))

        def hook(_module, arguments):
            hidden = arguments[0].clone()
            hidden[..., gone] = value
            return (hidden,)

        return hook

    hooks = []
    for index, width in plan.width.items():
        layer, shape = model.model.layers[index], plan.shapes[index]
        for linear, hook in (
            (layer.self_attn.o_proj, mask(shape.kv_groups, shape.group_inputs, width.kv_groups, width.o_means)),
            (layer.mlp.down_proj, mask(shape.channels, 1, width.channels, width.down_means)),
        ):
            hooks.append(linear.register_forward_pre_hook(hook))
    logits = skipped_logits(model, tokens, plan.keep)
    for hook in hooks:
        hook.remove()
    return logits


@torch.no_grad()
def skipped_logits(model, tokens, kept):
    """Logits of `model` with only the layers `kept`, the others made to pass their input on."""
    hooks = [
        layer.register_forward_hook(lambda _m, args, _out: args[0])
        for index, layer in enumerate(model.model.layers)
        if index not in kept
    ]
    logits = model(tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits


@torch.no_grad()
def decoded(model, tokens, new):
    """Greedy decoding of `new` tokens with the cache: each step's logits by an uncached forward, and the chosen's."""
    generated = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, min_new_tokens=new, max_new_tokens=new,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    length = tokens.shape[1]
    logits = model(generated, use_cache=False).logits[:, length - 1 : -1]
    return logits, logits.gather(-1, generated[:, length:, None])[..., 0]


def mean_nll(logits, tokens):
    """Pooled mean next-token NLL, in float64."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].double().flatten(0, 1), tokens[:, 1:].flatten())


LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True, **{options})
assert not any(info.values()), info
torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])
output = model.generate(torch.load(sys.argv[2]), do_sample=False, max_new_tokens=3, pad_token_id=0)
assert "slimcore" not in sys.modules
"""


def in_a_fresh_process(folder, place, *, trust=False):
    """Logits that transformers computes from `folder` in a process of its own; CalledProcessError where it fails."""
    code = LOAD.format(options={"trust_remote_code": True} if trust else {})
    torch.save(ids(), place / "ids")
    command = [sys.executable, "-c", code, folder, place / "ids", place / "logits"]
    # Away from the checkout, and with its own place for the code that comes with a checkpoint.
    environment = os.environ | {"HF_MODULES_CACHE": str(place / "modules")}
    subprocess.run(command, check=True, cwd=place, env=environment, capture_output=True, text=True, input="n\n")
    return torch.load(place / "logits")


def byte_tokenizer():
    """A fast tokenizer with one token a byte and no special tokens but BOS."""
    alphabet = {symbol: n for n, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="!")  # noqa: S106 - no password


def on_a_terminal(command, **options):
    """What `command` prints where its output is a terminal of 24 lines."""
    inside = "stty cols 160 rows 24; exec " + shlex.join(map(str, command))
    spawn = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])", "sh", "-c", inside]
    done = subprocess.run(spawn, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, **options)
    return done.stdout
