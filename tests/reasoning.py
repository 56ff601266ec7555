"""Small ReaRec models for tests."""

from typing import Any

import torch
from contract import (
    SMALL,
)
from torch import Tensor, nn

from models.rearec import ReaRec, ReaRecConfig, ReasoningConfig
from recsys.layers import Chains

PLAIN = {"diversity": 0.0, "contrast": 0.0}
"""Without what is added for one history a row alone."""
BACKBONES = {
    "sasrec": {},
    "released": {"norm": "post", "input_norm": True, "activation": "gelu"},
    "ours": {"norm": "both", "positions": "none", "recency": 0.25, "sink": True},
    "rotary": {"positions": "rotary", "embedding_dim": 12, "num_heads": 2},
    "bert4rec": {"backbone": "bert4rec", "norm": "post"},
}


class Opened(ReaRec):
    """With the names that the contracts look at."""

    @property
    def items(self) -> nn.Embedding:
        return self.backbone.items

    @property
    def positions(self) -> nn.Embedding | None:
        return self.backbone.positions

    def predictions(self, states: Tensor) -> Tensor:
        return states

    def hidden_states(self, history: Tensor, timestamps: Tensor) -> Tensor:
        """The answer after each event: one chain behind each."""
        states, memory = self.backbone.remember(history, timestamps)
        places = torch.arange(history.shape[1]).expand(len(history), -1)
        return self.answer(self._chain(states, memory, Chains(places, self._visible(history, places))))


def make(reasoning: dict[str, Any] | None = None, **settings: Any) -> Opened:
    """A small model that thinks two steps."""
    sizes = {"num_heads": 2 if "embedding_dim" in settings else 3}
    return Opened(ReaRecConfig(**SMALL | sizes | settings, reasoning=ReasoningConfig(**reasoning or {})))
