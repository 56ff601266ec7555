"""Chunked attention against the plain formula, and against torch's own kernel at lower precision."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from watching import largest_tensor

from recsys import attention as module
from recsys.attention import attention, attention_of_chains, attention_of_last, distance_penalty

BATCH, HEADS, WIDTH = 3, 2, 5
KINDS = [
    pytest.param(
        *kind, id=" ".join(name for name, on in zip(("causal", "mask", "recency", "sink"), kind, strict=True) if on)
    )
    for kind in itertools.product([False, True], repeat=4)
]


def inputs(length: int, total: int | None = None, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, H, L, Dh], keys and values [B, H, T, Dh] that ask for gradients."""
    generator = torch.Generator().manual_seed(length)
    sizes = (length, total or length, total or length)
    made = [torch.randn(BATCH, HEADS, size, WIDTH, generator=generator, dtype=torch.float64) for size in sizes]
    query, keys, values = (tensor.to(dtype).requires_grad_() for tensor in made)
    return query, keys, values


def key_mask(total: int) -> Tensor:
    """Rows of unlike lengths, [B, 1, 1, T]."""
    return (torch.arange(total) < torch.tensor([total, 1, total // 2 + 1])[:, None])[:, None, None]


def by_hand(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    causal: bool,
    recency: float,
    sink: Tensor | None = None,
) -> Tensor:
    """softmax(q . k / sqrt(Dh) - recency^(1 + head) * distance) over the keys that may be seen and the sink."""
    length, total = query.shape[2], keys.shape[2]
    rows = []
    for head in range(HEADS):
        logits = query[:, head] @ keys[:, head].transpose(1, 2) / math.sqrt(WIDTH)
        behind = torch.arange(total - length, total)[:, None] - torch.arange(total)
        logits = logits - recency ** (1 + head) * behind.abs().double() if recency else logits
        seen = torch.ones(BATCH, length, total, dtype=torch.bool) if mask is None else mask[:, 0].expand(-1, length, -1)
        seen = seen & (behind >= 0) if causal else seen
        mass = torch.where(seen, logits.exp(), 0.0)
        nothing = 0.0 if sink is None else sink[head].exp()
        rows.append(mass / (mass.sum(2, keepdim=True) + nothing) @ values[:, head])
    return torch.stack(rows, dim=1)


def sinks(wanted: bool) -> Tensor | None:
    """One logit a head that asks for gradients: larger than most scores, and smaller than most."""
    return torch.tensor([2.0, -1.5], dtype=torch.float64, requires_grad=True) if wanted else None


def chunked(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    causal: bool,
    recency: float,
    sink: Tensor | None = None,
) -> Tensor:
    """What the public function does in bfloat16, in any precision."""
    penalty = distance_penalty(query, keys, recency) if recency else None
    added = None if mask is None else torch.where(mask, 0.0, -torch.inf).to(query.dtype)
    mixed: Tensor = module._ChunkedAttention.apply(query, keys, values, penalty, added, sink, causal)
    return mixed


def gradients(mixed: Tensor, tensors: tuple[Tensor, ...], sink: Tensor | None = None) -> tuple[Tensor, ...]:
    """Of a sum that weighs every number otherwise."""
    tensors = tensors if sink is None else (*tensors, sink)
    weights = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.autograd.grad((mixed * weights.to(mixed.dtype)).sum(), tensors)


@pytest.mark.parametrize(("causal", "masked", "close", "drain"), KINDS)
@pytest.mark.parametrize("length", [1, 4, 11])
def test_chunked_attention_is_its_formula(
    length: int, causal: bool, masked: bool, close: bool, drain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several blocks of queries and of rows, the last of each smaller."""
    monkeypatch.setattr(module, "QUERY_BLOCK", 4)
    monkeypatch.setattr(module, "CHUNK_SCORES", 2 * HEADS * 4 * 11)
    tensors, sink = inputs(length), sinks(drain)
    mask = key_mask(length) if masked else None
    recency = 0.3 if close else 0.0
    ours, plain = chunked(*tensors, mask, causal, recency, sink), by_hand(*tensors, mask, causal, recency, sink)
    assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    assert_close(gradients(ours, tensors, sink), gradients(plain, tensors, sink), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("drain", [False, True])
def test_a_mask_may_differ_from_query_to_query(drain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of neighbours and the first key, cut by each row's length, over several blocks of queries."""
    monkeypatch.setattr(module, "QUERY_BLOCK", 3)
    monkeypatch.setattr(module, "CHUNK_SCORES", 20)
    places, sink = torch.arange(8), sinks(drain)
    near = ((places[:, None] - places).abs() <= 2) | (places == 0)
    tensors, mask = inputs(8), key_mask(8) & near
    wanted = [tensor for tensor in (*tensors, sink) if tensor is not None]
    results = [kind(*tensors, mask, False, 0.0, sink) for kind in (chunked, attention, by_hand)]
    slopes = [torch.autograd.grad((result**3).sum(), wanted) for result in results]
    for result, gradient in zip(results[:2], slopes[:2], strict=True):
        assert_close(result, results[2], rtol=1e-9, atol=1e-9)
        assert_close(gradient, slopes[2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("causal", "masked", "close", "drain"), KINDS)
def test_the_public_function_is_the_formula(causal: bool, masked: bool, close: bool, drain: bool) -> None:
    tensors, sink = inputs(6), sinks(drain)
    mask = key_mask(6) if masked else None
    recency = 0.3 if close else 0.0
    ours, plain = attention(*tensors, mask, causal, recency, sink), by_hand(*tensors, mask, causal, recency, sink)
    assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    assert_close(gradients(ours, tensors, sink), gradients(plain, tensors, sink), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("causal", "masked", "close", "drain"), KINDS)
def test_without_gradients_torchs_kernel_is_the_formula_too(
    causal: bool, masked: bool, close: bool, drain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._ChunkedAttention, "apply", None)
    tensors, sink = tuple(tensor.detach() for tensor in inputs(6)), sinks(drain)
    mask = key_mask(6) if masked else None
    recency = 0.3 if close else 0.0
    ours, plain = attention(*tensors, mask, causal, recency, sink), by_hand(*tensors, mask, causal, recency, sink)
    assert_close(ours, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("recency", [0.0, 0.3])
@pytest.mark.parametrize("causal", [False, True])
def test_queries_stand_at_the_newest_keys(causal: bool, recency: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven queries over ten keys: the last query is at the last key."""
    monkeypatch.setattr(module, "QUERY_BLOCK", 3)
    tensors = inputs(7, total=10)
    plain = by_hand(*tensors, None, causal, recency)
    ours = chunked(*tensors, None, causal, recency)
    assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    assert_close(gradients(ours, tensors), gradients(plain, tensors), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("drain", [False, True])
@pytest.mark.parametrize("recency", [0.0, 0.3])
def test_attention_of_the_last_event_is_the_last_row_of_all(recency: float, drain: bool) -> None:
    query, keys, values = inputs(8)
    sink = sinks(drain)
    lengths = torch.tensor([8, 1, 5], dtype=torch.int32)
    for row, length in enumerate(lengths.tolist()):
        part = [tensor[row : row + 1, :, :length].expand(BATCH, -1, -1, -1) for tensor in (query, keys, values)]
        expected = by_hand(*part, None, True, recency, sink)[:1, :, -1:]
        last = query.gather(2, (lengths.long() - 1)[:, None, None, None].expand(-1, HEADS, 1, WIDTH))
        assert_close(attention_of_last(last, keys, values, lengths, recency, sink)[row : row + 1], expected)


@pytest.mark.parametrize(("causal", "masked", "close", "drain"), KINDS)
def test_bfloat16_training_is_close_to_float32(
    causal: bool, masked: bool, close: bool, drain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 keeps eight binary digits: 1 % of the norm for the mix, 2 % for gradients."""
    monkeypatch.setattr(module, "QUERY_BLOCK", 16)
    taken = []
    original: Callable[..., Tensor] = module._ChunkedAttention.apply
    monkeypatch.setattr(module._ChunkedAttention, "apply", lambda *given: taken.append(1) or original(*given))
    low = inputs(50, dtype=torch.bfloat16)
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in low)
    mask = key_mask(50) if masked else None
    recency, sink = 0.3 if close else 0.0, sinks(drain)
    low_sink = None if sink is None else sink.detach().float().requires_grad_()
    ours = attention(*low, mask, causal, recency, low_sink)
    plain = by_hand(*exact, mask, causal, recency, sink)
    assert taken, "torch's kernel would be another test"
    assert ours.dtype == torch.bfloat16
    assert (ours - plain).norm() < 0.01 * plain.norm()
    found, expected = gradients(ours, low, low_sink), gradients(plain, exact, sink)
    assert [mine.dtype for mine in found[:3]] == [torch.bfloat16] * 3
    for mine, reference in zip(found, expected, strict=True):
        assert (mine - reference).norm() < 0.02 * reference.norm()


@pytest.mark.parametrize("length", [200, 400])
def test_scores_exist_chunk_by_chunk(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as long would be four times the scores; what is held stays one block of queries over all keys."""
    monkeypatch.setattr(module, "QUERY_BLOCK", 16)
    monkeypatch.setattr(module, "CHUNK_SCORES", HEADS * 16 * 400)
    query, keys, values = inputs(length)
    largest = largest_tensor(lambda: chunked(query, keys, values, None, True, 0.0).sum().backward())
    assert largest <= max(HEADS * 16 * 400, BATCH * HEADS * length * WIDTH)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("with_sink", [True, False])
@pytest.mark.parametrize("recency", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_chain_attends_as_if_it_stood_behind_its_place_alone(
    steps: int, recency: float, with_sink: bool, causal: bool
) -> None:
    """Chain by chain: the events it sees, then its own steps, as one sequence under the plain formula."""
    chains, total = 4, 6
    query, keys, values = inputs(chains, total)
    own_keys, own_values = (torch.randn(BATCH, HEADS, chains, steps, WIDTH, dtype=torch.float64) for _ in range(2))
    places = torch.tensor([[0, 3, 5, 3], [5, 4, 1, 0], [2, 2, 0, 1]])
    seen = torch.arange(total) <= places[:, :, None] if causal else key_mask(total)[:, 0].clone()
    sink = torch.tensor([0.3, -1.0], dtype=torch.float64) if with_sink else None
    mixed = attention_of_chains(query, (keys, own_keys), (values, own_values), places, seen, recency, sink)
    assert mixed.shape == query.shape
    for row, chain in itertools.product(range(BATCH), range(chains)):
        visible = seen[row, chain if causal else 0]
        distance = torch.cat([
            (places[row, chain] + steps - torch.arange(total))[visible].abs(),
            torch.arange(steps - 1, -1, -1),
        ])
        for head in range(HEADS):
            all_keys = torch.cat([keys[row, head, visible], own_keys[row, head, chain]])
            all_values = torch.cat([values[row, head, visible], own_values[row, head, chain]])
            logits = all_keys @ query[row, head, chain] / math.sqrt(WIDTH) - recency ** (1 + head) * distance
            logits = logits if recency else all_keys @ query[row, head, chain] / math.sqrt(WIDTH)
            mass = logits.exp()
            nothing = 0.0 if sink is None else sink[head].exp()
            assert_close(mixed[row, head, chain], (mass / (mass.sum() + nothing)) @ all_values)
