"""Trials on disk: suggestions that learn, the same in pieces as in one piece."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sweeping import make

from pipelines.space import Choices, Range, Space
from pipelines.trials import Figures, Trial, open_trials


def suggested(folder: Path, searched: Mapping[str, Range | Choices], pieces: Sequence[int]) -> list[Trial]:
    """Trials whose value is how near `model.near` comes to 0.7; the storage is opened anew for each piece."""
    for number in pieces:
        with open_trials(folder, Space(source="test", searched=searched)) as trials:
            for _ in range(number):
                trial = trials.suggest(seed=3)
                value = 1 - abs(trial.params["model.near"] - 0.7)
                trials.complete(trial, Figures(value=value, best_epoch=1, seconds=1.0, by_epoch=[value]))
            done = trials.all()
    return done


def test_suggestions_learn_from_the_trials_before(tmp_path: Path) -> None:
    """They come closer to the best value than the first ten, and stay in their ranges and types."""
    searched = {
        "model.kind": Choices(("a", None, True, 1.5)),
        "model.near": Range(low=0.0, high=1.0),
        "model.rate": Range(low=1e-4, high=1e-2, log=True),
        "model.stepped": Range(low=0.1, high=0.5, step=0.2),
        "model.whole": Range(low=2, high=8, step=3),
    }
    whole = suggested(make(tmp_path / "whole"), searched, (16,))
    assert suggested(make(tmp_path / "pieces"), searched, (7, 9)) == whole
    misses = [abs(trial.params["model.near"] - 0.7) for trial in whole]
    assert np.mean(misses[10:]) < 0.6 * np.mean(misses[:10])
    assert [trial.number for trial in whole] == list(range(16))
    assert {trial.epochs for trial in whole} == {1}
    for trial in whole:
        assert list(trial.params) == sorted(searched)
        assert trial.params["model.kind"] in searched["model.kind"].examples()
        assert 1e-4 <= trial.params["model.rate"] <= 1e-2
        assert min(abs(trial.params["model.stepped"] - value) for value in (0.1, 0.3, 0.5)) < 1e-9
        assert trial.params["model.whole"] in {2, 5, 8}
        assert isinstance(trial.params["model.whole"], int)
