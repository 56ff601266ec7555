"""Golden figures for `test_off_policy_obp`: what Open Bandit Pipeline (obp 0.5.7) estimates from its own sample log.

Run it in an environment with benchmarks/peers/obp.txt (made by `benchmarks.peers.environments.obp_python`):

    build/peers/obp/bin/python tests/parity/obp_released.py tests/golden

It imports nothing of ours. The log is the sample of the Open Bandit Dataset (Saito et al., 2021, CC BY 4.0) that comes
with obp: 10,000 rows of a random policy and as many of Bernoulli Thompson sampling; lists are its synthetic slates.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import obp
from obp.dataset import OpenBanditDataset, SyntheticSlateBanditDataset, logistic_reward_function
from obp.ope import (
    DirectMethod,
    DoublyRobust,
    InverseProbabilityWeighting,
    RegressionModel,
    SelfNormalizedInverseProbabilityWeighting,
    SelfNormalizedSlateIndependentIPS,
    SelfNormalizedSlateRewardInteractionIPS,
    SelfNormalizedSlateStandardIPS,
    SlateIndependentIPS,
    SlateRewardInteractionIPS,
    SlateStandardIPS,
    SwitchDoublyRobust,
)
from obp.policy import BernoulliTS
from sklearn.linear_model import LogisticRegression

ITEMS, PLACES = 80, 3
CLIP = 1.2
"""Small enough to cut weights of both logs."""
ACTIONS = {
    "ips": InverseProbabilityWeighting(),
    "snips": SelfNormalizedInverseProbabilityWeighting(),
    "clipped": InverseProbabilityWeighting(lambda_=CLIP),
    "dm": DirectMethod(),
    "dr": DoublyRobust(),
    "switch-dr": SwitchDoublyRobust(lambda_=CLIP),
}
SLATES = {
    "independent": (
        SlateIndependentIPS(len_list=PLACES),
        SelfNormalizedSlateIndependentIPS(len_list=PLACES),
        "_item_position",
    ),
    "cascade": (
        SlateRewardInteractionIPS(len_list=PLACES),
        SelfNormalizedSlateRewardInteractionIPS(len_list=PLACES),
        "_cascade",
    ),
    "whole": (SlateStandardIPS(len_list=PLACES), SelfNormalizedSlateStandardIPS(len_list=PLACES), ""),
}


def action_log(behavior: str, policy: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Arrays of a sample log and every estimate of the policy [items, places] on it; rewards are predicted by item and
    place alone."""
    feedback = OpenBanditDataset(behavior_policy=behavior, campaign="all").obtain_batch_bandit_feedback()
    rounds = feedback["n_rounds"]
    model = RegressionModel(n_actions=ITEMS, len_list=PLACES, base_model=LogisticRegression(random_state=0))
    nothing = np.ones((rounds, 1))
    shown = {name: feedback[name] for name in ("action", "reward", "position", "pscore")}
    model.fit(nothing, shown["action"], shown["reward"], position=shown["position"])
    predicted = model.predict(nothing)
    arguments = {
        "action_dist": np.tile(policy, (rounds, 1, 1)),
        "estimated_rewards_by_reg_model": predicted,
        **shown,
    }
    figures = {name: float(estimator.estimate_policy_value(**arguments)) for name, estimator in ACTIONS.items()}
    arrays = {
        "action": shown["action"].astype(np.uint8),
        "reward": shown["reward"].astype(np.uint8),
        "position": shown["position"].astype(np.uint8),
        "pscore": shown["pscore"],
        "policy": policy,
        "predicted": predicted[0],
    }
    return arrays, figures


def slate_log() -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Arrays of a synthetic log of lists and every estimate of a random policy's list on it."""
    dataset = SyntheticSlateBanditDataset(
        n_unique_action=6,
        len_list=PLACES,
        dim_context=2,
        reward_type="binary",
        reward_structure="cascade_additive",
        click_model="cascade",
        base_reward_function=logistic_reward_function,
        random_state=0,
    )
    feedback = dataset.obtain_batch_bandit_feedback(n_rounds=500, return_pscore_item_position=True)
    ones = np.random.default_rng(0).normal(size=(500, 6))
    pscores = dataset.obtain_pscore_given_evaluation_policy_logit(
        action=feedback["action"], evaluation_policy_logit_=ones, return_pscore_item_position=True
    )
    arrays = {"slate_id": feedback["slate_id"].astype(np.int16), "position": feedback["position"].astype(np.uint8)}
    arrays["reward"] = feedback["reward"].astype(np.uint8)
    figures = {}
    for name, (plain, normalised, suffix) in SLATES.items():
        theirs, ours = dict(zip(("", "_item_position", "_cascade"), pscores, strict=True))[suffix], f"pscore{suffix}"
        arguments: dict[str, Any] = {
            "slate_id": feedback["slate_id"],
            "reward": feedback["reward"],
            "position": feedback["position"],
            ours: feedback[ours],
            f"evaluation_policy_{ours}": theirs,
        }
        figures[f"{name} ips"] = float(plain.estimate_policy_value(**arguments))
        figures[f"{name} snips"] = float(normalised.estimate_policy_value(**arguments))
        arrays |= {f"{name} logged": feedback[ours], f"{name} target": theirs}
    return arrays, figures


def main(folder: Path) -> None:
    """Writes open_bandit.npz and open_bandit.json."""
    logging.disable()
    sampling = BernoulliTS(
        n_actions=ITEMS, len_list=PLACES, is_zozotown_prior=True, campaign="all", random_state=12345
    ).compute_batch_action_dist(n_rounds=1, n_sim=100_000)[0]
    logs = {
        "random": action_log("random", sampling),
        "bts": action_log("bts", np.full((ITEMS, PLACES), 1 / ITEMS)),
        "slates": slate_log(),
    }
    arrays = {f"{name} {key}": values for name, (found, _) in logs.items() for key, values in found.items()}
    figures = {name: figures for name, (_, figures) in logs.items()}
    np.savez_compressed(folder / "open_bandit.npz", **arrays)
    content = {"obp": obp.__version__, "clip": CLIP, **figures}
    (folder / "open_bandit.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
