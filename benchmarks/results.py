"""Fills docs/results.md: `python -m benchmarks.results [--only NAME] [--models NAME ...] [--seeds 0 1] [--minutes M]`.

A program, not a log: what is done is skipped, what was cut is resumed, what matters most runs first (the first seed
of everything, then the second ...). Figures are kept in benchmarks/records, and the page is written anew from these
after every run. With `--minutes` it stops after so long, inside an epoch too, and goes on where it stopped next time:
a machine with an accelerator can be borrowed in slices.
"""

import argparse
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

from benchmarks.contrast import write_contrast
from benchmarks.records import (
    Experiment,
    Judged,
    data_file,
    read_experiments,
    read_floors,
    read_record,
    with_item_table,
    write_floors,
    write_record,
)
from benchmarks.results_page import PAGE, page
from pipelines.combine import CombineConfig, combine
from pipelines.evaluate import CASES, EvaluateConfig, evaluate
from pipelines.ingest import IngestConfig, ingest
from pipelines.plan import TrainConfig
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.train import train
from recsys.prepared import open_prepared


class TimeUp(BaseException):
    """The slice of time is over; not an error, so that no step takes it for one."""


def main() -> None:
    """Runs what is missing, page after page."""
    arguments = parse_arguments()
    experiments = [entry for entry in read_experiments() if arguments.only in {None, entry.name}]
    if not experiments:
        raise SystemExit(f"results: no experiment {arguments.only!r}; see benchmarks/experiments.yaml")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.minutes:
        signal.signal(signal.SIGALRM, _time_is_up)
        signal.setitimer(signal.ITIMER_REAL, arguments.minutes * 60)
    reporter = Reporter()
    try:
        for experiment, model, seed in [] if arguments.page else in_order_of_importance(experiments, arguments.seeds):
            if model in (arguments.models or experiment.models) and read_record(experiment, model, seed) is None:
                run_one(experiment, model, seed, arguments.work, reporter)
                PAGE.write_text(page(read_experiments()), encoding="utf-8")
    except TimeUp:
        reporter.say(f"results: {arguments.minutes:g} minutes are over; run again to go on.")
    PAGE.write_text(page(read_experiments()), encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/results"), help="where data and runs are kept")
    parser.add_argument("--only", help="name of one experiment")
    parser.add_argument("--models", nargs="+", help="these models alone")
    parser.add_argument("--seeds", type=int, nargs="+", help="these seeds alone; two processes may share the work so")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes")
    parser.add_argument("--threads", type=int, help="torch threads (default: all cores)")
    parser.add_argument("--page", action="store_true", help="write the page from the records, run nothing")
    return parser.parse_args()


def _time_is_up(_number: int, _frame: FrameType | None) -> None:
    raise TimeUp


def in_order_of_importance(
    experiments: list[Experiment], seeds: list[int] | None = None
) -> Iterator[tuple[Experiment, str, int]]:
    """Seed by seed, so that a table is whole early and its spread comes later."""
    for seed in range(max(experiment.seeds for experiment in experiments)):
        for experiment in experiments:
            if seed < experiment.seeds and (seeds is None or seed in seeds):
                yield from ((experiment, model, seed) for model in experiment.models)


def run_one(experiment: Experiment, model: str, seed: int, work: Path, reporter: Reporter) -> None:
    """Trains and evaluates one model with one seed, and keeps its figures."""
    folder = work / experiment.name
    prepare_data(experiment, folder)
    options = experiment.models[model]
    run = run_folder(experiment, folder, model, seed)
    if not run.exists():
        refit = run_folder(experiment, folder, options["refit"], seed) if "refit" in options else None
        config = TrainConfig(
            data=folder / "prepared",
            model=options["model"],
            out=run,
            refit=refit,
            init=earlier_folder(experiment, work, model, seed, "init"),
            teacher=earlier_folder(experiment, work, model, seed, "teacher"),
            retriever=earlier_folder(experiment, work, model, seed, "retriever"),
            preset=options.get("preset"),
            settings=tuple(options.get("set", ())),
            seed=seed,
            tracking=False,
        )
        reporter.say(f"{experiment.name}: {model}, seed {seed}")
        train(config, reporter)
    if not experiment.ranked:
        return
    over = judged_over(experiment, work, model, seed)
    evaluation = evaluate(EvaluateConfig(runs=(run,), rerank=over), reporter)
    write_record(experiment, model, seed, Judged.of(run, over))
    for variant in contrasts_with(experiment, model):
        if both := pairs(experiment, variant, work):
            write_contrast(experiment, variant, both)
    if read_floors(experiment) is None:
        write_floors(experiment, open_prepared(folder / "prepared").manifest["counts"], dict(evaluation.floors))


def earlier_folder(experiment: Experiment, work: Path, model: str, seed: int, role: str) -> Path | None:
    """The run that a model begins with or learns from: of the same seed in its own experiment, of seed 0 in another."""
    if role not in experiment.models[model]:
        return None
    other, earlier = experiment.earlier(model, role)
    return run_folder(other, work / other.name, earlier, seed if other.name == experiment.name else 0)


def contrasts_with(experiment: Experiment, model: str) -> list[str]:
    """Variants that a further run of `model` says something of: itself, and those it is the base of."""
    return [
        name
        for name, options in experiment.models.items()
        if "against" in options and model in {name, options["against"]}
    ]


def judged_over(experiment: Experiment, work: Path, model: str, seed: int) -> Path | None:
    """The run whose lists a ranker puts in order, which it may have learned to correct; None for other models."""
    roles = [role for role in ("retriever", "over") if role in experiment.models[model]]
    return earlier_folder(experiment, work, model, seed, roles[0]) if roles else None


def pairs(experiment: Experiment, variant: str, work: Path) -> dict[int, tuple[Judged, Judged]]:
    """Base and variant by seed, where both are at hand and evaluated."""
    found = {}
    for seed in range(experiment.seeds):
        both = [judged_run(experiment, work, name, seed) for name in (experiment.models[variant]["against"], variant)]
        if both[0] is not None and both[1] is not None:
            found[seed] = (both[0], both[1])
    return found


def judged_run(experiment: Experiment, work: Path, model: str, seed: int) -> Judged | None:
    """None where it was not run here, or not evaluated."""
    folder = run_folder(experiment, work / experiment.name, model, seed)
    over = judged_over(experiment, work, model, seed)
    if any(path is not None and not path.exists() for path in (folder, over)):
        return None
    judged = Judged.of(folder, over)
    return judged if (judged.evaluation / CASES).exists() else None


def prepare_data(experiment: Experiment, folder: Path) -> None:
    """Ingests and prepares once."""
    if experiment.combined and not (folder / "dataset").exists():
        parts = {name: folder / "parts" / name for name in experiment.combined}
        for name, part in experiment.combined.items():
            options = with_item_table(part.get("ingest", {}))
            ingest(IngestConfig(sources=(data_file(part["source"]),), out=parts[name], overwrite=True, **options))
        combine(CombineConfig(datasets=tuple(parts.values()), out=folder / "dataset"))
    if not (folder / "dataset").exists():
        ingest(IngestConfig(sources=(experiment.log(folder),), out=folder / "dataset", **experiment.ingest_options()))
    if not (folder / "prepared").exists():
        prepare(PrepareConfig(dataset=folder / "dataset", out=folder / "prepared", **experiment.prepare))


def run_folder(experiment: Experiment, folder: Path, model: str, seed: int) -> Path:
    """Where a model's run with a seed and today's settings lies."""
    return folder / "runs" / f"{model}-{experiment.settings_hash(model)}-{seed}"


if __name__ == "__main__":
    main()
