"""Recformer's encoder against BERT, RoBERTa and Longformer of Hugging Face with the same weights, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from contract import NUM_ITEMS, SMALL
from tiny import histories_of, random_histories
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LongformerConfig,
    LongformerModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from models.recformer import Recformer, RecformerConfig
from recsys.errors import ConfigError
from recsys.item_sentences import VALUE, ItemSentences
from recsys.text_encoder import encoder_shape, first_position, network_weights

SIZES = {
    "vocab_size": 50,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.5,
}
WIDTH = 9


def ours(theirs: Any, **settings: Any) -> Recformer:
    """Recformer with the network of a Hugging Face model, over sentences of random tokens."""
    shape = encoder_shape(theirs.config.to_dict())
    shared = {"num_items": NUM_ITEMS, "max_len": SMALL["max_len"], "max_tokens": 70, "max_attributes": 1}
    config = RecformerConfig(**shared | shape | {"attribute_tokens": WIDTH, "dropout": 0.0} | settings)
    model = Recformer(config).double().eval()
    model.learn_network(network_weights(theirs.state_dict(), first_position(theirs.config.to_dict())))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (NUM_ITEMS + 1, WIDTH), generator=generator)
    kinds = torch.full_like(ids, VALUE)
    kinds[torch.arange(WIDTH) >= torch.randint(1, WIDTH + 1, (NUM_ITEMS + 1, 1), generator=generator)] = 0
    kinds[0] = 0
    arrays = ids.numpy().astype(np.int32), kinds.numpy().astype(np.int8)
    model.learn_sentences(ItemSentences(*arrays, arrays[1] > 0), (3, theirs.config.pad_token_id, 4))
    return model


def randomised(network: Any) -> Any:
    """Biases and norms drawn too, so that none hides behind zero or one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.double().eval()


def histories() -> Any:
    return histories_of(random_histories(5, NUM_ITEMS, SMALL["max_len"], seed=3))


@torch.no_grad()
def test_states_and_masked_words_are_those_of_bert() -> None:
    torch.manual_seed(0)
    bert = randomised(BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=80)))
    model = ours(bert, objective="pretrain")
    batch = histories()
    text = model.text(batch.items, batch.lengths)
    theirs = bert.bert(text.ids, attention_mask=text.real.long()).last_hidden_state
    states = model.blocks(model._embedded(text), text.real)
    assert theirs.std() > 0.3
    assert_close(states[text.real], theirs[text.real], rtol=1e-9, atol=1e-9)
    assert_close(model.encode(batch) * model.config.temperature, F.normalize(theirs[:, 0], dim=1), rtol=1e-9, atol=1e-9)
    guesses = model.head_norm(F.gelu(model.head(states)))
    logits = guesses @ model.words.weight.T + model.head_bias
    expected = bert(text.ids, attention_mask=text.real.long()).logits
    assert_close(logits[text.real], expected[text.real], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_positions_of_roberta_begin_behind_its_padding_token() -> None:
    torch.manual_seed(0)
    roberta = randomised(
        RobertaForMaskedLM(RobertaConfig(**SIZES, max_position_embeddings=80, type_vocab_size=1, pad_token_id=1))
    )
    model = ours(roberta, objective="pretrain")
    batch = histories()
    text = model.text(batch.items, batch.lengths)
    theirs = roberta.roberta(text.ids, attention_mask=text.real.long()).last_hidden_state
    states = model.blocks(model._embedded(text), text.real)
    assert_close(states[text.real], theirs[text.real], rtol=1e-9, atol=1e-9)
    assert_close(model.head_norm.weight, roberta.lm_head.layer_norm.weight)


@torch.no_grad()
@pytest.mark.parametrize("window", [4, 16])
def test_states_are_those_of_longformer(window: int) -> None:
    torch.manual_seed(0)
    config = LongformerConfig(
        **SIZES, max_position_embeddings=90, attention_window=[window] * 2, type_vocab_size=1, pad_token_id=1
    )
    longformer = randomised(LongformerModel(config, add_pooling_layer=False))
    model = ours(longformer)
    batch = histories()
    text = model.text(batch.items, batch.lengths)
    assert text.ids.shape[1] > 3 * window
    looks_everywhere = torch.zeros_like(text.ids)
    looks_everywhere[:, 0] = 1
    theirs = longformer(
        text.ids, attention_mask=text.real.long(), global_attention_mask=looks_everywhere
    ).last_hidden_state
    states = model.blocks(model._embedded(text), text.real)
    assert_close(states[text.real], theirs[text.real], rtol=0, atol=5e-6)  # their softmax is in float32
    assert_close(model.encode(batch) * model.config.temperature, F.normalize(theirs[:, 0], dim=1), rtol=0, atol=5e-6)


@torch.no_grad()
def test_windows_with_shared_projections_are_dense_attention_while_all_is_inside() -> None:
    torch.manual_seed(0)
    bert = randomised(BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=80)))
    dense, windowed = ours(bert), ours(bert, attention_window=140)
    for block in windowed.blocks:
        block.of_first.load_state_dict(block.attention.qkv.state_dict())
    assert_close(windowed.encode(histories()), dense.encode(histories()), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_only_the_first_token_sees_beyond_the_window() -> None:
    torch.manual_seed(0)
    config = LongformerConfig(
        **SIZES | {"num_hidden_layers": 1}, max_position_embeddings=90, attention_window=[4], type_vocab_size=1
    )
    model = ours(randomised(LongformerModel(config, add_pooling_layer=False)))
    text = model.text(torch.tensor([[4, 8, 15, 16, 23, 42 % NUM_ITEMS, 1, 2, 3, 5]]), torch.tensor([10]))
    x = model._embedded(text)
    other = x.clone()
    other[:, 20] += 1
    change = (model.blocks(x, text.real) - model.blocks(other, text.real)).abs().amax(dim=2)[0] > 1e-9
    assert change.nonzero().flatten().tolist() == [0, 18, 19, 20, 21, 22]


def test_other_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"text encoder of type 'gpt2'.*only BERT, RoBERTa and Longformer"):
        encoder_shape({"model_type": "gpt2", "hidden_act": "gelu"})
    with pytest.raises(ConfigError, match=r"attention_window \[32, 64\]"):
        encoder_shape({"model_type": "longformer", "hidden_act": "gelu", "attention_window": [32, 64]})
