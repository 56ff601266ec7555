"""Losses over the catalogue against their formulas, position by position: values and gradients."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_problems import Problem, drawn_loss, problem
from torch import Tensor
from torch.testing import assert_close

from recsys import losses
from recsys.errors import ConfigError
from recsys.losses import (
    CatalogLoss,
    LossConfig,
    accidental_hits,
    binary_cross_entropy,
    generalised_binary_cross_entropy,
    positive_power,
    sampled_softmax,
    softmax_cross_entropy,
)
from recsys.negatives import Negatives

KINDS = ("softmax", "sampled-softmax", "gbce", "bce")
SIZES = {
    "count": st.integers(1, 9),
    "width": st.integers(1, 5),
    "items": st.integers(3, 12),
    "seed": st.integers(0, 2**32),
    "scale": st.sampled_from([1.0, 60.0]),
}
"""`scale` is of the states: small scores go through the exponential as they are, large ones less their maximum."""


def shared_negatives(task: Problem, seed: int = 0) -> Negatives:
    """Half the items, some of them targets, each with a weight of its own."""
    items = len(task.table) - 1
    generator = torch.Generator().manual_seed(seed + 1)
    drawn = (1 + torch.randperm(items, generator=generator)[: max(2, items // 2)]).sort().values
    return Negatives(drawn, torch.randn(len(drawn), generator=generator, dtype=torch.float64))


def assert_same(ours: Tensor, theirs: Tensor, task: Problem) -> None:
    """Equal values and gradients."""
    assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert_close(
        torch.autograd.grad(ours, (task.states, task.table), retain_graph=True),
        torch.autograd.grad(theirs, (task.states, task.table), retain_graph=True),
        rtol=1e-9,
        atol=1e-9,
    )


def softmax_by_hand(task: Problem) -> Tensor:
    """-s_t + log of the sum over all items but padding."""
    scores = task.scores()
    return torch.stack([
        torch.logsumexp(scores[row, 1:], 0) - scores[row, target] for row, target in enumerate(task.target)
    ]).mean()


def sampled_by_hand(task: Problem, negatives: Negatives) -> Tensor:
    """The same over the target and weighted negatives, of which the target is none."""
    scores, terms = task.scores(), []
    for row, target in enumerate(task.target.tolist()):
        drawn = zip(negatives.items.tolist(), negatives.log_weight, strict=True)
        others = [scores[row, item] + log_weight for item, log_weight in drawn if item != target]
        terms.append(torch.logsumexp(torch.stack([scores[row, target], *others]), 0) - scores[row, target])
    return torch.stack(terms).mean()


def softplus(score: Tensor) -> Tensor:
    """-log(1 - sigma(s)) = log(1 + exp(s)), without overflow."""
    return torch.logaddexp(score, torch.zeros_like(score))


def gbce_by_hand(task: Problem, negatives: Negatives, beta: float) -> Tensor:
    """Minus the mean over M + 1 logits of beta log sigma(s_t) and log(1 - sigma(s_j))."""
    scores, terms = task.scores(), []
    for row, target in enumerate(task.target.tolist()):
        others = [-softplus(scores[row, item]) for item in negatives.items.tolist() if item != target]
        own = -beta * softplus(-scores[row, target])
        terms.append(-(own + sum(others)) / (len(negatives.items) + 1))
    return torch.stack(terms).mean()


@given(chunk=st.integers(1, 70), **SIZES)
def test_softmax_is_its_formula(count: int, width: int, items: int, seed: int, scale: float, chunk: int) -> None:
    """With chunks from less than one row's logits to more than all."""
    task = problem(count, width, items, seed, scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "CPU_LOGITS", chunk)
        assert_same(softmax_cross_entropy(task.states, task.table, task.target), softmax_by_hand(task), task)


