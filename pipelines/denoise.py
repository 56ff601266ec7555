"""`recsys denoise`: a dataset becomes a view of itself in which events that are most likely noise are corrected.

    histories --cut--> windows --detect--> who is the odd one --calibrate--> P(noise) --limits--> corrections --> view

Only training events are ever changed: what is split off for validation and test stays as it is, and no detector,
calibration or threshold sees it. Every window is judged by tables and networks that know nothing of its user.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from models.noise_critic import NoiseCriticConfig
from models.noise_llm import NoiseLlmConfig
from pipelines.noise_cascade import CalibrationConfig, calibrated
from pipelines.noise_detectors import Material, Stage, critic_stage, llm_stage, outlier_stage
from pipelines.prepare import PrepareConfig, make_split
from pipelines.reporter import Reporter
from recsys.calibration import Operating
from recsys.catalog import Catalog
from recsys.corrections import Limits, chosen_events, correctable, replacements
from recsys.errors import ConfigError, DataError
from recsys.item_text import has_text, item_texts
from recsys.noise import NoiseWindows
from recsys.partitions import write_events
from recsys.schema import Dataset, open_dataset
from recsys.score_store import default_folder
from recsys.sequences import IntArray, SequenceStore
from recsys.splits import SplitKind, TrainingEvents
from recsys.steps import writing_step
from recsys.text_vectors import SentenceEncoder, default_store, text_vectors

Action = Literal["replace", "drop", "weight"]
DetectorName = Literal["outlier", "critic", "llm"]
CORRECTIONS = "corrections.parquet"
LLM_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig:
    """Settings of `recsys denoise`.

    `split`, shares and instants say what is not training, as for `recsys prepare`. A window has `window` events.
    `noise_rate` is the share of noise that the log is assumed to hold, and `precision` the share of noise that
    corrections must reach on noise put in by ourselves. Where `doubtful` is below 1, that share of the windows, the
    most suspicious by a cheaper detector, reaches the `detector`; None is a fifth for a language model, else all.
    `texts` False leaves item texts out.
    """

    dataset: Path
    out: Path
    detector: DetectorName = "critic"
    action: Action = "drop"
    doubtful: float | None = None
    precision: float = 0.7
    noise_rate: float = 0.1
    window: int = 11
    vectors: int = 32
    texts: bool = True
    text_encoder: str | None = None
    text_revision: str | None = None
    limits: Limits = field(default_factory=Limits)
    critic: NoiseCriticConfig | None = None
    llm: NoiseLlmConfig | None = None
    split: SplitKind = "time"
    validation_share: float = 0.1
    test_share: float = 0.1
    validation_from: str | None = None
    test_from: str | None = None
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.window < 3:
            raise ConfigError(
                f"denoise: window={self.window} must be at least 3; of two events neither is the odd one."
            )
        if (self.detector == "llm") != (self.llm is not None):
            raise ConfigError("denoise: --detector llm and --llm MODEL belong together; give both or neither.")
        if self.detector == "outlier" and self.doubtful is not None:
            raise ConfigError(f"denoise: doubtful={self.doubtful} has no meaning for the cheapest detector; drop it.")
        if self.dataset.resolve().is_relative_to(self.out.resolve()):
            raise ConfigError(
                f"--out {self.out} is or holds the dataset, which is never overwritten; choose another folder."
            )

    @property
    def share_judged(self) -> float:
        """Of the windows, by the `detector`."""
        return self.doubtful if self.doubtful is not None else LLM_SHARE if self.detector == "llm" else 1.0

    @property
    def calibration(self) -> CalibrationConfig:
        """How the detector's figures become probabilities, and which of them are acted on."""
        return CalibrationConfig(
            noise_rate=self.noise_rate, precision=self.precision, doubtful=self.share_judged, seed=self.seed
        )

    @property
    def splitting(self) -> PrepareConfig:
        """The same split as `recsys prepare` makes with these settings."""
        return PrepareConfig(
            dataset=self.dataset,
            out=self.out,
            split=self.split,
            validation_share=self.validation_share,
            test_share=self.test_share,
            validation_from=self.validation_from,
            test_from=self.test_from,
        )

    def settings(self) -> dict[str, Any]:
        """All that the result depends on."""
        return {key: value for key, value in asdict(self).items() if key not in {"out", "overwrite"}}


@dataclass(frozen=True)
class Scored:
    """What was found out of each event [E]: its probability of being noise, and the detector's own figure."""

    probabilities: Float[np.ndarray, " E"]
    naming: Float[np.ndarray, " E"]
    operating: Operating
    judged: dict[str, int]


def denoise(config: DenoiseConfig, reporter: Reporter) -> Dataset:
    """Writes the view to `config.out` and opens it; the dataset stays as it is."""
    dataset = open_dataset(config.dataset)
    events, items = dataset.events(), dataset.items()
    catalog = Catalog.from_ids(pl.concat([events["item_id"], items["item_id"]]))
    store = SequenceStore.from_events(events, catalog)
    calibration = config.calibration
    with writing_step(
        "ingest",
        config.out,
        config=config.settings(),
        inputs=[config.dataset],
        seed=config.seed,
        overwrite=config.overwrite,
    ) as step:
        split, instants = make_split(store, dataset, config.splitting)
        training = TrainingEvents(store, split.train_stop, catalog.num_rows)
        material = material_of(config, training, catalog, items, reporter)
        windows = NoiseWindows.cut(training.stops, config.window)
        if not len(windows):
            raise DataError(
                f"denoise: no user of {config.dataset} has three training events; there is nothing to compare."
            )
        scored = scores(config, calibration, material, windows, reporter)
        counts = training.item_counts()
        allowed = correctable(store, training.stops, counts, config.limits)
        users = store.event_users()
        chosen = (
            allowed
            if config.action == "weight"
            else chosen_events(
                scored.probabilities, scored.naming, scored.operating.threshold, allowed, users, config.limits
            )
        )
        better = np.array(store.item_idx, dtype=np.int64)
        if config.action == "replace":
            better = replacements(store, windows, material.folds, chosen, material.relations)
        table = corrections_table(config.action, events, catalog, chosen, better, scored)
        view = corrected(events, catalog, chosen, better, scored, config.action)
        step.counts["parts"] = write_events(view, step.folder / "events")
        items.write_parquet(step.folder / "items.parquet")
        table.write_parquet(step.folder / CORRECTIONS)
        step.counts.update({
            "events": len(view),
            "training_events": int(training.stops.sum()),
            "corrected": int(chosen.sum()),
            "users_corrected": len(np.unique(users[chosen])),
            "action": config.action,
            **asdict(scored.operating),
            "judged_windows": scored.judged,
            **identities(config, material),
            **instants,
            "time": dataset.time,
        })
    return open_dataset(config.out)


