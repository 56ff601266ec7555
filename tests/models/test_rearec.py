"""ReaRec: the contracts over both backbones, and the loop of reasoning by a second way."""

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from contract import (
    MAX_LEN,
    NUM_ITEMS,
    CausalRetrieverContract,
    LearningContract,
    RetrieverContract,
    random_batch,
    scrambled,
)
from reasoning import BACKBONES, Opened, make
from tiny import histories_of, random_histories
from torch.testing import assert_close

from models.bert4rec import BERT4Rec
from models.sasrec import SASRec
from recsys.batches import Histories
from recsys.errors import ConfigError
from recsys.losses import LossConfig


class TestERL(LearningContract, CausalRetrieverContract):
    """Mean of the states, on the layout preset for sparse data."""

    rule_steps = 200

    def make(self, **settings: Any) -> Opened:
        layout = {"norm": "both", "positions": "none", "recency": 0.25, "sink": True}
        return make({"objective": "erl", "diversity": 0.0}, **layout | settings)


class TestPRL(LearningContract, CausalRetrieverContract):
    """States sharpened step by step, on the layout of the release."""

    rule_steps = 250
    loss_knows_chance = False

    @staticmethod
    def loss_of_a_guess(num_items: int) -> float:
        """Of the last state, and of the earlier ones on average."""
        return 2 * math.log(num_items)

    def make(self, **settings: Any) -> Opened:
        return make({"objective": "prl", "contrast": 0.0}, **{"norm": "post", "input_norm": True} | settings)


class TestRotaryReasoning(CausalRetrieverContract):
    """Steps turn on where the history ends."""

    def make(self, **settings: Any) -> Opened:
        return make({"objective": "last", "steps": 3}, **{"positions": "rotary", "num_heads": 2} | settings)


class TestReasoningOverTexts(CausalRetrieverContract):
    """Items made of text, compared by cosine."""

    def make(self, **settings: Any) -> Opened:
        text = {"items": "unisrec", "text_width": 7, "cosine": True, "input_norm": True}
        model = make({"objective": "erl", "diversity": 0.0}, **text | settings)
        vectors = torch.randn(model.config.num_items + 1, 7, generator=torch.Generator().manual_seed(3))
        vectors[3] = 0  # an item without text
        model.learn_texts(F.normalize(vectors, dim=1), np.ones(len(vectors), dtype=np.int64))
        return model


class TestPrefixMasking(LearningContract, RetrieverContract):
    """BERT4Rec: chains behind every [mask]."""

    rule_steps = 250
    rule_settings: ClassVar[dict[str, Any]] = {"max_len": 4, "last_item_share": 1.0}

    def make(self, **settings: Any) -> Opened:
        return make({"objective": "erl", "diversity": 0.0}, **{"backbone": "bert4rec", "norm": "post"} | settings)


def histories(rows: int = 5) -> Histories:
    """Of all lengths."""
    return histories_of(random_histories(rows, NUM_ITEMS, MAX_LEN - 1))


@pytest.mark.parametrize("layout", BACKBONES)
@pytest.mark.parametrize("objective", ["erl", "prl", "last"])
def test_without_steps_it_is_the_backbone(layout: str, objective: str) -> None:
    """Vectors and loss bit for bit, gradients but for the order of sums."""
    model = scrambled(make({"steps": 0, "objective": objective}, **BACKBONES[layout]))
    assert model.step_vectors is None
    assert torch.equal(model.encode(histories()), model.backbone.encode(histories()))
    batch = random_batch(model)
    losses = model.loss(batch), model.backbone.loss(batch)
    assert torch.equal(*losses)
    ours, theirs = (torch.autograd.grad(loss, list(model.backbone.parameters())) for loss in losses)
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


@torch.no_grad()
@pytest.mark.parametrize("layout", BACKBONES)
def test_asked_for_fewer_steps_it_answers_with_fewer(layout: str) -> None:
    model = scrambled(make({"steps": 3, "objective": "last"}, **BACKBONES[layout]))
    states = model.reason(histories())
    assert states.shape == (4, 5, 12)
    for steps in range(4):
        assert_close(model.encode(histories(), steps), model.backbone.predictions(states[steps]))
    assert torch.equal(model.encode(histories(), 0), model.backbone.encode(histories()))


