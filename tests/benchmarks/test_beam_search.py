"""Beam search over id tokens: against every item's likelihood by hand, and against the head it does without."""

import numpy as np
import pytest
import torch
from contract import MAX_LEN, NUM_ITEMS, adamw_steps, random_batch, scrambled
from lite import make
from tiny import histories_of, random_histories
from torch.testing import assert_close

from benchmarks.generative_ids import CopiedPast, GenerativeIds, IdTokens
from models.lite_llm4rec import LiteLLM4Rec


def tokens(levels: int = 3, size: int = 4) -> IdTokens:
    """Of random vectors; so few codes that some items share all but the last."""
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS + 1, 5)).astype(np.float32)
    vectors[9] = vectors[8]
    return IdTokens.of_vectors(vectors, levels, size)


def generative(beam: int, model: LiteLLM4Rec | None = None) -> GenerativeIds:
    """Random weights."""
    torch.manual_seed(0)
    made = GenerativeIds((model or make(positions="none", recency=0.5, head="tied")).config, tokens(), beam)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(0.4 * torch.randn_like(weight))
    return made.eval()


def test_making_codes_leaves_the_vectors_as_they_were() -> None:
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS + 1, 5)).astype(np.float32)
    before = vectors.copy()
    IdTokens.of_vectors(vectors, 3, 4)
    np.testing.assert_array_equal(vectors, before)


def test_codes_tell_all_items_apart_and_like_texts_share_all_but_the_last() -> None:
    made = tokens()
    assert len(np.unique(made.codes[1:], axis=0)) == NUM_ITEMS
    assert made.codes[8, :2].tolist() == made.codes[9, :2].tolist()
    assert (made.codes[1:] < made.sizes).all()
    assert (made.codes[1:].max(axis=0) + 1 == made.sizes).all()


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"head": "tied", "cosine": True, "temperature": 0.3}])
def test_with_one_token_an_item_a_beam_as_wide_as_the_catalogue_ranks_as_the_head(settings: dict[str, object]) -> None:
    model = scrambled(make(**{"positions": "rotary"} | settings))
    beam = GenerativeIds.with_weights_of(model, IdTokens.of_rows(NUM_ITEMS), NUM_ITEMS)
    batch = histories_of(random_histories(40, NUM_ITEMS, MAX_LEN))
    scores = model.encode(batch) @ model.item_vectors().T
    likelihoods = beam.scores(batch)
    offset = (likelihoods - scores)[:, 1:]
    assert_close(offset, offset[:, :1].expand_as(offset), rtol=0, atol=1e-4)
    best = scores[:, 1:].sort(dim=1, descending=True)
    clear = (best.values[:, :-1] - best.values[:, 1:]).min(dim=1).values > 1e-4
    assert clear.sum() > 10
    found = torch.cat([beam.generate(histories_of([row[:n]]).items).items for row, n in rows_of(batch)])
    assert torch.equal(found[clear], best.indices[clear] + 1)


def rows_of(batch: object) -> list[tuple[list[int], int]]:
    """Histories as lists."""
    return list(zip(batch.items.tolist(), batch.lengths.tolist(), strict=True))  # type: ignore[attr-defined]


@torch.no_grad()
def test_a_beam_that_loses_nothing_has_every_items_likelihood() -> None:
    """The plain way: each item's tokens are read after the history, nothing kept."""
    model = generative(beam=NUM_ITEMS)
    history = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]
    found = model.scores(histories_of(history))
    for row, items in enumerate(history):
        for item in range(1, NUM_ITEMS + 1):
            read = model.blocks(model._read(model._embedded(torch.tensor([[*items, item]]))), causal=True)
            logs = [
                model.logits(read[0, 5 * 3 + level - 1], level).log_softmax(0)[model.codes[item, level]]
                for level in range(3)
            ]
            assert found[row, item].item() == pytest.approx(float(sum(logs)), abs=1e-4)
    assert (found[:, 0] == -torch.inf).all()


@torch.no_grad()
def test_a_narrow_beam_finds_items_of_the_catalogue_alone_in_order() -> None:
    wide, narrow = generative(beam=NUM_ITEMS), generative(beam=4)
    history = torch.tensor([[3, 1, 4], [9, 2, 6]])
    found = narrow.generate(history)
    assert found.items.shape == (2, 4)
    assert (found.items > 0).all()
    assert (found.scores.diff(dim=1) <= 0).all()
    everything = wide.scores(histories_of(history.tolist()))
    assert_close(found.scores, everything.gather(1, found.items), rtol=0, atol=1e-4)


@torch.no_grad()
def test_prefixes_that_share_the_history_find_what_copies_find() -> None:
    shared, copied = generative(beam=5), generative(beam=5)
    copied.past = CopiedPast
    batch = histories_of(random_histories(12, NUM_ITEMS, MAX_LEN))
    assert_close(shared.scores(batch), copied.scores(batch), rtol=0, atol=1e-4)


def test_its_loss_is_the_mean_likelihood_of_the_next_items() -> None:
    model = generative(beam=NUM_ITEMS)
    batch = random_batch(make(), rows=5)
    known = [
        (batch.history[row, : place + 1].tolist(), int(batch.target[row, place]))
        for row, place in (batch.target != 0).nonzero().tolist()
    ]
    scores = model.scores(histories_of([history for history, _ in known]))
    expected = -np.mean([scores[row, item].item() for row, (_, item) in enumerate(known)])
    assert model.loss(batch).item() == pytest.approx(expected, rel=1e-4)


def test_it_learns_by_heart() -> None:
    torch.manual_seed(0)
    model = GenerativeIds(make(embedding_dim=32, head="tied").config, tokens(), beam=5)
    histories = random_histories(16, NUM_ITEMS, 6, shortest=6)
    losses = adamw_steps(model, 120, lambda _: histories, rate=5e-3)
    assert losses[-1] < 0.2 < losses[0]