def material_of(
    config: DenoiseConfig, training: TrainingEvents, catalog: Catalog, items: pl.DataFrame, reporter: Reporter
) -> Material:
    """What detectors learn from, texts included where they are wanted."""
    described = pl.DataFrame({"item_id": catalog.item_ids}).join(items, on="item_id", how="left", maintain_order="left")
    titles = ["", *item_texts(described)]
    if config.texts and not has_text(described):
        raise DataError(
            f"denoise: {config.dataset} has no item text; ingest an item table with --items, or judge by co-occurrence "
            "alone with --no-texts."
        )
    vectors = np.zeros((len(titles), 0), dtype=np.float32)
    if config.texts:
        with reporter.task("encode item texts", len(titles)) as advance:
            encoder = SentenceEncoder(config.text_encoder, config.text_revision)
            vectors = text_vectors(titles, encoder, default_store(), advance)
    return Material(
        events=training,
        texts=vectors,
        titles=titles,
        seed=config.seed,
        length=config.window,
        width=config.vectors,
        store=default_folder(),
    )


def scores(
    config: DenoiseConfig,
    calibration: CalibrationConfig,
    material: Material,
    windows: NoiseWindows,
    reporter: Reporter,
) -> Scored:
    """Probabilities of all training events, calibrated on windows into which noise was put."""
    clean = windows.load(material.events.store, material.folds)
    cascade = calibrated(stages(config, material, reporter), material, clean, calibration, reporter)
    probabilities, naming, judged = cascade.judge(material, clean, reporter, "judge")
    places = windows.places(material.events.store, clean.items.shape[1])
    return Scored(
        probabilities=by_event(probabilities, places, material.events.store),
        naming=by_event(naming, places, material.events.store),
        operating=cascade.operating,
        judged=judged,
    )


def stages(config: DenoiseConfig, material: Material, reporter: Reporter) -> tuple[Stage, Stage | None]:
    """The detector that judges every window, and the one that judges what it finds most suspicious."""
    num_items = material.events.num_rows - 1
    critic_config = config.critic or NoiseCriticConfig(num_items=num_items, max_len=config.window)
    outlier, critic = outlier_stage(material), critic_stage(material, critic_config, reporter)
    if config.llm is not None:
        return critic, llm_stage(material, config.llm, reporter)
    if config.detector == "outlier":
        return outlier, None
    return (critic, None) if config.share_judged == 1 else (outlier, critic)


def by_event(
    figures: Float[np.ndarray, "N L"], places: Int[np.ndarray, "N L"], store: SequenceStore
) -> Float[np.ndarray, " E"]:
    """A figure of each judged event; others have 0."""
    result = np.zeros(store.num_events)
    result[places[places >= 0]] = figures[places >= 0]
    return result


def corrections_table(
    action: Action,
    events: pl.DataFrame,
    catalog: Catalog,
    chosen: Bool[np.ndarray, " E"],
    better: IntArray,
    scored: Scored,
) -> pl.DataFrame:
    """One row a corrected event: who, when, which item, what became of it, and how sure we were."""
    corrected_rows = np.flatnonzero(chosen)
    new = catalog.item_ids.gather(better[corrected_rows] - 1) if action == "replace" else None
    return events[corrected_rows].select(
        "user_id",
        "timestamp",
        "item_id",
        pl.Series("replacement", new, dtype=pl.String)
        if new is not None
        else pl.lit(None, pl.String).alias("replacement"),
        pl.Series("probability", scored.probabilities[corrected_rows], dtype=pl.Float64),
    )


def corrected(
    events: pl.DataFrame,
    catalog: Catalog,
    chosen: Bool[np.ndarray, " E"],
    better: IntArray,
    scored: Scored,
    action: Action,
) -> pl.DataFrame:
    """The events of the view: with other items, without some, or with the weight that is left of the chosen."""
    if action == "drop":
        return events.filter(~chosen)
    if action == "weight":
        return events.with_columns(weight=pl.Series(np.where(chosen, 1 - scored.probabilities, 1), dtype=pl.Float32))
    new = catalog.item_ids.gather(better - 1)
    return events.with_columns(pl.when(pl.Series(chosen)).then(new).otherwise("item_id").alias("item_id"))


def identities(config: DenoiseConfig, material: Material) -> dict[str, Any]:
    """Revisions of what judged: of the material (data, texts, version), the text encoder and the language model."""
    encoder = SentenceEncoder(config.text_encoder, config.text_revision).identity if config.texts else None
    return {
        "material": material.fingerprint,
        "text_encoder": encoder,
        "language_model": None if config.llm is None else config.llm.identity,
    }
