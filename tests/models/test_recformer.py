"""Recformer: the contract, the layout of texts, both objectives and the item matrix."""

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from contract import NUM_ITEMS, SMALL, LearningContract, RetrieverContract, adamw_steps, random_batch, scrambled
from hypothesis import given
from hypothesis import strategies as st
from tiny import histories_of, random_histories, windows_of
from torch import Tensor
from torch.testing import assert_close

from models.recformer import Recformer, RecformerConfig, Text
from recsys.batches import Histories
from recsys.errors import ConfigError
from recsys.item_sentences import KEY, VALUE, ItemSentences
from recsys.word_masks import masked_words

SPECIAL = FIRST, PADDING, MASK = 1, 3, 2
VOCABULARY = 60
WIDTH = 8


def sentences(num_items: int, twins: bool = False) -> ItemSentences:
    """A key and 2 to 7 tokens an item, no two items alike; of twins, items 3 and 5 have the same text."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, WIDTH + 1, num_items + 1)
    sizes[0] = 0
    inside = np.arange(WIDTH) < sizes[:, None]
    ids = np.where(inside, rng.integers(10, VOCABULARY, inside.shape), 0)
    ids[:, 1] = np.where(inside[:, 1], 10 + np.arange(num_items + 1) % 50, 0)
    kinds = np.where(inside, VALUE, 0)
    kinds[1:, 0] = KEY
    starts = inside & ((rng.random(inside.shape) < 0.7) | (np.arange(WIDTH) < 2))
    if twins:
        ids[5], kinds[5], starts[5] = ids[3], kinds[3], starts[3]
    return ItemSentences(ids.astype(np.int32), kinds.astype(np.int8), starts)


def make(twins: bool = False, **settings: Any) -> Recformer:
    """A small encoder over made-up sentences, its item matrix made."""
    defaults = {"max_tokens": 90, "vocab_size": VOCABULARY, "max_attributes": 1, "attribute_tokens": WIDTH}
    config = RecformerConfig(**SMALL | {"num_heads": 2, "temperature": 0.1} | defaults | settings)
    model = Recformer(config)
    model.learn_sentences(sentences(config.num_items, twins), SPECIAL)
    model.refresh_items()
    return model


class TestMatching(LearningContract, RetrieverContract):
    """Against the item matrix."""

    rule_steps = 200
    rule_settings: ClassVar[dict[str, Any]] = {"max_len": 4, "pooling": "mean", "dropout": 0.0}

    def make(self, **settings: Any) -> Recformer:
        return make(**settings)

    def test_loss_starts_at_that_of_a_guess(self) -> None:
        """All cosines are next to equal; a padding row that counted would add 1 to 13 items."""
        model = self.fresh(num_items=13, temperature=1000.0)
        loss = model.loss(random_batch(model, rows=64, num_items=13)).item()
        assert loss == pytest.approx(math.log(13), abs=0.003)

    def test_every_parameter_learns(self) -> None:
        model = scrambled(self.fresh()).train()
        model.loss(random_batch(model)).backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []

    def test_padding_row_is_zero_and_stays_so(self) -> None:
        model = scrambled(self.fresh())
        assert not model.item_vectors()[0].any()
        assert model.item_vectors()[1:].any(dim=1).all()

    def test_loss_is_the_mean_over_targets_not_over_rows(self) -> None:
        model = scrambled(self.fresh())
        batch = random_batch(model, rows=7)
        batch.target[2] = 0
        rows = [batch.share(row, 7) for row in range(7)]
        assert [part.num_targets for part in rows] == [1, 1, 0, 1, 1, 1, 1]
        assert_close(model.loss(batch), sum(model.loss(part) for part in rows) / 6, rtol=1e-5, atol=1e-5)


class TestWindowed(TestMatching):
    """Windows of four tokens and a first token that sees all."""

    rule_steps = 300
    rule_settings: ClassVar[dict[str, Any]] = {"max_len": 4, "pooling": "mean", "dropout": 0.0}

    def make(self, **settings: Any) -> Recformer:
        return make(**{"attention_window": 4, "pooling": "mean"} | settings)


def test_a_text_is_the_newest_item_first() -> None:
    model = make()
    known = sentences(NUM_ITEMS)
    text = model.text(torch.tensor([[7, 2, 0], [4, 9, 1]]), torch.tensor([2, 3]))
    for row, items in enumerate([[2, 7], [1, 9, 4]]):
        ids, kinds, places, starts = [FIRST], [0], [0], [False]
        for place, item in enumerate(items, 1):
            size = int(known.lengths[item])
            ids += known.ids[item, :size].tolist()
            kinds += known.kinds[item, :size].tolist()
            starts += known.starts[item, :size].tolist()
            places += [place] * size
        size, width = len(ids), text.ids.shape[1]
        rest = [0] * (width - size)
        assert text.ids[row].tolist() == ids + [PADDING] * len(rest)
        assert text.kinds[row].tolist() == kinds + rest
        assert text.places[row].tolist() == places + rest
        assert model.word_begins(text)[row].tolist() == starts + [False] * len(rest)
        assert text.real[row].tolist() == [True] * size + [False] * len(rest)


def test_sixty_items_of_96_tokens_are_cut_to_the_budget_from_the_oldest_end() -> None:
    """1 + 10 * 96 = 961 tokens; 63 of the eleventh item are left of 1,024."""
    settings = {"num_items": 60, "max_len": 50, "max_tokens": 1024, "attribute_tokens": 96}
    config = RecformerConfig(**SMALL | {"vocab_size": 200, "max_attributes": 1} | settings)
    model = Recformer(config)
    ids = np.repeat(100 + np.arange(61, dtype=np.int32)[:, None], 96, axis=1)
    kinds = np.full((61, 96), VALUE, dtype=np.int8)
    ids[0] = kinds[0] = 0
    model.learn_sentences(ItemSentences(ids, kinds, kinds > 0), SPECIAL)
    newest = torch.arange(11, 61)[None]
    text = model.text(newest, torch.tensor([50]))
    assert text.ids.shape == (1, 1024)
    assert text.places[0].bincount().tolist() == [1] + 10 * [96] + [63]
    assert text.ids[0, 1:97].tolist() == [160] * 96, "item 60 is the newest, at place 1"
    assert text.ids[0, 1:].unique().tolist() == list(range(150, 161))


def test_an_item_alone_is_a_history_of_one() -> None:
    model = scrambled(make())
    vectors = model.encode(histories_of([[item] for item in range(1, NUM_ITEMS + 1)])) * model.config.temperature
    assert_close(vectors, model.item_vectors()[1:], rtol=1e-5, atol=1e-5)
    assert_close(vectors.norm(dim=1), torch.ones(NUM_ITEMS))


def test_equal_texts_are_encoded_once_and_have_equal_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scrambled(make(twins=True))
    read: list[Tensor] = []
    original = model._read

    def counted(items: Tensor, lengths: Tensor) -> Tensor:
        read.append(items)
        return original(items, lengths)

    monkeypatch.setattr(model, "_read", counted)
    monkeypatch.setattr("models.recformer.TOKENS_AT_ONCE", 40)
    before = model.item_vectors().clone()
    model.refresh_items()
    rows = torch.cat(read).flatten().tolist()
    assert sorted(rows) == [row for row in range(1, NUM_ITEMS + 1) if row != 5]
    assert len(read) > 3, "several batches"
    assert torch.equal(model.item_vectors()[3], model.item_vectors()[5])
    assert_close(model.item_vectors(), before, rtol=1e-5, atol=1e-5)


def test_a_frozen_matrix_is_made_once() -> None:
    model = make(item_matrix="frozen")
    before = model.item_vectors().clone()
    scrambled(model)
    assert torch.equal(model.item_vectors(), before)
    refreshed = make()
    scrambled(refreshed)
    assert not torch.equal(refreshed.item_vectors(), before)


def test_vectors_of_known_sentences_are_taken_and_only_changed_ones_are_read() -> None:
    """Until training goes on: then every vector is another."""
    torch.manual_seed(0)
    first = scrambled(make(num_items=12))
    assert first.make_item_matrix() == 12
    later = make(num_items=15, attribute_tokens=WIDTH + 2)
    later.load_state_dict(dict(first.named_parameters()), strict=False)
    known = sentences(12)
    rows = [0, *range(3, 13), 2, 1, 7, 7, 7]  # in another order; three new ones
    ids, kinds, starts = (table[rows].copy() for table in (known.ids, known.kinds, known.starts))
    ids[13:, 1] = [3, 4, 5]
    ids[4, 2] += 1  # an edited title
    kept = first.item_matrix.clone()
    later.learn_sentences(ItemSentences(ids, kinds, starts), SPECIAL)
    later.keep_items(first.tokens, first.token_kinds, first.item_matrix)
    assert later.make_item_matrix() == 4
    unchanged = [row for row in range(1, 13) if row != 4]
    assert torch.equal(later.item_matrix[unchanged], kept[[rows[row] for row in unchanged]])
    taken = later.item_matrix.clone()
    assert later.make_item_matrix() == 4
    later.train().loss(random_batch(later, num_items=15))
    assert later.make_item_matrix() == 15
    assert_close(later.item_matrix, taken, rtol=1e-4, atol=1e-5)


def test_a_step_leaves_the_item_matrix_as_it_was() -> None:
    model = scrambled(make()).train()
    before = model.item_vectors().clone()
    adamw_steps(model, 2, lambda step: random_histories(4, NUM_ITEMS, model.window.length, step, shortest=2))
    assert torch.equal(model.item_vectors(), before)
    assert "item_matrix" in model.state_dict()


def test_the_place_of_an_item_counts_and_order_too() -> None:
    model = scrambled(make())
    first, second = model.encode(histories_of([[4, 9], [9, 4]]))
    assert (first - second).abs().max() > 1e-3
    without = scrambled(make(item_places=False, token_kinds=False))
    assert without.places is None
    assert len(without.kinds.weight) == 1


def test_targets_are_drawn_from_all_places_or_from_the_later_half() -> None:
    windows = windows_of([[1, 2, 3, 4, 5, 6, 7]] * 2000)
    for objective, earliest in (("match", 1), ("pretrain", 3)):
        batch = make(objective=objective).training_batch(windows, np.random.default_rng(0))
        counts = np.bincount(batch.lengths.numpy(), minlength=7)
        assert not counts[:earliest].any()
        expected = 2000 / (7 - earliest)
        assert (np.abs(counts[earliest:] - expected) < 5 * math.sqrt(expected)).all()
        target = batch.target.amax(dim=1)
        assert torch.equal(target, batch.lengths.long() + 1), "the item after the history"
        assert torch.equal(batch.history.amax(dim=1), batch.lengths.long())


class TestPretraining:
    """Contrast within the batch, and masked words."""

    def test_the_contrast_is_its_formula_without_equal_texts(self) -> None:
        model = scrambled(make(twins=True, objective="pretrain", word_weight=0.0))
        batch = random_batch(model, rows=9)
        targets = batch.target.amax(dim=1)
        targets[:4] = torch.tensor([3, 5, 7, 7])
        batch.target[torch.arange(9), batch.lengths.long() - 1] = targets
        histories = model.encode(Histories(batch.history, batch.timestamps, batch.lengths))
        logits = histories @ model.item_vectors()[targets].T
        losses = []
        for row, target in enumerate(targets.tolist()):
            others = [
                column
                for column, other in enumerate(targets.tolist())
                if column == row or (other != target and {other, target} != {3, 5})
            ]
            losses.append(logits[row, others].logsumexp(0) - logits[row, row])
        assert_close(model.loss(batch), torch.stack(losses).mean(), rtol=1e-5, atol=1e-5)

    def test_one_row_has_nothing_to_be_told_from(self) -> None:
        model = scrambled(make(objective="pretrain", word_weight=0.0)).train()
        loss = model.loss(random_batch(model, rows=1))
        loss.backward()
        assert loss.item() == 0
        assert not any(weight.grad.any() for weight in model.parameters() if weight.grad is not None)

    def test_every_parameter_learns(self) -> None:
        model = scrambled(make(objective="pretrain")).train()
        model.loss(random_batch(model)).backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []

    def test_rows_at_once_change_memory_and_not_the_gradient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With masks that do not depend on how rows are grouped; no pass holds more rows."""
        monkeypatch.setattr("models.recformer.masked_words", lambda tokens, starts, _: tokens & starts)
        monkeypatch.setattr("models.recformer.KEPT", 0.0)
        monkeypatch.setattr("models.recformer.RANDOM", 0.0)
        gradients, most = [], []
        for rows in (0, 2):
            model = scrambled(make(objective="pretrain", rows_at_once=rows)).train()
            held: list[int] = []
            handle = model.norm.register_forward_hook(lambda _, __, output, held=held: held.append(len(output)))
            model.loss(random_batch(model, rows=7)).backward()
            handle.remove()
            most.append(max(held))
            gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
        assert most == [7, 2]
        assert gradients[0].abs().max() > 1e-3
        assert_close(*gradients, rtol=1e-4, atol=1e-6)

    def test_a_process_without_rows_has_a_loss_of_zero(self) -> None:
        model = scrambled(make(objective="pretrain")).train()
        loss = model.loss(random_batch(model, rows=1).share(1, 2))
        loss.backward()
        assert loss.item() == 0
        assert not any(weight.grad.any() for weight in model.parameters() if weight.grad is not None)

    def test_it_learns_to_fill_in_words(self) -> None:
        """The second token of an item tells it; its other tokens follow from that one."""
        torch.manual_seed(0)
        model = make(objective="pretrain", dropout=0.0, embedding_dim=64)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        losses = []
        for step in range(300):
            histories = torch.tensor(random_histories(16, NUM_ITEMS, 4, step, shortest=4))
            loss, _ = model._word_loss(histories, torch.full((16,), 4))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] > 0.9 * math.log(VOCABULARY)
        assert np.mean(losses[-20:]) < 0.85 * losses[0]


