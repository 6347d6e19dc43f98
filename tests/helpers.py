"""Tiny models, and plain references to hold slimcore against."""

import shlex
import subprocess
import sys

import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from slimcore.models import random_model

VOCABULARY = 256


def tiny(layers=6, heads=4, kv_heads=2, *, tied=False, bias=False, seed=0, dtype=torch.float32):
    """A random LLaMA whose weights are large enough that a wrong one shows."""
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=8 * heads,
        intermediate_size=40,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        initializer_range=0.25,
    )
    model = random_model(config, dtype=dtype, device="cpu", seed=seed)
    if bias:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype) / 4
    return model


def ids(windows=3, length=12, seed=0):
    """Random token ids (windows, length)."""
    return torch.randint(VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(seed))


@st.composite
def models_drawn(draw, min_layers=2):
    """Tiny models over depth, MHA and GQA, tied embeddings, biases, seeds."""
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    return tiny(
        layers=draw(st.integers(min_layers, 7)),
        heads=4,
        kv_heads=kv_heads,
        tied=draw(st.booleans()),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


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


def mean_nll(logits, tokens):
    """Pooled mean next-token NLL, in float64."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].double().flatten(0, 1), tokens[:, 1:].flatten())


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
