"""Lite-LLM4Rec: the contracts, and the numeric checks of its specification, over tiny random language models."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from contract import (
    MAX_LEN,
    NUM_ITEMS,
    SMALL,
    CausalRetrieverContract,
    LearningContract,
    RetrieverContract,
    adamw_steps,
    random_batch,
    scrambled,
)
from lite import make, tiny_language_models
from tiny import histories_of, random_histories
from torch.testing import assert_close

from models.lite_llm4rec import LiteLLM4Rec, LiteLLM4RecConfig
from recsys.errors import ConfigError
from recsys.language_models import merged
from recsys.text_vectors import SentenceEncoder, text_vectors

TEXTS = ["", *(f"w{row % 12} w{row % 7} {'w1 ' * (row % 5)}".strip() for row in range(1, NUM_ITEMS + 1))]


class TestHybridHead(LearningContract, CausalRetrieverContract):
    """Text and id."""

    def make(self, **settings: Any) -> LiteLLM4Rec:
        return make(**settings)


class TestTiedHead(CausalRetrieverContract):
    """Text alone; positions are learned, items compared by cosine."""

    def make(self, **settings: Any) -> LiteLLM4Rec:
        return make(**{"head": "tied", "positions": "learned", "cosine": True, "temperature": 5.0} | settings)


class TestFreeHead(CausalRetrieverContract):
    """A row and a bias an item."""

    def make(self, **settings: Any) -> LiteLLM4Rec:
        return make(**{"head": "free", "cosine": True} | settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random language models, 12 numbers wide."""
    return tiny_language_models(tmp_path_factory.mktemp("language"))


class TestPretrainedLayers(RetrieverContract):
    """The layers of an encoder in place of our own."""

    @pytest.fixture(autouse=True)
    def _folder(self, folder: Path) -> None:
        self.backbone = str(folder / "bert")

    def make(self, **settings: Any) -> LiteLLM4Rec:
        return make(backbone=self.backbone, **settings)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_any_language_model_reads_histories_forwards(folder: Path, kind: str) -> None:
    model = make(backbone=str(folder / kind)).eval()
    assert not model.goes_on
    history = torch.tensor(random_histories(4, NUM_ITEMS, MAX_LEN, shortest=MAX_LEN))
    other = history.clone()
    other[:, 6:] = other[:, 6:] % NUM_ITEMS + 1
    states, changed = model.hidden_states(history, history), model.hidden_states(other, history)
    assert_close(states[:, :6], changed[:, :6], rtol=0, atol=1e-6)
    assert (states[:, 6:] != changed[:, 6:]).any(dim=2).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model.loss(random_batch(model)))


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_inputs_are_as_long_as_the_words_of_the_language_model(folder: Path, kind: str) -> None:
    model = make(backbone=str(folder / kind)).eval()
    assert model.layers is not None
    vectors = model.items(torch.arange(1, NUM_ITEMS + 1)[None])
    found = model._input(vectors).square().mean().sqrt().item()
    assert found == pytest.approx(model.layers.word_length, rel=0.02)
    assert 0.01 < found < 2


def test_inputs_of_own_blocks_have_length_one() -> None:
    model = make(embedding_dim=64).eval()
    x = model._input(model.items(torch.arange(1, NUM_ITEMS + 1)[None]))
    assert x.square().mean().sqrt().item() == pytest.approx(1, rel=0.01)


@torch.no_grad()
def test_appended_padding_changes_nothing() -> None:
    model = scrambled(make(max_len=30))
    histories = random_histories(4, NUM_ITEMS, 7)
    wide = histories_of(histories, width=12)
    assert_close(model.encode(histories_of(histories)), model.encode(wide), rtol=0, atol=1e-6)


@torch.no_grad()
def test_order_counts_and_without_positions_only_what_came_last() -> None:
    forwards, backwards, shuffled = histories_of([[3, 1, 4, 9, 2]]), histories_of([[2, 9, 4, 1, 3]]), [[9, 4, 1, 3, 2]]
    ordered = scrambled(make())
    assert (ordered.encode(forwards) - ordered.encode(backwards)).abs().max() > 1e-3
    placeless = scrambled(make(positions="none", num_blocks=1))
    assert_close(placeless.encode(forwards), placeless.encode(histories_of(shuffled)))
    assert (ordered.encode(forwards) - ordered.encode(histories_of(shuffled))).abs().max() > 1e-3


def test_a_head_of_zeros_loses_exactly_the_logarithm_of_the_catalogue() -> None:
    model = make(head="free", num_items=500)
    assert model.head is not None
    torch.nn.init.zeros_(model.head.weight)
    assert model.loss(random_batch(model, num_items=500)).item() == pytest.approx(np.log(500), rel=1e-6)


