"""What ReaRec is trained on: ERL and PRL against their formulas, and one pass against one row a prefix."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from contract import (
    MAX_LEN,
    NUM_ITEMS,
    adamw_steps,
    random_batch,
    scrambled,
)
from reasoning import BACKBONES, PLAIN, make
from tiny import random_histories
from torch import Tensor
from torch.testing import assert_close

from models.rearec import ReaRec, ReasoningConfig, at_places, one_per_row, target_places
from recsys.batches import Histories, TrainBatch
from recsys.layers import Chains
from recsys.losses import LossConfig


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize("objective", ["erl", "prl", "last"])
def test_one_pass_over_a_window_trains_every_prefix_of_it(objective: str, form: str) -> None:
    """The release makes a row of each prefix; the mean over those rows is the loss of the window, gradients too."""
    model = scrambled(make({"objective": objective, "form": form, **PLAIN}, **BACKBONES["ours"])).double().train()
    batch = random_batch(model, rows=3)
    prefixes = [
        TrainBatch(
            batch.history[row : row + 1, : place + 1],
            batch.timestamps[row : row + 1, : place + 1],
            F.pad(batch.target[row : row + 1, place : place + 1], (place, 0)),
            torch.tensor([place + 1], dtype=torch.int32),
        )
        for row, place in batch.target.nonzero().tolist()
    ]
    one_by_one = torch.stack([model.loss(prefix) for prefix in prefixes]).mean()
    whole = model.loss(batch)
    assert_close(whole, one_by_one)
    for first, second in zip(
        *(torch.autograd.grad(loss, model.parameters()) for loss in (whole, one_by_one)), strict=True
    ):
        assert_close(first, second)


def test_a_bidirectional_backbone_reasons_behind_every_mask() -> None:
    """Each [mask] of a row by itself: the other chains of the row change nothing."""
    model = scrambled(make({"objective": "erl", **PLAIN}, mask_share=0.5, **BACKBONES["bert4rec"])).double()
    batch = random_batch(model, rows=3)
    losses = []
    for row, place in batch.target.nonzero().tolist():
        alone = torch.zeros_like(batch.target)
        alone[row, place] = batch.target[row, place]
        losses.append(model.loss(replace(batch, target=alone)))
    assert_close(model.loss(batch), torch.stack(losses).mean())


def states_of(model: ReaRec, batch: TrainBatch) -> Tensor:
    """Of histories that end at the batch's last events."""
    return model.reason(Histories(batch.history, batch.timestamps, batch.lengths))


def last_targets(model: Any, rows: int = 4, seed: int = 0) -> TrainBatch:
    """One target a row, behind its last event: what the release trains on."""
    batch = random_batch(model, rows=rows, seed=seed)
    last = torch.arange(batch.target.shape[1]) == batch.lengths[:, None] - 1
    return replace(batch, target=batch.target * last)


def cross_entropy(vectors: Tensor, model: ReaRec, batch: TrainBatch) -> Tensor:
    """Over the catalogue, without padding."""
    return F.cross_entropy((vectors @ model.item_vectors().T)[:, 1:], batch.target.sum(dim=1) - 1)


def test_prl_with_one_step_and_no_sharpening_is_the_sum_of_two_cross_entropies() -> None:
    model = scrambled(make({"steps": 1, "sharpening": 1.0, "contrast": 0.0}, temperature=0.7)).double()
    batch = last_targets(model)
    expected = sum(cross_entropy(state / 0.7, model, batch) for state in states_of(model, batch))
    assert_close(model.loss(batch), expected)


@pytest.mark.parametrize("form", ["released", "paper"])
def test_prl_is_softest_at_first(form: str) -> None:
    """Temperatures tau * alpha^(K - k): .5, alpha 5 and two steps give 12.5, 2.5, .5."""
    reasoning = {"steps": 2, "sharpening": 5.0, "contrast": 0.0, "form": form}
    model = scrambled(make(reasoning, temperature=0.5)).double()
    batch = last_targets(model)
    temperatures = (12.5, 2.5, 0.5)
    first, second, last = (
        cross_entropy(state / temperature, model, batch)
        for state, temperature in zip(states_of(model, batch), temperatures, strict=True)
    )
    expected = last + (first + second if form == "paper" else (first + second) / 2)
    assert_close(model.loss(batch), expected)


def test_contrast_of_one_row_is_nothing() -> None:
    model = scrambled(make({"contrast": 1.0}))
    batch = last_targets(model, rows=1)
    plain = scrambled(make({"contrast": 0.0}))
    assert_close(model.loss(batch), plain.loss(batch))


@pytest.mark.parametrize("form", ["released", "paper"])
def test_contrast_without_noise_compares_each_state_with_itself(form: str) -> None:
    """Log-sum-exp over the rows less the state's product with itself; mean of the steps, or their sum."""
    reasoning = {"steps": 2, "noise": 0.0, "form": form}
    model, plain = (
        scrambled(make({**reasoning, "contrast": weight}, temperature=2.0)).double() for weight in (0.3, 0.0)
    )
    batch = last_targets(model)
    similarity = [state @ state.T / 2.0 for state in states_of(model, batch)[1:]]
    each = torch.stack([(one.logsumexp(dim=1) - one.diagonal()).mean() for one in similarity])
    expected = each.sum() if form == "paper" else each.mean()
    assert_close(model.loss(batch) - plain.loss(batch), 0.3 * expected)


