"""SASRec and BERT4Rec over items of texts, or of ids and texts: the contract, and what texts are good for."""

from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from contract import (
    MAX_LEN,
    NUM_ITEMS,
    SMALL,
    CausalRetrieverContract,
    LearningContract,
    RetrieverContract,
    adamw_steps,
    hit_rate,
    random_batch,
)
from tiny import PRIME, cyclic_histories, histories_of, random_histories

from models.bert4rec import BERT4Rec, BERT4RecConfig
from models.rearec import ReaRec, ReaRecConfig
from models.sasrec import SASRec, SASRecConfig
from recsys.errors import ConfigError
from recsys.item_vectors import ItemSource
from recsys.text_items import TextControl, controlled

GATED = {"items": "gated", "text_width": 40, "text_components": 12, "id_dropout": 0.0}
CLOZE = {"mask_share": 0.3, "last_item_share": 0.1}
LAST_ITEM: dict[str, Any] = {"max_len": 4, "last_item_share": 0.5}
MODELS: dict[type[Any], type[Any]] = {SASRec: SASRecConfig, BERT4Rec: BERT4RecConfig, ReaRec: ReaRecConfig}


def with_texts(kind: type[Any], settings: dict[str, Any]) -> Any:
    """A small model with random text vectors of its items, one item without, and counts from 0 on."""
    heads = 2 if "embedding_dim" in settings else 3
    model = kind(MODELS[kind](**SMALL | {"num_heads": heads} | settings))
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(model.config.num_items + 1, model.config.text_width)) / 6
    vectors[[0, 3]] = 0
    counts = np.r_[0, rng.permutation(model.config.num_items) // 2]
    model.learn_texts(torch.from_numpy(vectors).float(), counts)
    return model


class TestSASRecOfIdsAndTexts(LearningContract, CausalRetrieverContract):
    """Gated by how often an item was seen."""

    rule_steps = 200

    def make(self, **settings: Any) -> SASRec:
        return with_texts(SASRec, GATED | settings)


class TestSASRecWithLikeness(LearningContract, CausalRetrieverContract):
    """Texts like that of the last event score more."""

    rule_steps = 200

    def make(self, **settings: Any) -> SASRec:
        return with_texts(SASRec, GATED | {"likeness": 2.0} | settings)

    def answers(self, model: SASRec, states: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        return model.answers(states, last)


class TestSASRecOfInitialisedTable(CausalRetrieverContract):
    """Rows that start from texts."""

    def make(self, **settings: Any) -> SASRec:
        return with_texts(SASRec, {"items": "initialised", "text_width": 40} | settings)


class TestSASRecOfFrozenTexts(CausalRetrieverContract):
    """Item vectors are whitened texts, and stay what they are."""

    def make(self, **settings: Any) -> SASRec:
        return with_texts(SASRec, {"items": "frozen", "text_width": 40} | settings)

    test_loss_starts_at_that_of_a_guess = (
        None  # texts of length 1 are no fresh table: some items are nearer than others
    )
    test_padding_row_is_zero_and_stays_so = None  # asks that items move

    def test_items_do_not_move(self) -> None:
        model = self.fresh()
        assert not model.items.weight[0].any()
        before = model.items.weight.clone()
        adamw_steps(model, 3, lambda step: random_histories(4, NUM_ITEMS, MAX_LEN, step, shortest=2))
        described = torch.arange(NUM_ITEMS + 1) != 3
        assert torch.equal(model.items.weight[described], before[described])


class TestBERT4RecOfIdsAndTexts(LearningContract, RetrieverContract):
    """The mask is a row of its own behind them."""

    rule_steps = 400
    rule_settings: ClassVar[dict[str, Any]] = LAST_ITEM

    def make(self, **settings: Any) -> BERT4Rec:
        return with_texts(BERT4Rec, GATED | CLOZE | settings)


class TestBERT4RecOfInitialisedTable(RetrieverContract):
    """Rows that start from texts, the mask's from none."""

    def make(self, **settings: Any) -> BERT4Rec:
        return with_texts(BERT4Rec, {"items": "initialised", "text_width": 40} | CLOZE | settings)


class TestBERT4RecOfWhitenedTexts(RetrieverContract):
    """UniSRec's experts under the cloze task."""

    def make(self, **settings: Any) -> BERT4Rec:
        return with_texts(BERT4Rec, {"items": "unisrec", "text_width": 7} | CLOZE | settings)

    test_loss_starts_at_that_of_a_guess = None  # eight experts start with larger numbers than a table


def test_likeness_adds_the_cosine_of_whitened_texts_to_the_score() -> None:
    histories = histories_of(random_histories(5, NUM_ITEMS, MAX_LEN, 0, shortest=2))
    plain, like = (with_texts(SASRec, GATED | {"cosine": True, "likeness": weight}).eval() for weight in (0.0, 1.5))
    like.load_state_dict(plain.state_dict())
    with torch.no_grad():
        difference = like.encode(histories) @ like.item_vectors().T - plain.encode(histories) @ plain.item_vectors().T
    texts = plain.items.texts.features.numpy().astype(np.float64)
    for row, (items, length) in enumerate(zip(histories.items.numpy(), histories.lengths.numpy(), strict=True)):
        last = texts[items[length - 1]]
        for item, text in enumerate(texts):
            lengths = np.linalg.norm(last) * np.linalg.norm(text)
            expected = 1.5 * last @ text / lengths if lengths else 0.0
            assert difference[row, item].item() == pytest.approx(expected, abs=1e-5)


def test_likeness_is_no_part_of_the_loss() -> None:
    plain, like = (with_texts(SASRec, GATED | {"likeness": weight}).eval() for weight in (0.0, 1.5))
    like.load_state_dict(plain.state_dict())
    assert torch.equal(plain.loss(random_batch(plain)), like.loss(random_batch(like)))


def test_likeness_needs_texts_and_states_of_events() -> None:
    with pytest.raises(ConfigError, match=r"likeness=2.0 compares texts of items=gated, not table"):
        SASRecConfig(**SMALL | {"num_heads": 3}, likeness=2.0)
    with pytest.raises(ConfigError, match=r"ReaRecConfig: likeness=2.0 stands beside SASRec's state after an event"):
        ReaRecConfig(**SMALL | {"num_heads": 3} | GATED, likeness=2.0)


@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec"])
def test_a_model_that_reasons_has_its_backbones_items(backbone: str) -> None:
    model = with_texts(ReaRec, GATED | {"backbone": backbone, "num_items": PRIME})
    losses = adamw_steps(model, 30, lambda step: cyclic_histories(16, 6, seed=step % 3))
    assert losses[-1] < losses[0]
    assert torch.equal(model.eval().item_vectors(), model.backbone.item_vectors())


TOPICS = 83
UNSEEN = tuple(range(3, TOPICS, 4))
"""Topics whose items training leaves out."""


@cache
def trained_without(items: ItemSource, control: TextControl) -> SASRec:
    """Of each topic an item and its twin have nearly the same text; what follows an item is its twin."""
    rng = np.random.default_rng(1)
    topics = rng.normal(size=(TOPICS, 8)) / 3
    vectors = np.concatenate([np.zeros((1, 8)), topics, topics + 0.03 * rng.normal(size=topics.shape)])
    known = np.array([topic for topic in range(1, TOPICS + 1) if topic not in UNSEEN])
    counts = np.zeros(2 * TOPICS + 1, dtype=np.int64)
    counts[known] = counts[known + TOPICS] = 40
    torch.manual_seed(0)
    sizes = {"num_items": 2 * TOPICS, "embedding_dim": 8, "text_width": 8, "num_heads": 2, "num_blocks": 1}
    model = SASRec(SASRecConfig(**SMALL | sizes, items=items, id_dropout=0.3))
    model.learn_texts(torch.from_numpy(controlled(vectors, control)).float(), counts)

    def pairs(step: int) -> list[list[int]]:
        drawn = np.random.default_rng(step).choice(known, 32)
        return [[int(topic), int(topic) + TOPICS] for topic in drawn]

    adamw_steps(model, 250, pairs, rate=1e-2)
    return model.eval()


def found(items: ItemSource, control: TextControl) -> float:
    """Share of the unseen topics whose first item is followed by its twin, by the meaning of texts alone."""
    asked = [[topic, topic + TOPICS] for topic in UNSEEN]
    return hit_rate(trained_without(items, control), asked, exclude_seen=True)


@pytest.mark.parametrize("items", ["gated", "morec"])
def test_texts_find_items_never_seen_and_their_controls_do_not(items: ItemSource) -> None:
    assert found(items, "none") > 0.3
    assert found(items, "shuffled") < 0.05
    assert found(items, "random") < 0.05


def test_a_learned_table_knows_little_of_items_never_seen() -> None:
    assert found("initialised", "none") < 0.1
