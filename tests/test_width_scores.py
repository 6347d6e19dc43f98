"""The width criteria against plain references: autograd through the whole model, torch.var, loops over heads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slimcore
from slimcore.errors import BudgetError
from slimcore.moments import Moments
from tests.helpers import ids, models_drawn, tiny

ACCURACY = {"rel": 2e-3, "abs": 1e-9}


def plain_groups(layer, saliences, reduce):
    """Scores of KV groups and channels by loops: `saliences` a matrix a weight, `reduce` of a row or column."""
    size = layer.self_attn.head_dim
    n_rep = layer.self_attn.num_key_value_groups
    groups = []
    for c in range(layer.self_attn.k_proj.out_features // size):
        own_heads = range(c * n_rep, (c + 1) * n_rep)
        queries = [h * size + i for h in own_heads for i in range(size)]
        keys = [c * size + i for i in range(size)]
        groups.append(
            sum(reduce(saliences["q"][i]) for i in queries)
            + sum(reduce(saliences["k"][i]) + reduce(saliences["v"][i]) for i in keys)
            + sum(reduce(saliences["o"][:, i]) for i in queries)
        )
    channels = [
        reduce(saliences["gate"][j]) + reduce(saliences["up"][j]) + reduce(saliences["down"][:, j])
        for j in range(layer.mlp.gate_proj.out_features)
    ]
    return [float(g) for g in groups], [float(c) for c in channels]


def weights_of(layer):
    """The seven projections' weights by letter or word."""
    named = {p: getattr(layer.self_attn, f"{p}_proj").weight for p in "qkvo"}
    return named | {p: getattr(layer.mlp, f"{p}_proj").weight for p in ("gate", "up", "down")}


