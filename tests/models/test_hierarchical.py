"""Hierarchical Recformer: the causal contract, and distillation against its formula."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from contract import NUM_ITEMS, SMALL, CausalRetrieverContract, LearningContract, adamw_steps, random_batch, scrambled
from tiny import histories_of, random_histories
from torch import Tensor
from torch.testing import assert_close

from models.hierarchical import Hierarchical, HierarchicalConfig, Teacher
from models.recformer import Recformer, RecformerConfig
from recsys.batches import TrainingWindows
from recsys.errors import ConfigError
from recsys.item_sentences import ItemSentences
from recsys.sequences import SequenceStore

TEXT = 40


class Expecting:
    """A teacher that looks at the last item alone, with vectors of its own for items and answers."""

    def __init__(self, num_items: int = NUM_ITEMS, sharpness: float = 3.0) -> None:
        generator = torch.Generator().manual_seed(3)
        self.item_vectors = F.normalize(torch.randn(num_items + 1, TEXT, generator=generator), dim=1)
        self.item_vectors[[0, 3]] = 0  # padding, and an item without text
        self.answers = sharpness * torch.randn(num_items + 1, TEXT, generator=generator)
        self.asked = 0

    def read(self, store: SequenceStore, windows: TrainingWindows) -> None:
        """Nothing to prepare."""

    def encode(self, items: Tensor, lengths: Tensor) -> Tensor:
        self.asked += len(items)
        return self.answers[items[torch.arange(len(items)), lengths.long() - 1]]


def make(teacher: Expecting | None = None, **settings: Any) -> Hierarchical:
    """A small model that has met its teacher."""
    config = HierarchicalConfig(**SMALL | {"num_heads": 2 if "embedding_dim" in settings else 3, "items": "morec",
                                           "text_width": TEXT} | settings)  # fmt: skip
    model = Hierarchical(config)
    model.learn_from(teacher or Expecting(config.num_items))
    return model


class TestHierarchical(LearningContract, CausalRetrieverContract):
    """The contract, by what users did next alone: a teacher's part is a mean over histories, not over targets."""

    rule_steps = 200

    def make(self, **settings: Any) -> Hierarchical:
        return make(**{"distillation": 0.0} | settings)


def test_distillation_is_the_divergence_from_the_teachers_softmax() -> None:
    teacher = Expecting()
    alone, taught = (scrambled(make(teacher, distillation=weight)) for weight in (0.0, 0.5))
    taught.load_state_dict(alone.state_dict())
    batch = random_batch(alone, rows=6)
    divergences = []
    with torch.no_grad():
        for row in range(6):
            length = int(batch.lengths[row])
            history = histories_of([batch.history[row, :length].tolist()])
            ours = (alone.encode(history) @ alone.item_vectors().T)[0, 1:].softmax(0)
            last = int(batch.history[row, length - 1])
            theirs = (teacher.answers[last] @ teacher.item_vectors.T)[1:].softmax(0)
            divergences.append(float((theirs * (theirs / ours).log()).sum()))
    assert taught.loss(batch).item() == pytest.approx(alone.loss(batch).item() + 0.5 * np.mean(divergences), rel=1e-4)


def test_a_row_without_target_is_not_taught() -> None:
    teacher = Expecting()
    model = scrambled(make(teacher))
    batch = random_batch(model, rows=4)
    half = replace(batch, target=batch.target * torch.tensor([1, 0, 1, 0])[:, None])
    assert_close(model.loss(half), model.loss(batch.rows(torch.tensor([0, 2]))), rtol=1e-5, atol=1e-5)
    assert teacher.asked == 2 + 2
    assert model.loss(replace(batch, target=torch.zeros_like(batch.target))).item() == 0


def test_it_learns_what_the_teacher_expects_though_no_user_did_it() -> None:
    """Users do anything; the teacher says what follows the last item."""
    teacher = Expecting(sharpness=6.0)
    hits = {}
    for weight in (0.0, 5.0):
        torch.manual_seed(0)
        model = make(teacher, distillation=weight, max_len=5)
        adamw_steps(model, 200, lambda step: random_histories(32, NUM_ITEMS, 6, seed=step, shortest=6), rate=1e-2)
        histories = histories_of(random_histories(200, NUM_ITEMS, 5, seed=10**6, shortest=5))
        found = (model.eval().encode(histories) @ model.item_vectors().T)[:, 1:].argmax(dim=1)
        expected = (teacher.encode(histories.items, histories.lengths) @ teacher.item_vectors.T)[:, 1:].argmax(dim=1)
        hits[weight] = (found == expected).double().mean().item()
    assert hits[0.0] < 0.2
    assert hits[5.0] > 0.8


def test_vectors_of_features_are_those_of_its_items() -> None:
    for settings in ({}, {"items": "unisrec", "cosine": True}):
        model = scrambled(make(**settings))
        assert_close(model.vectors_of(model.features[1:]), model.item_vectors()[1:])


def test_a_teacher_reads_each_history_once_and_only_its_newest_events() -> None:
    torch.manual_seed(0)
    sizes = {"embedding_dim": 8, "num_blocks": 1, "num_heads": 2, "ffn_dim": 8, "vocab_size": 50, "max_tokens": 40}
    recformer = Recformer(RecformerConfig(num_items=9, max_len=3, max_attributes=1, attribute_tokens=4, **sizes))
    ids = np.random.default_rng(0).integers(3, 50, (10, 4)).astype(np.int32)
    kinds = np.array([[0] * 4, *[[1, 2, 2, 2]] * 9], dtype=np.int8)
    recformer.learn_sentences(ItemSentences(ids=ids * (kinds > 0), kinds=kinds, starts=kinds > 0), (1, 0, 2))
    recformer.refresh_items()
    read: list[int] = []
    recformer.blocks.first = counted(recformer.blocks.first, read)  # type: ignore[method-assign]
    teacher = Teacher(recformer)
    histories = [[5, 1, 2, 3], [9, 1, 2, 3], [4], [1, 2, 3]]
    batch = histories_of(histories)
    found = teacher.encode(batch.items, batch.lengths)
    assert read == [2], "three of the four have the same newest events"
    expected = torch.cat([recformer.encode(histories_of([history[-3:]])) for history in histories])
    assert_close(found, expected)
    read.clear()
    assert_close(teacher.encode(batch.items, batch.lengths), found, rtol=0, atol=0)
    assert read == []
    assert_close(teacher.item_vectors, recformer.item_vectors())


def counted(first: Any, read: list[int]) -> Any:
    """`first` that notes how many texts it reads."""

    def noting(x: Tensor, real: Tensor) -> Tensor:
        read.append(len(x))
        return first(x, real)

    return noting


def test_training_without_its_teacher_is_refused() -> None:
    model = Hierarchical(HierarchicalConfig(**SMALL | {"text_width": TEXT, "num_heads": 3}))
    with pytest.raises(ValueError, match="distillation needs a teacher; call learn_from before training"):
        model.loss(random_batch(model))


@pytest.mark.parametrize(("values", "message"), [
    ({"items": "table"}, "items=table learns ids, not texts"),
    ({"distillation": -1.0}, "distillation=-1.0 must be at least 0"),
    ({"text_encoder": "x"}, "text_encoder='x', but its texts are read by the teacher"),
    ({"text_control": "random"}, "text_control='random', but its texts are read by the teacher"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HierarchicalConfig(num_items=5, **values)
