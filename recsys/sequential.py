"""Statements that hold however often one looks: an interval for a difference, and a test of the split.

The interval is the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas (2024, Annals of
Statistics 52), the normal mixture of Robbins (1970) that is also behind the mSPRT of Johari, Pekelis & Walsh (2015):
the chance that it ever leaves the truth out, at any number of users, is at most LEVEL.
Dimensions: U users, A variants.
"""

import numpy as np

from recsys.metrics import FloatArray, IntArray
from recsys.resampling import LEVEL

PRIOR_USERS = 100.0
"""How many users' evidence for the intended split the alternative begins with."""


def tuning(planned: int) -> float:
    """The mixture's rho squared that makes intervals the narrowest at so many users (their equation 10)."""
    return (-2 * np.log(LEVEL) + np.log(1 - 2 * np.log(LEVEL))) / planned


def radius(standard_error: float, users: int, planned: int) -> float:
    """Half the length of the interval at `users` users, fixed before the first look but for these two arguments."""
    scaled = users * tuning(planned)
    return float(standard_error * np.sqrt((1 + 1 / scaled) * np.log((1 + scaled) / LEVEL**2)))


def p_value(difference: float, standard_error: float, users: int, planned: int) -> float:
    """Valid at every look: at most LEVEL just where the interval leaves 0 out."""
    if not standard_error:
        return float(difference == 0)
    scaled, z = users * tuning(planned), difference / standard_error
    return float(min(1.0, np.sqrt(1 + scaled) * np.exp(-(z**2) * scaled / (2 * (1 + scaled)))))


def split_p_values(variants: IntArray, shares: FloatArray) -> FloatArray:
    """Of the hypothesis that each user [U], in order of arrival, was given to a variant by `shares` [U, A]; [U], after
    each user, valid at every look.

    1 over the largest value so far of a test martingale: what a forecaster wins who bets that the variants go on being
    as far above or below their shares as they were (as Lindon & Malek, 2022, for shares that stay the same).
    """
    given = variants[:, None] == np.arange(shares.shape[1])
    before, due = (np.cumsum(table, axis=0) - table for table in (given.astype(np.float64), shares))
    bets = shares * (PRIOR_USERS * shares + before) / (PRIOR_USERS * shares + due)
    bets /= bets.sum(axis=1, keepdims=True)
    rows = np.arange(len(variants))
    wealth = np.cumsum(np.log(bets[rows, variants]) - np.log(shares[rows, variants]))
    return np.exp(-np.maximum(0, np.maximum.accumulate(wealth)))
