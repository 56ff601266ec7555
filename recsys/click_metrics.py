"""Metrics of click prediction; rows [N] hold a label (1 was clicked) and a score or probability."""

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
SMALLEST = 1e-15
BINS = 10


def auc(labels: IntArray, scores: FloatArray) -> float:
    """Probability that a click stands above a row without one; equal scores count half."""
    values, _ = auc_by_group(np.zeros(len(labels), dtype=np.int64), labels, scores)
    if not len(values):
        raise DataError(f"auc: {len(labels)} rows, {int(labels.sum())} of them clicks; both kinds are needed.")
    return float(values[0])


def gauc(users: IntArray, labels: IntArray, scores: FloatArray) -> float:
    """Mean AUC of users, weighted by their rows; users with one kind of row do not count."""
    values, rows = auc_by_group(users, labels, scores)
    if not len(values):
        raise DataError(f"gauc: none of {len(np.unique(users))} users has clicks and other rows; both are needed.")
    return float(np.average(values, weights=rows))


def auc_by_group(groups: IntArray, labels: IntArray, scores: FloatArray) -> tuple[FloatArray, IntArray]:
    """AUC and rows of each group that has both kinds, from mid-ranks within the group (Mann & Whitney, 1947)."""
    _, groups = np.unique(groups, return_inverse=True)
    if not np.isfinite(scores).all():
        raise DataError("auc: some scores are no numbers; the model has diverged.")
    distinct, order = np.unique(scores, return_inverse=True)
    _, place, times = np.unique(groups * len(distinct) + order, return_inverse=True, return_counts=True)
    middle = np.cumsum(times) - (times - 1) / 2
    rows = np.bincount(groups)
    ranks = middle[place] - (np.cumsum(rows) - rows)[groups]
    clicks = np.bincount(groups, labels)
    others = rows - clicks
    wins = np.bincount(groups, ranks * labels) - clicks * (clicks + 1) / 2
    both = (clicks > 0) & (others > 0)
    return wins[both] / (clicks * others)[both], rows[both]


def logloss(labels: IntArray, probabilities: FloatArray) -> float:
    """Mean of -log of what was predicted for what happened."""
    right = np.where(labels == 1, probabilities, 1 - probabilities)
    return float(-np.log(np.maximum(right, SMALLEST)).mean())


def calibration(labels: IntArray, probabilities: FloatArray) -> float:
    """Clicks predicted for one that happened: above 1 the model promises too much."""
    return float(probabilities.sum() / labels.sum())


def calibration_error(labels: IntArray, probabilities: FloatArray) -> float:
    """Mean distance between prediction and share of clicks over ten bins of as many rows, lowest predictions first."""
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    distances = [abs(probabilities[part].mean() - labels[part].mean()) for part in parts]
    return float(np.average(distances, weights=[len(part) for part in parts]))


def click_metrics(users: IntArray, labels: IntArray, logits: FloatArray) -> dict[str, float]:
    """All of them, from logits."""
    probabilities = 1 / (1 + np.exp(-logits))
    return {
        **order_metrics(users, labels, logits),
        "logloss": logloss(labels, probabilities),
        "calibration": calibration(labels, probabilities),
        "calibration_error": calibration_error(labels, probabilities),
    }


def order_metrics(users: IntArray, labels: IntArray, scores: FloatArray) -> dict[str, float]:
    """Those that need no probability."""
    return {"auc": auc(labels, scores), "gauc": gauc(users, labels, scores)}
