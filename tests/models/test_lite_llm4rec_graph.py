"""Graphs of Lite-LLM4Rec answer as torch does, pretrained layers and adapters included."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from contract import MAX_LEN, NUM_ITEMS
from lite import make, tiny_language_models
from tiny import histories_of, random_histories

from recsys.batches import Histories
from recsys.export import check_encoder, export_encoder, export_step


@pytest.mark.parametrize(
    ("backbone", "settings"),
    [("", {"head": "free", "cosine": True}), ("bert", {}), ("t5", {"backbone_lora": True})],
)
def test_its_graph_answers_as_torch(tmp_path: Path, backbone: str, settings: dict[str, Any]) -> None:
    if backbone:
        settings = settings | {"backbone": str(tiny_language_models(tmp_path) / backbone)}
    torch.manual_seed(0)
    model = make(**settings).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora" in name:
                weight.normal_(std=0.3)
    export_encoder(model, MAX_LEN, tmp_path / "encoder.onnx")
    if model.goes_on:
        export_step(model, MAX_LEN, tmp_path / "step.onnx")
    weights = [entry.name for entry in onnx.load(tmp_path / "encoder.onnx").graph.initializer]
    assert not any("lora" in name for name in weights), "adapters are part of the weights there"
    assert model.goes_on == (not backbone)
    histories = histories_of(random_histories(9, NUM_ITEMS, MAX_LEN))
    batch = Histories(histories.items, torch.zeros_like(histories.items), histories.lengths)
    assert check_encoder(model, tmp_path, batch) < 1e-5