def plain_gradients(model, tokens):
    """Gradient of the mean next-token loss for each layer's weights, by one backward pass."""
    model.zero_grad()
    logits = model(tokens, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    found = [{n: w.grad.clone() for n, w in weights_of(layer).items()} for layer in model.model.layers]
    model.zero_grad()
    return found


SALIENCE = {
    "param_first": lambda w, g, f: (w * g).abs(),
    "vectorize": lambda w, g, f: w * g,
    "param_second": lambda w, g, f: (w * w * f).abs(),
    "param_mix": lambda w, g, f: (w * g - 0.5 * w * w * f).abs(),
    "l1": lambda w, g, f: w.abs(),
    "l2": lambda w, g, f: w * w,
}


@pytest.mark.parametrize("name", SALIENCE)
@settings(max_examples=30)
@given(
    model=models_drawn(families=("llama", "qwen3", "gemma")), windows=st.integers(1, 4), batch_size=st.integers(1, 5)
)
def test_llm_pruner_equals_backward_passes_and_loops_over_heads(name, model, windows, batch_size):
    """Layer by layer and batch by batch, each structure's score is the sum over its own weights."""
    tokens = ids(windows, 9)
    first = plain_gradients(model, tokens)
    each = [plain_gradients(model, tokens[i : i + 1]) for i in range(windows)]
    widths = slimcore.score(
        model, tokens, method="llm-pruner", metric=name, batch_size=batch_size, protect=(0, 0)
    ).widths
    for index, layer in enumerate(model.model.layers):
        saliences = {
            n: SALIENCE[name](w.detach(), first[index][n], torch.stack([e[index][n] ** 2 for e in each]).mean(0))
            for n, w in weights_of(layer).items()
        }
        groups, channels = plain_groups(layer, saliences, lambda v: abs(v.sum()))
        # Signed products cancel, to a rounding error of the largest.
        assert widths[index].kv_groups == pytest.approx(groups, rel=ACCURACY["rel"], abs=1e-5 * max(groups))
        assert widths[index].channels == pytest.approx(channels, rel=ACCURACY["rel"], abs=1e-5 * max(channels))


@settings(max_examples=30)
@given(models_drawn(min_layers=3), st.integers(0, 2), st.integers(0, 2))
def test_protected_layers_need_no_gradients(model, first, last):
    """The others' scores are as ever; cutting one that was left out is refused, with what to do."""
    every = slimcore.score(model, ids(), method="llm-pruner", protect=(0, 0))
    some = slimcore.score(model, ids(), method="llm-pruner", protect=(first, last))
    free = range(first, len(every.widths) - last)
    assert all(some.widths[i] == every.widths[i] for i in free)
    assert all(not some.widths[i].channels for i in range(len(every.widths)) if i not in free)
    if first + last:
        with pytest.raises(BudgetError, match="was not scored: score with the same protect="):
            slimcore.select(some, ratio=0.1, protect=(0, 0))
    if free:
        assert (
            slimcore.select(some, ratio=0.05).width == slimcore.select(every, ratio=0.05, protect=(first, last)).width
        )


@pytest.mark.parametrize("metric", ["l1", "l2"])
@settings(max_examples=25)
@given(model=models_drawn())
def test_magnitude_is_llm_pruners_without_data(metric, model):
    """One definition of a weight's magnitude."""
    widths = slimcore.score(model, method="magnitude", metric=metric).widths
    assert widths == slimcore.score(model, method="llm-pruner", metric=metric).widths


@given(st.sampled_from([(6, 3), (6, 2), (4, 2), (8, 4)]), st.data())
def test_a_kv_group_counts_its_own_query_heads(heads, data):
    """A weight added to query head h raises the score of group h // n_rep, and of no other: not that of h % groups."""
    head, (total, groups) = data.draw(st.integers(0, heads[0] - 1)), heads
    model = tiny(layers=2, heads=total, kv_heads=groups)
    before = slimcore.score(model, method="magnitude").widths[1].kv_groups
    where = data.draw(st.sampled_from(["q_proj", "o_proj"]))
    weight = getattr(model.model.layers[1].self_attn, where).weight.data
    own = slice(head * 8, (head + 1) * 8)
    (weight[own] if where == "q_proj" else weight[:, own]).add_(100)
    after = slimcore.score(model, method="magnitude").widths[1].kv_groups
    raised = [i for i in range(groups) if after[i] > 1.5 * before[i]]
    assert raised == [head // (total // groups)]
    assert [a for i, a in enumerate(after) if i not in raised] == [b for i, b in enumerate(before) if i not in raised]


def test_the_second_order_does_not_vanish_in_half_precision():
    """In fp16, where squared gradients are below the smallest number, `param_second` is its own, and right."""
    model, full = tiny(dtype=torch.float16), tiny(dtype=torch.float16).float()
    for layer in (*model.model.layers, *full.model.layers):
        layer.mlp.down_proj.weight.data /= 64  # gradients of about 1e-6: squared, far below fp16's 6e-8
    scores = {
        m: slimcore.score(model, ids(), method="llm-pruner", metric=m, protect=(0, 0))
        for m in ("param_first", "param_second")
    }
    first, second = (scores[m].widths[3].channels for m in ("param_first", "param_second"))
    assert all(v > 0 for v in second)
    assert sorted(range(40), key=first.__getitem__) != sorted(range(40), key=second.__getitem__)
    wide = slimcore.score(full, ids(), method="llm-pruner", metric="param_second", protect=(0, 0)).widths[3].channels
    assert second == pytest.approx(wide, rel=0.05)


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.integers(1, 4),
    st.floats(-100, 100),
    st.integers(0, 99),
)
def test_running_moments_equal_those_of_all_rows_at_once(sizes, channels, offset, seed):
    """Mean, torch.var and the sum of squares, however the rows are split, and far from zero."""
    rows = torch.randn(sum(sizes), channels, generator=torch.Generator().manual_seed(seed)) + offset
    moments = Moments()
    for part in rows.split(sizes):
        moments.update(part)
    assert torch.allclose(moments.mean, rows.double().mean(0), rtol=1e-6, atol=1e-6)
    assert torch.allclose(moments.squares, rows.double().square().sum(0), rtol=1e-5)
    if len(rows) > 1:
        assert torch.allclose(moments.variance, rows.double().var(0), rtol=1e-4, atol=1e-6)


def test_moments_square_in_more_than_half_precision():
    """Rows of 300 in float16, whose squares are 90,000."""
    moments = Moments()
    for part in torch.tensor([[300.0, -300.0], [299.0, 300.0], [301.0, 0.0]], dtype=torch.float16).split(2):
        moments.update(part)
    assert moments.variance.tolist() == pytest.approx([1, 90000])
    assert moments.squares.tolist() == pytest.approx([270002, 180000])


@torch.no_grad()
def inputs_of_output_projections(model, tokens):
    """All inputs of o_proj and down_proj of each layer, (N T, C), from one plain run of the model."""
    seen = []
    hooks = [
        linear.register_forward_pre_hook(lambda _m, args: seen.append(args[0].flatten(0, 1).double()))
        for layer in model.model.layers
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj)
    ]
    model(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return list(zip(seen[::2], seen[1::2], strict=True))


METRIC = {
    "WIFV": lambda x, w, n: x.var(0) * (w**2).sum(0),
    "IFV": lambda x, w, n: x.var(0),
    "WIFN": lambda x, w, n: w.abs().mean(0) * ((x**2).sum(0) / n).sqrt(),
}


@pytest.mark.parametrize("name", METRIC)
@settings(max_examples=40)
@given(
    model=models_drawn(families=("llama", "qwen2", "gemma")),
    windows=st.integers(1, 5),
    batch_size=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_flap_equals_one_run_of_the_unpruned_model(name, model, windows, batch_size, dtype):
    """Standardised metrics, attention's squared and averaged over a group's inputs; and the mean inputs.

    In half precision too: float64 statistics of what the model computes there.
    """
    model, tokens = model.to(dtype), ids(windows, 9)
    # Other batches round otherwise, in half precision by more than is allowed here.
    batch_size = batch_size if dtype == torch.float32 else windows
    scores = slimcore.score(model, tokens, method="flap", metric=name, batch_size=batch_size, arithmetic=dtype)
    for layer, widths, means, (o, down) in zip(
        model.model.layers, scores.widths, scores.means, inputs_of_output_projections(model, tokens), strict=True
    ):
        attention = METRIC[name](o, layer.self_attn.o_proj.weight.detach().double(), windows) ** 2
        mlp = METRIC[name](down, layer.mlp.down_proj.weight.detach().double(), windows)
        attention, mlp = ((v - v.mean()) / v.std() for v in (attention, mlp))
        groups = attention.view(len(widths.kv_groups), -1).mean(1)
        assert widths.kv_groups == pytest.approx(groups.tolist(), rel=1e-3, abs=1e-3)
        assert widths.channels == pytest.approx(mlp.tolist(), rel=1e-3, abs=1e-3)
        assert means.o == pytest.approx(o.mean(0).tolist(), rel=1e-3, abs=1e-4)
        assert means.down == pytest.approx(down.mean(0).tolist(), rel=1e-3, abs=1e-4)


@settings(max_examples=50)
@given(model=models_drawn(), windows=st.integers(1, 4))
def test_wanda_sp_is_weight_times_input_norm(model, windows):
    """Summed over a group's inputs; not standardised, not compensated."""
    tokens = ids(windows, 9)
    scores = slimcore.score(model, tokens, method="wanda-sp")
    assert scores.means == ()
    for layer, widths, (o, down) in zip(
        model.model.layers, scores.widths, inputs_of_output_projections(model, tokens), strict=True
    ):
        attention = METRIC["WIFN"](o, layer.self_attn.o_proj.weight.detach().double(), windows)
        groups = attention.view(len(widths.kv_groups), -1).sum(1)
        assert widths.kv_groups == pytest.approx(groups.tolist(), rel=1e-4)
        channels = METRIC["WIFN"](down, layer.mlp.down_proj.weight.detach().double(), windows)
        assert widths.channels == pytest.approx(channels.tolist(), rel=1e-4)


@pytest.mark.parametrize("method", ["flap", "wanda-sp", "llm-pruner"])
def test_what_has_no_effect_goes_first(method):
    """A channel and a KV group whose output columns are zero score lowest of their layer."""
    model = tiny(layers=3, heads=8, kv_heads=4)
    layer = model.model.layers[1]
    layer.mlp.down_proj.weight.data[:, 7] = 0
    layer.self_attn.o_proj.weight.data[:, 2 * 16 : 3 * 16] = 0
    widths = slimcore.score(model, ids(), method=method, protect=(0, 0)).widths[1]
    assert min(range(40), key=widths.channels.__getitem__) == 7
    assert min(range(4), key=widths.kv_groups.__getitem__) == 2