@torch.no_grad()
@pytest.mark.parametrize("layout", [name for name in BACKBONES if name != "bert4rec"])
def test_cached_steps_equal_reading_history_and_steps_anew(layout: str) -> None:
    """Row by row without padding: history and fed-back states as one causal sequence through the same blocks."""
    model = scrambled(make({"steps": 3}, **BACKBONES[layout]))
    batch = histories()
    states = model.reason(batch)
    for row, length in enumerate(batch.lengths.tolist()):
        alone = batch.items[row : row + 1, :length], batch.timestamps[row : row + 1, :length]
        sequence = model.backbone._embedded(*alone)
        for step in range(4):
            whole = model.backbone.blocks(sequence, causal=True)
            assert_close(states[step, row], whole[0, -1], rtol=1e-5, atol=1e-5)
            if step < 3:
                sequence = torch.cat([sequence, model._fed_back(whole[:, -1:], step)], dim=1)


@torch.no_grad()
def test_history_sees_both_ways_and_no_step() -> None:
    """Prefix masking by a second way: one sequence of tokens and steps, with the mask written out."""
    model = scrambled(make({"steps": 2}, **BACKBONES["bert4rec"]))
    items = torch.tensor([[3, 1, 4, 1, 5]])
    lengths, times = torch.tensor([5], dtype=torch.int32), torch.zeros_like(items)
    tokens = F.pad(items, (0, 1), value=model.backbone.mask_row)
    states = model.reason(Histories(items, times, lengths))[:, 0]
    sequence, seen = model.backbone._embedded(tokens, F.pad(times, (0, 1))), len(tokens[0])
    plain = model.backbone.hidden_states(tokens, F.pad(times, (0, 1)))
    for step in range(3):
        x, total = sequence, sequence.shape[1]
        allowed = torch.ones(total, total).tril().bool()
        allowed[:, :seen] = True
        allowed[:seen, seen:] = False
        for block in model.backbone.blocks:
            query, memory = block.attention.project(x)
            mixed = F.scaled_dot_product_attention(query, memory.keys, memory.values, attn_mask=allowed)
            branch = block.attention.out(mixed.transpose(1, 2).flatten(2))
            x = block._feed_forward(block.attention_residual.after(x, x, branch))
        assert_close(x[:, :seen], plain, rtol=1e-5, atol=1e-5)
        assert_close(states[step], x[0, -1], rtol=1e-5, atol=1e-5)
        if step < 2:
            sequence = torch.cat([sequence, model._fed_back(x[:, -1:], step)], dim=1)
    other = model.backbone.hidden_states(tokens.clone().index_fill_(1, torch.tensor([4]), 9), F.pad(times, (0, 1)))
    assert (other[:, 0] != plain[:, 0]).any()


@torch.no_grad()
@pytest.mark.parametrize("layout", BACKBONES)
def test_a_step_knows_no_later_step_vector(layout: str) -> None:
    model = scrambled(make({"steps": 3}, **BACKBONES[layout]))
    for step in range(3):
        before = model.reason(histories())
        model.step_vectors.weight[step] += 1
        after = model.reason(histories())
        assert torch.equal(after[: step + 1], before[: step + 1])
        assert (after[step + 1] != before[step + 1]).any()


@pytest.mark.parametrize("steps", [-1, 3])
def test_more_steps_than_were_trained_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps={steps} must lie between 0 and the 2 that the model was trained with"):
        make().encode(histories(), steps)


def test_a_bidirectional_backbone_cannot_be_continued() -> None:
    with pytest.raises(TypeError, match="backbone=bert4rec reads both ways"):
        make(**BACKBONES["bert4rec"]).encode_and_remember(histories())


def test_backbones_are_what_the_config_says() -> None:
    assert isinstance(make().backbone, SASRec)
    assert isinstance(make(backbone="bert4rec", mask_share=0.4).backbone, BERT4Rec)
    assert make(backbone="bert4rec", mask_share=0.4).backbone.config.mask_share == 0.4


@pytest.mark.parametrize(
    ("settings", "reasoning", "message"),
    [
        ({"temperature": 0.0}, {}, "temperature=0.0 must be above 0"),
        ({"loss": LossConfig(kind="bce")}, {}, "loss.kind=bce draws a negative for each position"),
        ({"backbone": "bert4rec", "input_norm": True}, {}, "input_norm=True is no setting of backbone=bert4rec; leave"),
        ({"mask_share": 0.5}, {}, "mask_share=0.5 is no setting of backbone=sasrec; leave it at 0.2"),
        ({"backbone": "bert4rec", "max_len": 1}, {}, "max_len=1 leaves no room"),
        ({}, {"steps": -1}, "steps=-1 must be at least 0"),
        ({}, {"sharpening": 0.0}, "sharpening=0.0 must be above 0"),
        ({}, {"diversity": -0.1}, "diversity=-0.1 must be at least 0"),
        ({}, {"noise": float("nan")}, "noise=nan must be at least 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], reasoning: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(reasoning, **settings)
