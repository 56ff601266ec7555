"""Our estimates equal those of Open Bandit Pipeline on its own sample log; `obp_released.py` remakes its figures."""

import json
from pathlib import Path

import numpy as np
import pytest

from recsys.off_policy import LOGGED, Logged, estimators
from recsys.slate_policy import READINGS, joint, row_weights

GOLDEN = Path(__file__).parent.parent / "golden"
THEIRS = json.loads((GOLDEN / "open_bandit.json").read_text(encoding="utf-8"))
ARRAYS = dict(np.load(GOLDEN / "open_bandit.npz"))


def values(log: Logged) -> dict[str, float]:
    return {entry.name: entry.value for entry in estimators(log, THEIRS["clip"]) if entry.name != LOGGED}


@pytest.mark.parametrize("name", ["random", "bts"])
def test_estimates_of_actions_are_theirs(name: str) -> None:
    log = {key.removeprefix(f"{name} "): array for key, array in ARRAYS.items() if key.startswith(f"{name} ")}
    item, place, policy = log["action"], log["position"], log["policy"]
    rows = np.arange(len(item))
    found = values(
        Logged(
            users=rows,
            requests=rows,
            positions=np.zeros_like(rows),
            rewards=log["reward"].astype(float),
            weights=row_weights(log["pscore"], policy[item, place]),
            predicted=log["predicted"][item, place],
            expected=(policy * log["predicted"]).sum(axis=0)[place],
        )
    )
    assert len(item) == 10_000
    assert found == pytest.approx(THEIRS[name], rel=0, abs=1e-8)
    assert len({round(value, 6) for value in found.values()}) == 6, "a log on which estimators agree proves little"


@pytest.mark.parametrize("reading", READINGS)
def test_estimates_of_lists_are_theirs(reading: str) -> None:
    requests = ARRAYS["slates slate_id"].astype(np.int64)
    weights = row_weights(ARRAYS[f"slates {reading} logged"], ARRAYS[f"slates {reading} target"])
    found = values(
        Logged(
            users=requests,
            requests=requests,
            positions=ARRAYS["slates position"].astype(np.int64),
            rewards=ARRAYS["slates reward"].astype(float),
            weights=weights,
        )
    )
    for name in ("ips", "snips"):
        assert found[name] == pytest.approx(THEIRS["slates"][f"{reading} {name}"], rel=0, abs=1e-8)


def test_probabilities_of_rows_become_those_of_what_is_read() -> None:
    requests, prefix = ARRAYS["slates slate_id"].astype(np.int64), ARRAYS["slates cascade target"]
    above = np.where(ARRAYS["slates position"] == 0, 1.0, np.r_[1.0, prefix[:-1]])
    given_above = prefix / above
    np.testing.assert_allclose(joint("cascade", given_above, requests), prefix, rtol=1e-12)
    np.testing.assert_allclose(joint("whole", given_above, requests), ARRAYS["slates whole target"], rtol=1e-12)
