"""Lists and policies that show them: how likely a policy is to show what a log holds, under an assumption on reading.

What a row of a list earns may depend on

    independent   its item and its place alone (Li et al., 2018): what counts is P(item at place)
    cascade       also on the rows above it (McInerney et al., 2020): P(this row and all above it)
    whole         on the whole list: P(list)

The weaker the assumption, the less a log says of another policy.
Dimensions: N rows of lists, those of a request next to each other and in order of place.
"""

from typing import Literal, get_args

import numpy as np

from recsys.errors import DataError
from recsys.metrics import FloatArray, IntArray

Reading = Literal["independent", "cascade", "whole"]
READINGS: tuple[Reading, ...] = get_args(Reading)


def row_weights(logged: FloatArray, target: FloatArray) -> FloatArray:
    """How much likelier another policy is to show each row [N]: its probability over the logged one."""
    if (bad := np.flatnonzero(~((logged > 0) & (logged <= 1 + 1e-9)))).size:
        raise DataError(
            f"off-policy: the logged propensity of row {bad[0]} is {logged[bad[0]]:g}; what was shown had a "
            "probability above 0 and at most 1."
        )
    if (bad := np.flatnonzero(~((target >= 0) & (target <= 1 + 1e-9)))).size:
        raise DataError(f"off-policy: the policy's probability of row {bad[0]} is {target[bad[0]]:g}, not in 0..1.")
    return target / logged


def joint(reading: Reading, rows: FloatArray, requests: IntArray) -> FloatArray:
    """What a reading looks at [N], from each row's probability given the rows above it [N].

    For `independent` they are handed back: exact for a policy without chance, whose rows do not depend on each other.
    """
    if reading == "independent":
        return rows
    starts = np.flatnonzero(np.r_[True, requests[1:] != requests[:-1]])
    if len(starts) > len(np.unique(requests)):
        raise DataError("off-policy: rows of a request are not next to each other; sort them by request and position.")
    sizes = np.diff(np.r_[starts, len(rows)])
    place = np.arange(len(rows)) - np.repeat(starts, sizes)
    running = rows.copy()
    for depth in range(1, int(place.max(initial=0)) + 1):
        at = np.flatnonzero(place == depth)
        running[at] *= running[at - 1]
    return running if reading == "cascade" else np.repeat(running[starts + sizes - 1], sizes)
