"""How well a search of a history finds the events that are worth most.

Dimensions: N searches, L events.
"""

import numpy as np
from jaxtyping import Bool, Float

from recsys.click_metrics import FloatArray


def search_ndcg_at_k(
    gains: Float[np.ndarray, "N L"], priorities: Float[np.ndarray, "N L"], visible: Bool[np.ndarray, "N L"], k: int
) -> FloatArray:
    """[N]: gains of the k events of the highest priority over 1 / log2(1 + rank), by those of the k greatest gains.

    Events that are not visible are never found; where all gains are zero the value is nan. Of equal priorities the
    earlier column comes first.
    """
    known = np.where(visible, gains, 0.0)
    order = np.argsort(-np.where(visible, priorities, -np.inf), axis=1, kind="stable")[:, :k]
    discounts = 1 / np.log2(2 + np.arange(order.shape[1]))
    found = (np.take_along_axis(known, order, axis=1) * discounts).sum(axis=1)
    ideal = (-np.sort(-known, axis=1)[:, :k] * discounts).sum(axis=1)
    return np.divide(found, ideal, out=np.full(len(found), np.nan), where=ideal > 0)
