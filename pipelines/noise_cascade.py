"""From what detectors say to probabilities: calibration on noise put in by ourselves, cheap detectors before dear ones.

Into each of the very windows that are to be judged one item is put, drawn uniformly, so that it stands beside as much
noise as the log's own does; it is judged like them, by tables and networks that know nothing of the window's user. See
`recsys.calibration`. Dimensions: N windows, L positions.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from pipelines.noise_detectors import Material, Stage
from pipelines.reporter import Reporter
from recsys.calibration import Operating, Steps, noise_probability, operating_point
from recsys.corruption import NoiseSource, corrupt_one
from recsys.errors import ConfigError
from recsys.noise import Judged
from recsys.sequences import IntArray

UNIFORM = 0.0


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """`noise_rate` is what the log is held to have, `precision` what acting must reach, `doubtful` the share of
    windows that goes on to the second detector."""

    noise_rate: float
    precision: float
    doubtful: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("doubtful", "precision", "noise_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"denoise: {name}={getattr(self, name)} must lie in (0, 1].")


@dataclass(frozen=True)
class Finer:
    """A second detector, which judges windows whose most suspicious event the first one gives `limit` or more."""

    stage: Stage
    limit: float
    calibration: Steps


@dataclass(frozen=True)
class Cascade:
    """Calibrated detectors, and where to act on what they say."""

    first: Stage
    calibration: Steps
    finer: Finer | None
    operating: Operating

    def judge(
        self, material: Material, windows: Judged, reporter: Reporter, what: str
    ) -> tuple[Float[np.ndarray, "N L"], Float[np.ndarray, "N L"], dict[str, int]]:
        """Probabilities of being noise, the last detector's own figures, and how many windows each judged."""
        naming = self.first.naming(material, windows, reporter, what)
        probabilities, judged = self.calibration(naming), {self.first.name: len(windows)}
        if self.finer is not None:
            doubtful = np.flatnonzero(naming.max(axis=1) >= self.finer.limit)
            naming[doubtful] = self.finer.stage.naming(material, windows.rows(doubtful), reporter, what)
            probabilities[doubtful] = self.finer.calibration(naming[doubtful])
            judged[self.finer.stage.name] = len(doubtful)
        return probabilities, naming, judged


def calibrated(
    stages: tuple[Stage, Stage | None],
    material: Material,
    windows: Judged,
    config: CalibrationConfig,
    reporter: Reporter,
) -> Cascade:
    """Both detectors on these windows with noise, and the threshold from which acting is precise enough."""
    source = NoiseSource(material.events.item_counts(), UNIFORM)
    rng = np.random.default_rng([config.seed, 1])
    corrupted = corrupt_one(windows.items, windows.lengths, source, rng)
    injected = Judged(corrupted.items, windows.lengths, windows.blocks)
    noisy = np.arange(windows.items.shape[1]) == corrupted.places[:, None]
    inside = np.arange(windows.items.shape[1]) < windows.lengths[:, None]
    prior = config.noise_rate * inside.sum() / max(1, len(windows))

    def probability(stage: Stage, dirty: IntArray, clean: IntArray) -> Steps:
        told = stage.naming(material, injected.rows(dirty), reporter, "calibrate")[noisy[dirty]]
        own = stage.naming(material, windows.rows(clean), reporter, "judge")[inside[clean]]
        return noise_probability(told, own, prior)

    first, second = stages
    everything = np.arange(len(windows))
    calibration, finer = probability(first, everything, everything), None
    if second is not None:
        suspicion = [
            first.naming(material, shown, reporter, "compare").max(axis=1, initial=0) for shown in (injected, windows)
        ]
        limit = float(np.quantile(suspicion[1], 1 - config.doubtful))
        finer = Finer(second, limit, probability(second, *(np.flatnonzero(one >= limit) for one in suspicion)))
    cascade = Cascade(first, calibration, finer, Operating.none())
    put_in = cascade.judge(material, injected, reporter, "calibrate")[0][noisy]
    log = cascade.judge(material, windows, reporter, "judge")[0][inside]
    return replace(cascade, operating=operating_point(put_in, log, config.noise_rate, config.precision))