def test_items_of_one_vector_lose_exactly_the_logarithm_of_the_catalogue() -> None:
    model = make(head="tied", num_items=200)
    model.texts.features[1:] = model.texts.features[5]
    assert model.loss(random_batch(model, num_items=200)).item() == pytest.approx(5.298317, abs=1e-5)


def test_it_learns_32_users_by_heart() -> None:
    """As the specification measured: 5.47 at first, .06 after a hundred steps (there without an adapter)."""
    torch.manual_seed(0)
    model = make(num_items=200, embedding_dim=64, ffn_dim=128, head="tied", max_len=9)
    histories = random_histories(32, 200, 10, shortest=10)
    losses = adamw_steps(model, 120, lambda _: histories, rate=3e-3)
    assert losses[0] == pytest.approx(np.log(200), rel=0.05)
    assert losses[-1] < 0.1


def test_a_free_heads_bias_is_one_more_number() -> None:
    model = scrambled(make(head="free"))
    assert model.head is not None
    batch = histories_of(random_histories(5, NUM_ITEMS, MAX_LEN))
    states = model.blocks.last(model._input(model.items(batch.items)), batch.lengths, causal=True)[0]
    assert_close(model.encode(batch) @ model.item_vectors().T, model.head(states))


@torch.no_grad()
@pytest.mark.parametrize("head", ["tied", "hybrid"])
def test_another_item_changes_no_other_score_and_ranks_by_its_text(head: str) -> None:
    small = scrambled(make(head=head))
    large = make(head=head, num_items=NUM_ITEMS + 1).eval()
    grown = large.state_dict()
    for name, weight in small.state_dict().items():
        grown[name].zero_()[tuple(slice(size) for size in weight.shape)] = weight
    grown["items.features" if head == "tied" else "items.texts.features"][-1] = small.texts.features[8]
    if head == "hybrid":
        grown["items.counts"][-1] = 0
    large.load_state_dict(grown)
    batch = histories_of(random_histories(5, NUM_ITEMS, MAX_LEN))
    scores, more = (model.encode(batch) @ model.item_vectors().T for model in (small, large))
    assert_close(more[:, :-1], scores)
    assert_close(more[:, -1], large.encode(batch) @ large.texts(torch.tensor([8]))[0])
    assert head == "hybrid" or torch.equal(more[:, -1], more[:, 8])


def with_item_llm(folder: Path, store: Path, **settings: Any) -> LiteLLM4Rec:
    """A model that trains a tiny BERT, given its vectors as training does."""
    torch.manual_seed(0)
    encoder = SentenceEncoder(str(folder / "bert"))
    made = {"text_width": 12, "text_encoder": str(folder / "bert"), "item_llm": "joint", "id_dropout": 0.0}
    model = LiteLLM4Rec(LiteLLM4RecConfig(**SMALL | made | settings))
    vectors = torch.from_numpy(text_vectors(TEXTS, encoder, store))
    model.learn_texts(vectors, np.full(len(TEXTS), 7, dtype=np.int64))
    model.learn_tokens(*encoder.tokens(TEXTS))
    return model


@pytest.mark.parametrize("settings", [{"item_llm": "joint"}, {"item_llm": "lora"}, {"text_components": 5}])
def test_kept_vectors_are_those_read_live(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """LoRA begins as what it adapts."""
    model = with_item_llm(folder, tmp_path / "store", **settings).eval()
    assert model.item_llm is not None
    kept = model.texts.features.clone()
    rows = torch.tensor([7, 1, 29, 14])
    assert_close(model.texts.features_of(model.item_llm(rows)), kept[rows], rtol=0, atol=1e-6)
    model.refresh_items()
    assert_close(model.texts.features, kept, rtol=0, atol=1e-6)
    assert not model.texts.features[0].any()


def test_reading_each_item_once_has_the_gradients_of_reading_it_wherever_it_stands(
    folder: Path, tmp_path: Path
) -> None:
    once = with_item_llm(folder, tmp_path / "store", head="tied").eval()  # eval: without the dropout of BERT
    batch = random_batch(once)
    once.loss(batch).backward()
    naive = deepcopy(once)
    naive.zero_grad()
    assert naive.item_llm is not None
    everything = torch.cat([batch.history, batch.target]).flatten()
    known = torch.unique(everything[everything != 0])
    features = torch.stack([  # an item's row wherever it stands is the mean of readings, one for every event
        torch.stack([naive.item_llm(row[None])[0] for _ in range(int((everything == row).sum()))]).mean(dim=0)
        for row in known
    ])
    table = naive.texts.adapted(naive.texts.features.index_put((known,), features))
    table = torch.cat([torch.zeros_like(table[:1]), table[1:]])
    valid = batch.target != 0
    states = naive._states(table[batch.history])[valid]
    F.cross_entropy(states @ table[1:].T, batch.target[valid] - 1).backward()
    for (name, ours), theirs in zip(once.named_parameters(), naive.parameters(), strict=True):
        if ours.grad is not None and name.startswith("item_llm"):
            assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)
    assert once.item_llm.layers.embeddings.word_embeddings.weight.grad.any()