@given(st.integers(0, 10_000), st.sampled_from([0.15, 0.4]))
def test_masks_take_whole_words_up_to_the_share(seed: int, share: float) -> None:
    torch.manual_seed(seed)
    model = make()
    histories = random_histories(6, NUM_ITEMS, model.max_len, seed)
    batch = histories_of(histories)
    text = model.text(batch.items, batch.lengths)
    starts = model.word_begins(text)
    chosen = masked_words(text.of_items, starts, share)
    tokens = text.real & (text.places != 0)
    assert not chosen[~tokens].any(), "neither [CLS] nor padding"
    for row in range(6):
        words: list[list[bool]] = []
        for place in tokens[row].nonzero().flatten().tolist():
            words += [[]] if starts[row, place] else []
            words[-1].append(bool(chosen[row, place]))
        assert all(len(set(word)) == 1 for word in words), "whole words"
        budget = max(1, round(share * int(tokens[row].sum())))
        taken = int(chosen[row].sum())
        left = [len(word) for word in words if not word[0]]
        assert taken <= budget
        assert not left or taken + min(left) > budget, "no word that would still fit is left"


def test_of_masked_tokens_eight_in_ten_are_the_mask_and_one_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = scrambled(make(objective="pretrain", vocab_size=5000, max_len=40, max_tokens=400)).train()
    shown: list[Text] = []
    embedded = model._embedded

    def watched(text: Text) -> Tensor:
        shown.append(text)
        return embedded(text)

    monkeypatch.setattr(model, "_embedded", watched)
    counts = np.zeros(3)
    for seed in range(40):
        histories = histories_of(random_histories(16, NUM_ITEMS, 40, seed, shortest=40))
        text = model.text(histories.items, histories.lengths)
        torch.manual_seed(seed)
        model._word_loss(histories.items, histories.lengths)
        torch.manual_seed(seed)
        chosen = masked_words(text.of_items, model.word_begins(text), model.config.mask_share)
        ids, before = shown[-1].ids, text.ids
        assert torch.equal(ids[~chosen], before[~chosen])
        masked, same = ids[chosen] == MASK, ids[chosen] == before[chosen]
        counts += [int(masked.sum()), int((~masked & ~same).sum()), int(same.sum())]
    assert counts.sum() > 10_000
    np.testing.assert_allclose(counts / counts.sum(), [0.8, 0.1, 0.1], atol=0.015)