@given(chunk=st.integers(1, 70), weighted=st.booleans(), **SIZES)
def test_sampled_softmax_is_its_formula(
    count: int, width: int, items: int, seed: int, scale: float, chunk: int, weighted: bool
) -> None:
    """Negatives that are a position's target do not count there, but do elsewhere."""
    task = problem(count, width, items, seed, scale)
    negatives = shared_negatives(task, seed)
    if not weighted:
        negatives = Negatives(negatives.items, torch.zeros(len(negatives.items)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "CPU_LOGITS", chunk)
        ours = sampled_softmax(task.states, task.vectors, task.target, negatives)
        assert_same(ours, sampled_by_hand(task, negatives), task)


@given(calibration=st.floats(0, 1), **SIZES)
def test_gbce_is_its_formula(count: int, width: int, items: int, seed: int, scale: float, calibration: float) -> None:
    task = problem(count, width, items, seed, scale)
    negatives = shared_negatives(task, seed)
    beta = positive_power(len(negatives.items), items, calibration)
    ours = generalised_binary_cross_entropy(task.states, task.vectors, task.target, negatives, beta)
    assert_same(ours, gbce_by_hand(task, negatives, beta), task)


@given(**SIZES)
def test_bce_is_its_published_formula(count: int, width: int, items: int, seed: int, scale: float) -> None:
    """-(log sigma(s_t) + log(1 - sigma(s_j))), each position with a negative of its own."""
    task = problem(count, width, items, seed, scale)
    drawn = torch.randint(1, items + 1, (count,), generator=torch.Generator().manual_seed(seed))
    ours = binary_cross_entropy(task.states, task.vectors, task.target, Negatives(drawn, torch.zeros(count)))
    scores, rows = task.scores(), torch.arange(count)
    published = (softplus(-scores[rows, task.target]) + softplus(scores[rows, drawn])).mean()
    assert_same(ours, published, task)


def test_hits_are_found_where_they_are() -> None:
    negatives = Negatives(torch.tensor([2, 5, 9]), torch.zeros(3))
    assert accidental_hits(negatives, torch.tensor([9, 1, 2, 3, 5, 10])).tolist() == [2, -1, 0, -1, 1, -1]


def test_where_every_negative_is_the_target_nothing_is_left_to_lose() -> None:
    """In-batch negatives of a batch with one item."""
    task = problem(3, 4, 5)
    negatives = Negatives(torch.tensor([2]), torch.zeros(1))
    loss = sampled_softmax(task.states, task.vectors, torch.full((3,), 2), negatives)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(loss, task.states)[0].abs().max() < 1e-12


def test_sampled_softmax_over_all_other_items_is_the_full_softmax() -> None:
    task = problem(1, 4, 9)
    others = torch.tensor([item for item in range(1, 10) if item != task.target.item()])
    ours = sampled_softmax(task.states, task.vectors, task.target, Negatives(others, torch.zeros(8)))
    assert_same(ours, softmax_by_hand(task), task)


def test_a_draw_of_the_whole_catalogue_is_the_full_softmax() -> None:
    """Through the sampler, whose weights are 1 then; each position leaves its own target out."""
    task = problem(7, 4, 9)
    sampled = CatalogLoss(LossConfig(kind="sampled-softmax", negatives=9), 9)
    negatives = sampled.negatives(task.target[None].numpy(), np.random.default_rng(0))
    assert_same(sampled(task.states, task.vectors, task.target, negatives), softmax_by_hand(task), task)


def test_powers_are_those_of_the_published_example() -> None:
    """ML-1M with 256 negatives, as the paper's repository states them."""
    rate = 256 / 3415
    assert rate == pytest.approx(0.07496, abs=5e-6)
    assert positive_power(256, 3416, 0.75) == pytest.approx(0.30622, abs=5e-6)
    assert positive_power(256, 3416, 1.0) == pytest.approx(rate, rel=1e-12)
    assert positive_power(256, 3416, 0.0) == pytest.approx(1.0, rel=1e-12)


def test_gbce_equals_the_form_of_its_authors() -> None:
    """They move the target's logit to log(1 / (sigma(s)^-beta - 1)) and take the usual binary cross-entropy."""
    task, beta = problem(6, 4, 40), 0.30622
    drawn = torch.tensor([item for item in range(1, 41, 2) if item not in task.target.tolist()])
    negatives = Negatives(drawn, torch.zeros(len(drawn)))
    scores = task.scores()
    own = scores.gather(1, task.target[:, None])
    moved = torch.log(1 / (torch.sigmoid(own) ** -beta - 1))
    logits = torch.cat([moved, scores[:, drawn]], dim=1)
    truth = torch.zeros_like(logits)
    truth[:, 0] = 1
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
    ours = generalised_binary_cross_entropy(task.states, task.vectors, task.target, negatives, beta)
    assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_gbce_without_calibration_is_mean_binary_cross_entropy() -> None:
    task = problem(6, 4, 40)
    drawn = torch.tensor([item for item in range(1, 41, 2) if item not in task.target.tolist()])
    loss = CatalogLoss(LossConfig(kind="gbce", negatives=len(drawn), calibration=0.0), 40)
    ours = loss(task.states, task.vectors, task.target, Negatives(drawn, torch.zeros(len(drawn))))
    scores = torch.cat([task.scores().gather(1, task.target[:, None]), -task.scores()[:, drawn]], dim=1)
    assert_same(ours, -torch.log(torch.sigmoid(scores)).mean(), task)


def by_hand(kind: str, task: Problem, negatives: Negatives | None, config: LossConfig) -> Tensor:
    """The loss that `config` names, by its formula."""
    if negatives is None:
        return softmax_by_hand(task)
    if kind == "sampled-softmax":
        return sampled_by_hand(task, negatives)
    rate = config.negatives / (len(task.table) - 2)
    beta = rate * (config.calibration * (1 - 1 / rate) + 1 / rate)
    if kind == "gbce":
        return gbce_by_hand(task, negatives, beta)
    rows = torch.arange(len(task.target))
    own, other = (torch.sigmoid(task.scores()[rows, item]) for item in (task.target, negatives.items))
    return -(own.log() + (1 - other).log()).mean()


@pytest.mark.parametrize("log_q", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_configured_loss_is_the_one_computed(kind: str, log_q: bool) -> None:
    task = problem(7, 4, 19)
    config = LossConfig(kind=kind, negatives=5, calibration=0.6, log_q=log_q)  # type: ignore[arg-type]
    loss = CatalogLoss(config, 19)
    negatives = loss.negatives(task.target[None].numpy(), np.random.default_rng(0))
    assert (negatives is None) == (kind == "softmax")
    positions = torch.ones(1, 7, dtype=torch.bool)
    used = None if negatives is None else negatives.at(positions)
    if used is not None:
        used = replace(used, log_weight=used.log_weight.double())  # or the weights would be exact to seven digits only
    assert_same(loss(task.states, task.vectors, task.target, used), by_hand(kind, task, used, config), task)


@pytest.mark.parametrize("kind", KINDS)
def test_without_positions_loss_and_gradients_are_zero(kind: str) -> None:
    task = problem(0, 3, 8)
    loss = (
        drawn_loss(kind, task)()
        if kind == "softmax"
        else CatalogLoss(
            LossConfig(kind=kind, negatives=3),
            8,  # type: ignore[arg-type]
        )(
            task.states,
            task.vectors,
            task.target,
            Negatives(torch.zeros(0, dtype=torch.int64), torch.zeros(0))
            if kind == "bce"
            else Negatives(torch.tensor([1, 4, 6]), torch.zeros(3)),
        )
    )
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (task.states, task.table)))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CPU_LOGITS", 13)
    task = problem(6, 3, 8, seed=1)
    compute = drawn_loss(kind, task)
    assert torch.autograd.gradcheck(lambda *_: compute(), (task.states, task.table))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_scaled_loss_is_scaled(kind: str) -> None:
    task = problem(6, 3, 8, seed=1)
    once = torch.autograd.grad(drawn_loss(kind, task)(), (task.states, task.table))
    thrice = torch.autograd.grad(3 * drawn_loss(kind, task)(), (task.states, task.table))
    for first, second in zip(once, thrice, strict=True):
        assert_close(3 * first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_no_class(kind: str) -> None:
    """However well row 0 fits, neither the loss nor any gradient knows of it."""
    task = problem(6, 3, 8, seed=2)
    compute = drawn_loss(kind, task)
    before = compute().item()
    with torch.no_grad():
        task.table[0] = 1e6
    assert compute().item() == before
    assert not torch.autograd.grad(compute(), task.table)[0][0].any()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("softmax", 8.136),
        ("sampled-softmax", 8.136),
        ("bce", 1.386),
        ("gbce", math.log(2) * (256 + 0.30622) / 257),
    ],
)
def test_equal_scores_cost_what_the_sheet_says(kind: str, expected: float) -> None:
    """ML-1M's 3,416 items: ln I, 2 ln 2, and one ln 2 a logit."""
    states, table = torch.zeros(50, 4, requires_grad=True), torch.randn(3417, 4)
    task = Problem(states, table, torch.randint(1, 3417, (50,), generator=torch.Generator().manual_seed(0)))
    assert drawn_loss(kind, task, num_negatives=256)().item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_large_scores_do_not_overflow(kind: str) -> None:
    exact = problem(6, 3, 8, seed=3)
    states = (exact.states.detach() * 1e3).requires_grad_()
    task = Problem(states, exact.table, exact.target)
    single = Problem(states.detach().float().requires_grad_(), exact.table.detach().float(), exact.target)
    value = drawn_loss(kind, single)()
    assert value.item() > 10
    assert value.item() == pytest.approx(drawn_loss(kind, task)().item(), rel=1e-5)
    assert torch.autograd.grad(value, single.states)[0].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_close(kind: str) -> None:
    """Matrix products lose digits, sums over positions and items do not."""
    exact = problem(300, 16, 50, seed=4)
    task = Problem(exact.states.detach().float().requires_grad_(), exact.table.detach().float(), exact.target)
    task.table.requires_grad_()
    truth = drawn_loss(kind, exact, 20)()
    with torch.autocast("cpu", torch.bfloat16):
        loss = drawn_loss(kind, task, 20)()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(truth.item(), rel=2e-3)
    ours = torch.autograd.grad(loss, (task.states, task.table))
    theirs = torch.autograd.grad(truth, (exact.states, exact.table))
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - reference).norm() < 0.02 * reference.norm()


def test_bfloat16_keeps_the_small_gradients_of_confident_predictions() -> None:
    """Where the target is all but certain, its share and its vector must cancel in float32."""
    exact = problem(300, 16, 50, seed=4)
    with torch.no_grad():
        exact.states.copy_(1.2 * exact.table[exact.target])
    task = Problem(exact.states.detach().float().requires_grad_(), exact.table.detach().float(), exact.target)
    truth = softmax_cross_entropy(exact.states, exact.table, exact.target)
    assert truth.item() < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        loss = softmax_cross_entropy(task.states, task.table, task.target)
    assert loss.item() == pytest.approx(truth.item(), rel=0.02)
    (ours,), (theirs,) = torch.autograd.grad(loss, task.states), torch.autograd.grad(truth, exact.states)
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negatives": 1}, "negatives=1 must be at least 2"),
        ({"calibration": 1.5}, r"calibration=1.5 must lie in \[0, 1\]"),
        ({"calibration": math.nan}, r"calibration=nan must lie in \[0, 1\]"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=f"LossConfig: {message}"):
        LossConfig(**settings)  # type: ignore[arg-type]