def test_checkpoints_save_memory_and_change_no_gradient(folder: Path, tmp_path: Path) -> None:
    gradients = []
    for kept in (False, True):
        model = with_item_llm(folder, tmp_path / "store", gradient_checkpoints=kept).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.loss(random_batch(model)).backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    for first, second in zip(*gradients, strict=True):
        assert_close(first, second)


def test_lora_trains_adapters_alone_and_the_items_move_when_read_again(folder: Path, tmp_path: Path) -> None:
    model = with_item_llm(folder, tmp_path / "store", item_llm="lora", head="tied")
    before = {name: weight.clone() for name, weight in model.item_llm.named_parameters()}
    features = model.texts.features.clone()
    adamw_steps(model, 4, lambda step: random_histories(6, NUM_ITEMS, 8, seed=step, shortest=2), rate=1e-2)
    moved = {name for name, weight in model.item_llm.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert all("lora" in name for name in moved)
    assert torch.equal(model.texts.features, features), "kept until they are read again"
    model.refresh_items()
    assert (model.texts.features - features).abs().max() > 1e-3


@torch.no_grad()
def test_merged_adapters_answer_as_before(folder: Path) -> None:
    torch.manual_seed(0)
    fresh = make(backbone=str(folder / "llama"), backbone_lora=True).eval()
    torch.manual_seed(0)
    plain = make(backbone=str(folder / "llama")).eval()
    batch = histories_of(random_histories(5, NUM_ITEMS, MAX_LEN))
    assert torch.equal(fresh.encode(batch), plain.encode(batch)), "a fresh adapter adds nothing"
    adapters = [weight for name, weight in fresh.named_parameters() if "lora" in name]
    for adapter in adapters:
        adapter.normal_(std=0.3)
    apart = fresh.encode(batch)
    assert (apart - plain.encode(batch)).abs().max() > 1e-2
    weights = {name: weight.clone() for name, weight in fresh.state_dict().items()}
    with merged(fresh):
        assert_close(fresh.encode(batch), apart, rtol=1e-4, atol=1e-5)
        for adapter in adapters:
            adapter.zero_()
        assert_close(fresh.encode(batch), apart, rtol=1e-4, atol=1e-5)
        fresh.load_state_dict({name: weights[name] for name in weights if "lora" in name}, strict=False)
    assert_close(fresh.encode(batch), apart, rtol=1e-4, atol=1e-5)


def test_no_text_is_read_to_answer(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_item_llm(folder, tmp_path / "store").eval()

    def refuse(*_: object) -> None:
        raise AssertionError("read a text")

    monkeypatch.setattr(model.item_llm, "forward", refuse)
    assert model.encode(histories_of([[3, 1, 4]])).shape == (1, 12)
    assert model.item_vectors().shape == (NUM_ITEMS + 1, 12)


@pytest.mark.parametrize(("values", "message"), [
    ({"time_buckets": 8}, "time_buckets=8, but it reads no times; set 0"),
    ({"lora_rank": 0}, "lora_rank=0 must be at least 1"),
    ({"backbone_lora": True}, "backbone=blocks is trained from nothing; backbone_lora and backbone_revision belong to"),
    ({"item_llm": "joint", "text_control": "shuffled"}, "text_control=shuffled changes vectors that item_llm=joint"),
    ({"id_dropout": 1.0}, r"id_dropout=1\.0 must lie in \[0, 1\)"),
])  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LiteLLM4RecConfig(**SMALL | values)


def test_a_backbone_that_is_nowhere_is_named_with_its_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'nobody/nothing': is no folder.*set model\.backbone_revision"):
        make(backbone="nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be loaded .*set model\.backbone to a folder with config\.json"):
        make(backbone=str(tmp_path / "empty"))


@pytest.mark.parametrize(("settings", "message"), [
    ({"embedding_dim": 20}, "embedding_dim=20, and the layers of .*gpt2 are 12 wide; set model.embedding_dim=12"),
    ({"max_len": 41}, "max_len=41, and .*gpt2 knows 40 positions; set model.max_len to no more"),
])  # fmt: skip
def test_layers_of_other_sizes_are_refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(backbone=str(folder / "gpt2"), **settings)