def test_frozen_words_are_not_trained() -> None:
    model = scrambled(make(train_words=False)).train()
    model.loss(random_batch(model)).backward()
    assert model.words.weight.grad is None
    assert model.positions.weight.grad.any()


def test_cosines_are_bounded_by_the_temperature() -> None:
    model = scrambled(make(temperature=0.05))
    scores = model.encode(histories_of(random_histories(9, NUM_ITEMS, 5))) @ model.item_vectors().T
    assert scores.abs().max() <= 20 + 1e-4
    cosines = F.cosine_similarity(model.encode(histories_of([[4, 9]])), model.item_vectors()[1:], dim=1)
    assert_close(model.encode(histories_of([[4, 9]])) @ model.item_vectors()[1:].T, 20 * cosines[None])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 1}, "max_tokens=1 must be at least 2"),
        ({"attention_window": 5}, "attention_window=5 must be even"),
        ({"mask_share": 1.0}, r"mask_share=1.0 must lie in \(0, 1\)"),
        ({"embedding_dim": 11}, "embedding_dim=11 cannot be split over num_heads=2"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**settings)


def test_sentences_of_another_vocabulary_are_refused() -> None:
    model = Recformer(RecformerConfig(**SMALL | {"vocab_size": 20, "max_attributes": 1, "attribute_tokens": WIDTH}))
    with pytest.raises(ConfigError, match=r"model\.vocab_size=20 is less than the tokeniser's ids; they go up to 5\d"):
        model.learn_sentences(sentences(NUM_ITEMS), SPECIAL)
