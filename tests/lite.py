"""Small Lite-LLM4Rec models, and tiny random language models for them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from contract import SMALL
from tiny import tiny_bert

from models.lite_llm4rec import LiteLLM4Rec, LiteLLM4RecConfig

TEXT = 40
WORDS = [f"w{number}" for number in range(12)]


def make(**settings: Any) -> LiteLLM4Rec:
    """A small model."""
    heads = 2 if "embedding_dim" in settings else 3
    small = SMALL | {"num_heads": heads, "text_width": TEXT, "id_dropout": 0.0}
    return with_texts(LiteLLM4Rec(LiteLLM4RecConfig(**small | settings)))


def with_texts(model: LiteLLM4Rec) -> LiteLLM4Rec:
    """The same with random text vectors of its items, the same every time, and as many events of each."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(model.config.num_items + 1, model.config.text_width, generator=generator)
    vectors[[0, 3]] = 0  # padding, and an item without text
    model.learn_texts(F.normalize(vectors, dim=1), np.full(len(vectors), 7, dtype=np.int64))
    return model


def tiny_language_models(place: Path) -> Path:
    """A folder of them, 12 numbers wide: `bert` with a tokeniser of `WORDS`, `gpt2`, `llama`, `t5`."""
    from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel, T5Config, T5Model

    tiny_bert(place / "bert", WORDS)
    gpt2 = GPT2Config(vocab_size=15, n_embd=12, n_layer=2, n_head=2, n_positions=40, bos_token_id=2, eos_token_id=3)
    sizes = {"vocab_size": 15, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2}
    llama = LlamaConfig(num_attention_heads=2, bos_token_id=2, eos_token_id=3, **sizes)
    t5 = T5Config(vocab_size=15, d_model=12, d_kv=6, d_ff=20, num_layers=2, num_heads=2)
    for name, model in (("gpt2", GPT2Model(gpt2)), ("llama", LlamaModel(llama)), ("t5", T5Model(t5))):
        model.save_pretrained(place / name)
        (place / name / "tokenizer.json").write_text("{}", encoding="utf-8")
    return place
