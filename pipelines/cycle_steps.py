"""What each stage of a cycle does: the commands of the path, one after the other, on the cycle's folders."""

from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.append import append, begins
from pipelines.champion import Champion
from pipelines.cycle import Cycle, Stage
from pipelines.decision import Decision, decide, write_evaluation
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.export import ExportConfig, export
from pipelines.ingest import IngestConfig, ingest
from pipelines.plan import TrainConfig, make_plan
from pipelines.prepare import prepare
from pipelines.reporter import Reporter
from pipelines.train import is_another, train
from recsys.bundle import open_bundle
from recsys.errors import DataError
from recsys.registry import alias_holders, register_bundle
from recsys.steps import describe_input, partial_folder, read_manifest, writing_step


def stages_to_decision(cycle: Cycle, champion: Champion | None, reporter: Reporter) -> list[Stage]:
    """From the logs to the decision."""
    folder, prepared, config = cycle.folder, cycle.folder / "prepared", cycle.config
    dataset, extend = folder / "dataset", [] if champion is None else [champion.run.prepared().folder]
    retire = [path for path in (config.prepare.retire,) if path is not None]
    start = champion.start if champion is not None and config.train.warm else None
    items = [Path(entry["path"]) for entry in cycle.others if Path(entry["path"]) not in map(Path.resolve, retire)]
    trained = [prepared] if start is None else [prepared, start.folder]
    judged = [cycle.candidate] if champion is None else [cycle.champion_run, cycle.candidate]
    evaluated = folder / "evaluation"
    stages = [
        Stage(
            name="ingest",
            out=dataset,
            step="ingest",
            inputs=[*cycle.log_files, *items],
            work=partial(ingest_logs, cycle, dataset, [*cycle.log_files, *items], reporter),
        ),
        Stage(
            name="prepare",
            out=prepared,
            step="prepare",
            inputs=[dataset, *extend, *retire],
            work=partial(prepare, config.prepare_config(dataset, prepared, extend[0] if extend else None)),
        ),
        Stage(
            name="train",
            out=cycle.trained,
            step="train",
            inputs=trained,
            work=partial(train_run, candidate_config(cycle, None if start is None else start.folder), reporter),
        ),
    ]
    if config.refit:
        stages.append(
            Stage(
                name="refit",
                out=cycle.candidate,
                step="train",
                inputs=[prepared, cycle.trained],
                work=partial(train_run, refit_config(cycle), reporter),
            )
        )
    if champion is not None:
        stages.append(
            Stage(
                name="champion",
                out=cycle.champion_run,
                step="train",
                inputs=[prepared, champion.run.folder],
                work=partial(train_run, champion_config(cycle, champion), reporter),
            )
        )
    return [
        *stages,
        Stage(
            name="evaluate",
            out=evaluated,
            step="evaluate",
            inputs=[prepared, *judged],
            work=partial(evaluate_all, cycle, judged, evaluated, reporter),
        ),
        Stage(
            name="decide",
            out=folder / "decision",
            step="decide",
            inputs=[evaluated],
            work=partial(
                decide,
                folder / "decision",
                evaluated,
                cycle.candidate,
                None if champion is None else cycle.champion_run,
                prepared / "floors" / config.compare.part,
                config.compare,
            ),
        ),
    ]


def stages_to_registry(cycle: Cycle) -> list[Stage]:
    """From a candidate that may replace the champion to the alias."""
    bundle, registered = cycle.folder / "bundle", cycle.folder / "registered"
    return [
        Stage(
            name="export",
            out=bundle,
            step="export",
            inputs=[cycle.candidate],
            work=partial(export, ExportConfig(run=cycle.candidate, out=bundle, overwrite=True)),
        ),
        Stage(
            name="register",
            out=registered,
            step="register",
            inputs=[bundle],
            work=partial(register, cycle, bundle, registered),
        ),
    ]


def ingest_logs(cycle: Cycle, out: Path, inputs: list[Path], reporter: Reporter) -> None:
    """The dataset of the very files that the cycle is named by: that of an earlier cycle and what came since, where
    there is one which begins with the same files."""
    config = cycle.config.ingest_config(cycle.log_files, out)
    base, known = longest_beginning(cycle, config, [describe_input(path) for path in inputs])
    if base is None:
        dataset = ingest(config, reporter)
    else:
        dataset = append(replace(config, sources=tuple(cycle.log_files[known:])), base, reporter)
    expected = {entry["path"]: entry["sha256"] for entry in (*cycle.logs, *cycle.others)}
    for entry in dataset.manifest["inputs"]:
        if expected.get(entry["path"]) != entry["sha256"]:
            raise DataError(f"run: {entry['path']} changed while it was read; run again when it is complete.")


