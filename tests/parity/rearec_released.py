"""Runs the authors' ReaRec for `test_rearec_released`: settings and our weights come on stdin, figures go to stdout.

It imports nothing of ours, whose packages have the same names as theirs.
"""

import json
import sys
from argparse import Namespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor, nn

LONGEST = 50
NAMES = {
    "backbone.positions.weight": "pos_emb.weight",
    "backbone.embedding_norm": "model.LayerNorm",
    "step_vectors.weight": "model.reason_pos_emb.weight",
    "backbone.blocks.blocks": "trm_encoder.layer",
    "attention.out": "multi_head_attention.dense",
    "attention_residual.norm": "multi_head_attention.LayerNorm",
    "ffn.inner": "feed_forward.dense_1",
    "ffn.outer": "feed_forward.dense_2",
    "ffn_residual.norm": "feed_forward.LayerNorm",
}
ITEMS = "backbone.items.weight"
PADDING = -100.0
"""In the dimension that every state holds at 5."""


def known_noise(like: Tensor, **_: Any) -> Tensor:
    """In place of a normal draw."""
    return torch.from_numpy(np.sin(3 + np.arange(like.numel()))).reshape(like.shape)


def their_names(name: str) -> list[str]:
    """Which of their parameters one of ours is; ours of query, key and value are one."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    if "attention.qkv" not in name:
        return [name]
    return [name.replace("attention.qkv", f"multi_head_attention.{part}_layer") for part in ("query", "key", "value")]


def load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Our weights in their network; rows of items move up by one, and padding goes last."""
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            if name == ITEMS:
                theirs["item_emb.weight"][:-1] = weight[1:]
                theirs["item_emb.weight"][-1] = 0
                theirs["item_emb.weight"][-1, 0] = PADDING
            elif name == "backbone.positions.weight":
                theirs["pos_emb.weight"][:-1] = weight
            else:
                parts = their_names(name)
                for part, values in zip(parts, weight.chunk(len(parts)), strict=True):
                    theirs[part].copy_(values)


def gradients(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, list[Any]]:
    """Their gradients under our names and in our layout; that of our padding row is zero."""
    theirs = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = {}
    for name in weights:
        if name == ITEMS:
            rows = theirs["item_emb.weight"][:-1]
            found[name] = torch.cat([torch.zeros_like(rows[:1]), rows]).tolist()
        elif name == "backbone.positions.weight":
            found[name] = theirs["pos_emb.weight"][:-1].tolist()
        else:
            found[name] = torch.cat([theirs[part] for part in their_names(name)]).tolist()
    return found


def main() -> None:
    """One objective."""
    sys.path.insert(0, sys.argv[1])
    sys.modules.update({name: MagicMock() for name in ("utils.utils", "helpers.BaseReader")})  # they ask for an API key
    from models import ERL, PRL

    given = json.load(sys.stdin)
    weights = {name: torch.tensor(values, dtype=torch.float64) for name, values in given["weights"].items()}
    torch.randn_like = known_noise
    settings = Namespace(
        emb_size=given["width"], num_layers=2, num_heads=2, inner_size=given["ffn"], dropout=0.0, hidden_act="gelu",
        layer_norm_eps=1e-12, initializer_range=0.02, temperature=given["temperature"], reason_step=given["steps"],
        el_weight=0.0, warmup=0, kl_weight=0.05, pl_weight=1.0, temp_scale=5.0, noise_factor=0.01, cl_weight=1.0,
        device=torch.device("cpu"), model_path="", buffer=0, test_all=1,
    )  # fmt: skip
    kinds = {"erl": ERL.ERL, "prl": PRL.PRL}
    model = kinds[given["objective"]](settings, Namespace(n_users=4, n_items=given["num_items"] + 1)).double()
    model.noise_factor = 0.0 if given["objective"] == "erl" else 0.01  # ERL reads a setting that it never sets
    model.model.dropout.p = 0.0
    load(model, weights)
    padding = given["num_items"]
    histories = torch.full((len(given["histories"]), LONGEST), padding)
    for row, items in enumerate(given["histories"]):
        histories[row, LONGEST - len(items) :] = torch.tensor(items) - 1
    batch = {
        "history_id": histories,
        "item_seq_len": torch.tensor([len(items) for items in given["histories"]]),
        "item_id": torch.tensor(given["targets"]) - 1,
    }
    answer = model(batch, epoch=1, stage="train")
    loss = model.loss(answer)
    loss.backward()
    states = answer["model_output"][: len(histories)].tolist()
    print(json.dumps({"states": states, "loss": loss.item(), "gradients": gradients(model, weights)}))


main()
