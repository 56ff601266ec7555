"""What thinking costs: `python -m benchmarks.reasoning_cost [--only beauty]`, on a quiet machine.

Random weights of the experiment's ReaRec, with 0 to 5 steps, on its real test histories; weights change no time.

    test set     ranking every item for every test case, the way the paper counts
    one request  ONNX graph, then exact search of the catalogue, batch 1, one thread: median and 95th percentile

Interleaved (0, 1, ... 5, 0, 1, ...), so that a slow moment of the machine hits every number of steps alike. Figures go
to benchmarks/records/EXPERIMENT/reasoning-cost.json and from there to docs/results.md.
"""

import argparse
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch

from benchmarks.records import RECORDS, Experiment, read_experiments
from benchmarks.results import prepare_data
from benchmarks.results_page import PAGE, page
from models.rearec import ReaRec
from models.registry import model_config, preset
from recsys.evaluation import rank_cases
from recsys.export import export_encoder
from recsys.index import ItemIndex, use_one_thread
from recsys.prepared import Prepared, open_prepared
from recsys.ranking import RetrieverScorer
from recsys.steps import git_commit, write_json
from serving.encoder import Encoder

MOST_STEPS, TEST_SETS, REQUESTS, FOUND = 5, 3, 1500, 10


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/results"), help="where data is kept")
    parser.add_argument("--only", default="beauty", help="name of one experiment")
    arguments = parser.parse_args()
    (experiment,) = (entry for entry in read_experiments() if entry.name == arguments.only)
    prepare_data(experiment, arguments.work / experiment.name)
    prepared = open_prepared(arguments.work / experiment.name / "prepared")
    models = [model_with(experiment, prepared, steps) for steps in range(MOST_STEPS + 1)]
    write_json(
        RECORDS / experiment.name / "reasoning-cost.json",
        {
            "test_set_seconds": test_set_seconds(models, prepared),
            "threads_of_test_set": torch.get_num_threads(),
            **request_milliseconds(models, prepared),
            "items": prepared.catalog.num_items,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": git_commit(),
        },
    )
    PAGE.write_text(page(read_experiments()), encoding="utf-8")


def model_with(experiment: Experiment, prepared: Prepared, steps: int) -> ReaRec:
    """The experiment's ReaRec with so many steps."""
    options = next(options for options in experiment.models.values() if options["model"] == "rearec")
    sections = preset("rearec", options["preset"])
    values = model_config("rearec", sections["model"], prepared.catalog.num_items).values
    torch.manual_seed(0)
    return ReaRec(replace(values, reasoning=replace(values.reasoning, steps=steps))).eval()


def test_set_seconds(models: list[ReaRec], prepared: Prepared) -> list[float]:
    """Of each model, the least of some runs."""
    cases, least = prepared.cases("test"), np.full(len(models), np.inf)
    scorers = [RetrieverScorer(model, torch.zeros(prepared.catalog.num_rows)) for model in models]
    for _ in range(TEST_SETS):
        for number, scorer in enumerate(scorers):
            began = time.perf_counter()
            rank_cases(scorer, prepared.store, cases, prepared.catalog.num_rows, prepared.seen, (FOUND,))
            least[number] = min(least[number], time.perf_counter() - began)
    return [round(float(seconds), 3) for seconds in least]


def request_milliseconds(models: list[ReaRec], prepared: Prepared) -> dict[str, list[list[float]]]:
    """Median and 95th percentile of encoding, and of encoding with the search, for each model."""
    use_one_thread()
    index = ItemIndex.build(models[0].item_vectors().detach().numpy())
    cases = prepared.cases("test").filter(pl.col("history_length") > 0).sample(REQUESTS, seed=0)
    windows = prepared.store.windows(
        cases["user_idx"].to_numpy().astype(np.int64), cases["position"].to_numpy().astype(np.int64), models[0].max_len
    )
    histories = [items[:length] for items, length in zip(windows.items, windows.lengths, strict=True)]
    encode, whole = np.zeros((2, len(models), REQUESTS))
    with TemporaryDirectory() as folder:
        encoders = [encoder_of(model, Path(folder) / f"{steps}.onnx") for steps, model in enumerate(models)]
        for request, history in enumerate(histories):
            for number, encoder in enumerate(encoders):
                began = time.perf_counter()
                vector = encoder.encode(history).vector()
                encoded = time.perf_counter()
                index.search(vector, FOUND)
                encode[number, request], whole[number, request] = encoded - began, time.perf_counter() - began
    return {
        name: [[round(float(value) * 1e3, 4) for value in np.quantile(row, (0.5, 0.95))] for row in seconds]
        for name, seconds in (("encode_milliseconds", encode), ("request_milliseconds", whole))
    }


def encoder_of(model: ReaRec, path: Path) -> Encoder:
    """The model's graph on the service's own runtime."""
    export_encoder(model, model.max_len, path)
    return Encoder(path)


if __name__ == "__main__":
    main()