def longest_beginning(cycle: Cycle, config: IngestConfig, inputs: list[dict[str, Any]]) -> tuple[Path | None, int]:
    """The dataset of another cycle that holds the most of the first logs of this one and no others, and how many."""
    found: tuple[Path | None, int] = None, 0
    for folder in sorted(cycle.config.work.glob("*/dataset")):
        with suppress(DataError):
            count = begins(read_manifest(folder, "ingest"), config, inputs)
            if found[1] < count < len(cycle.logs) and folder != config.out:
                found = folder, count
    return found


def train_run(config: TrainConfig, reporter: Reporter) -> None:
    """Goes on with an interrupted training, unless it was another one: champion or program have changed since."""
    another = is_another(partial_folder(config.out), make_plan(config))
    train(replace(config, restart=another), reporter)


def candidate_config(cycle: Cycle, init: Path | None) -> TrainConfig:
    """Learns from the training part, cold or from the champion's weights."""
    section = cycle.config.train
    return TrainConfig(
        data=cycle.folder / "prepared",
        model=section.model,
        out=cycle.trained,
        init=init,
        preset=section.preset,
        settings=section.settings,
        seed=section.seed,
        tracking=section.tracking,
        overwrite=True,
    )


def refit_config(cycle: Cycle) -> TrainConfig:
    """The same on training and validation events."""
    section = cycle.config.train
    return TrainConfig(
        data=cycle.folder / "prepared",
        model=section.model,
        out=cycle.candidate,
        refit=cycle.trained,
        tracking=section.tracking,
        overwrite=True,
    )


def champion_config(cycle: Cycle, champion: Champion) -> TrainConfig:
    """The champion's weights as they are, with rows for the items that came since."""
    return TrainConfig(
        data=cycle.folder / "prepared",
        model=champion.run.model,
        out=cycle.champion_run,
        init=champion.run.folder,
        settings=champion.as_it_is(),
        seed=champion.run.config["seed"],
        tracking=False,
        overwrite=True,
    )


def evaluate_all(cycle: Cycle, runs: list[Path], out: Path, reporter: Reporter) -> None:
    """Candidate, champion and floors on the same cases."""
    evaluation = evaluate(EvaluateConfig(runs=tuple(runs), part=cycle.config.compare.part), reporter)
    write_evaluation(out, evaluation, [cycle.folder / "prepared", *runs])


def register(cycle: Cycle, folder: Path, out: Path) -> None:
    """Moves the alias; the version's tags lead back to the logs."""
    bundle, section = open_bundle(folder), cycle.config.register
    refuse_moved_alias(cycle, bundle.version)
    with writing_step("register", out, config=vars(section), inputs=[folder], overwrite=True) as step:
        entry = register_bundle(bundle, section.name, section.alias, origin(cycle))
        step.counts.update(version=entry.version, previous=entry.previous, bundle=bundle.version)


def refuse_moved_alias(cycle: Cycle, own_bundle: str) -> None:
    """An alias that somebody moved while the cycle ran points at what the candidate was not compared with."""
    section, started = cycle.config.register, cycle.started()
    compared = started["champion"] if started else None
    holders = alias_holders(section.name, section.alias)
    if holders and holders[0].bundle not in {own_bundle, compared and compared["bundle"]}:
        raise DataError(
            f"run: models:/{section.name}@{section.alias} was moved to version {holders[0].version} while the cycle "
            "ran; run again, and the candidate is judged beside that one."
        )


def origin(cycle: Cycle) -> dict[str, str]:
    """Where a bundle is from, as tags of its version in the registry."""
    return {
        "pipeline": cycle.config.name,
        "cycle": cycle.name,
        "run": str(cycle.candidate),
        "prepared": read_manifest_hash(cycle.folder / "prepared"),
        "dataset": read_manifest_hash(cycle.folder / "dataset"),
        "record": str(cycle.folder),
    }


def read_manifest_hash(folder: Path) -> str:
    """SHA-256 of a folder's manifest."""
    return str(describe_input(folder)["sha256"])


def decision_of(cycle: Cycle) -> Decision:
    """What was decided."""
    return Decision.load(cycle.folder / "decision")


def lineage(cycle: Cycle, champion: Champion | None) -> dict[str, object]:
    """From bundle to run to prepared data to dataset to log files, each with the hash of its content."""
    chain = {
        "run": cycle.candidate,
        "prepared": cycle.folder / "prepared",
        "dataset": cycle.folder / "dataset",
        **({"bundle": cycle.folder / "bundle"} if (cycle.folder / "registered").is_dir() else {}),
    }
    registered = cycle.folder / "registered"
    version = read_manifest(registered, "register")["counts"]["version"] if registered.is_dir() else None
    return {
        "registered_version": version,
        "bundle_version": open_bundle(chain["bundle"]).version if "bundle" in chain else None,
        **{name: describe_input(path) for name, path in chain.items()},
        "logs": list(cycle.logs),
        "other_files": list(cycle.others),
        "compared_with": None
        if champion is None
        else {"version": champion.version, "bundle": champion.bundle, "run": str(champion.run.folder)},
    }