def test_noise_is_a_deviation_in_the_release_and_a_variance_in_the_paper() -> None:
    assert ReasoningConfig(noise=0.01).noise_deviation == 0.01
    assert ReasoningConfig(noise=0.01, form="paper").noise_deviation == pytest.approx(0.1)


def test_erl_is_the_mean_less_the_divergence() -> None:
    reasoning = {"objective": "erl", "diversity": 0.2}
    model = scrambled(make(reasoning, temperature=0.8)).double()
    batch = last_targets(model)
    states = states_of(model, batch)
    logs = [((state / 0.8) @ model.item_vectors()[1:].T).log_softmax(dim=1) for state in states]
    pairs = [F.kl_div(q, p, reduction="batchmean", log_target=True) for p in logs for q in logs if p is not q]
    expected = cross_entropy(states.mean(dim=0) / 0.8, model, batch) - 0.2 * torch.stack(pairs).mean()
    assert_close(model.loss(batch), expected)
    assert_close(model.encode(Histories(batch.history, batch.timestamps, batch.lengths)), states.mean(dim=0) / 0.8)


def test_divergence_and_contrast_take_one_history_a_row() -> None:
    """Drawn anew: over many batches every target of a row comes up, and rows without one never do."""
    valid = torch.tensor([[True, True, True], [False, False, False], [True, False, False]])
    torch.manual_seed(0)
    drawn = [one_per_row(valid) for _ in range(60)]
    assert all(rows.tolist() == [0, 2] for rows, _ in drawn)
    assert {columns[0].item() for _, columns in drawn} == {0, 1, 2}
    assert {columns[1].item() for _, columns in drawn} == {0}


def test_places_of_targets_come_first_and_in_order() -> None:
    places, valid = target_places(torch.tensor([[0, 7, 0, 3], [0, 0, 0, 0], [1, 0, 0, 0]]))
    assert places[0].tolist() == [1, 3]
    assert valid.tolist() == [[True, True], [False, False], [True, False]]


def test_the_second_view_has_dropout_of_its_own() -> None:
    """Without noise the contrast would be that of the states with themselves, were it not for dropout."""
    model = scrambled(make({"noise": 0.0}, dropout=0.5, temperature=5.0)).train()
    plain = scrambled(make({"noise": 0.0, "contrast": 0.0}, dropout=0.5, temperature=5.0)).train()
    batch = last_targets(model)
    torch.manual_seed(1)
    contrast = model.loss(batch).item()
    torch.manual_seed(1)
    contrast -= plain.loss(batch).item()
    torch.manual_seed(1)
    first, memory = model.backbone.remember(batch.history, batch.timestamps)
    places, valid = target_places(batch.target)
    chains = Chains(places, model._visible(batch.history, places))
    states = model._chain(at_places(first, places), memory, chains)[:, valid]
    similarity = [state @ state.T / 5.0 for state in states[1:]]
    one_view = torch.stack([(one.logsumexp(dim=1) - one.diagonal()).mean() for one in similarity]).mean().item()
    assert contrast != pytest.approx(one_view, rel=0.01)


def test_micro_batches_change_what_belongs_to_a_batch_and_nothing_else() -> None:
    """Without contrast the loss of two parts, weighed by targets, is that of the whole; with it, of other rows."""
    differences = []
    for contrast in (0.0, 1.0):
        model = scrambled(make({"noise": 0.0, "contrast": contrast}, temperature=3.0)).double()
        batch = last_targets(model, rows=6)
        parts = [batch.share(part, 2) for part in range(2)]
        weighed = sum(model.loss(part) * part.num_targets for part in parts) / batch.num_targets
        differences.append((model.loss(batch) - weighed).abs().item())
    assert differences[0] < 1e-9
    assert differences[1] > 0.01


@pytest.mark.parametrize("objective", ["erl", "prl"])
def test_bfloat16_gives_the_loss_of_float32(objective: str) -> None:
    """The contrast among states that are alike, and the divergence, would be the first to show rounding."""
    torch.manual_seed(0)
    model = make({"objective": objective, "diversity": 0.5, "noise": 0.0}, norm="both", temperature=4.0).eval()
    batch = last_targets(model, rows=9)
    exact = model.loss(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = model.loss(batch)
    assert_close(narrow.float(), exact, rtol=2e-2, atol=0)


@pytest.mark.parametrize("objective", ["erl", "prl"])
@pytest.mark.parametrize(
    "loss",
    [LossConfig(), LossConfig(kind="sampled-softmax", negatives=20), LossConfig(kind="gbce", negatives=9)],
    ids=lambda loss: loss.kind,
)
def test_it_learns_with_divergence_and_contrast(objective: str, loss: LossConfig) -> None:
    """Six histories by heart, negatives sampled or not."""
    torch.manual_seed(0)
    model = make({"objective": objective, "diversity": 0.01, "contrast": 0.1}, loss=loss)
    histories = random_histories(6, NUM_ITEMS, MAX_LEN, shortest=2)
    losses = adamw_steps(model, 60, lambda _: histories, rate=1e-2)
    assert losses[-1] < 0.75 * losses[0]
