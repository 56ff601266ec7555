"""What the second stage costs a request: `python -m benchmarks.rank_stage`, on a quiet machine; writes docs/ranking.md.

One user with N stored events, 500 candidates, one thread. Random weights (they change no time): items and categories
of width 64 each in what is pooled, so that rankers differ by what they compare alone. Methods that the service ranks by
run as it runs them, from kept keys; the others by torch. Times by the wall, and of the processor alone: on a machine
with other work the first say more of that than of the method.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float, Int
from onnxruntime import InferenceSession
from torch import Tensor, nn

from models.dare import DARE, DAREConfig
from models.dare_graph import BLOCKS, DAREGraph, best_by_blocks
from recsys.batches import Histories
from recsys.export import write_graph
from recsys.graph_session import graph_session
from recsys.index import RowArray
from recsys.ranker_export import write_ranker_files
from recsys.steps import git_commit, write_text
from recsys.stored_ranker import RankerCard, StoredRanker, UserKeys, in_parts

PAGE = Path(__file__).resolve().parent.parent / "docs" / "ranking.md"
LENGTHS = (100, 1_000, 10_000, 100_000)
NUM_ITEMS, NUM_CATEGORIES, WIDTH, CANDIDATES, KEPT = 20_000, 500, 64, 500, 20
SECONDS, FEWEST, MOST = 3.0, 20, 400
SERVED = {"dare, width 32": ("dare", 16), "dare, width 128": ("dare", 64), "twin, width 128": ("twin", 64)}
BY_TORCH = ("din", "sim-hard", "sim-soft", "eta", "sdim", "twin-v2", "last-k", "mean")
LONGEST_BY_TORCH = {"din": 10_000, "sdim": 10_000, "eta": 10_000, "twin-v2": 10_000}
"""Beyond, their numbers for all pairs do not fit into memory."""


@dataclass(frozen=True)
class Times:
    """Milliseconds: median and 99th percentile by the wall, median of the processor."""

    median: float
    late: float
    processor: float

    def __str__(self) -> str:
        return f"{self.median:.1f}, {self.late:.1f}, {self.processor:.1f}"


class Search(nn.Module):
    """The first half of the graph: which events are kept."""

    def __init__(self, graph: DAREGraph) -> None:
        super().__init__()
        self.scorer = graph

    def forward(
        self, candidates: Int[Tensor, " C"], keys: Float[Tensor, "B M S"], place_scores: Float[Tensor, "B M"]
    ) -> tuple[Float[Tensor, "C K"], Int[Tensor, "C K"]]:
        """Scores and places."""
        scores = self.scorer.attention(candidates, keys, place_scores)
        return best_by_blocks(scores, keys.shape[0], KEPT)


def main() -> None:
    """Measures and writes the page."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        times = served_times(Path(folder))
    peers = {name: torch_times(name) for name in BY_TORCH}
    write_text(PAGE, page(times, peers))
    print(PAGE.read_text(encoding="utf-8"))


def model_of(method: str, attention: int, longest: int) -> DARE:
    """A ranker that reads so many events."""
    torch.manual_seed(0)
    sizes = {"num_items": NUM_ITEMS, "num_categories": NUM_CATEGORIES, "embedding_dim": WIDTH, "kept": KEPT}
    model = DARE(
        DAREConfig(method=method, max_len=longest, attention_dim=0 if attention == WIDTH else attention, **sizes)  # type: ignore[arg-type]
    )
    model.learn_categories(torch.randint(NUM_CATEGORIES + 1, (NUM_ITEMS + 1,)))
    return model.eval()


def served_times(folder: Path) -> dict[str, dict[int, tuple[Times, Times, Times]]]:
    """By ranker and events: the whole stage, its search alone, and what gathering keys anew would add.

    Rankers take turns, so that a slow moment of the machine hits all of them.
    """
    rankers = {name: served(folder / str(place), *kind) for place, (name, kind) in enumerate(SERVED.items())}
    rng, found = np.random.default_rng(0), {}
    candidates = rng.integers(1, NUM_ITEMS + 1, CANDIDATES)
    for length in LENGTHS:
        rows = rng.integers(1, NUM_ITEMS + 1, length)
        users = {name: ranker.gathered(rows) for name, (ranker, _) in rankers.items()}
        found[length] = [
            timed({name: partial(ranker.scores, users[name], candidates) for name, (ranker, _) in rankers.items()}),
            timed({name: partial(searched, *both, users[name], candidates) for name, both in rankers.items()}),
            timed({name: partial(ranker.gathered, rows) for name, (ranker, _) in rankers.items()}),
        ]
        print(length, *found[length], sep="\n  ", flush=True)
    return {name: {n: tuple(part[name] for part in parts) for n, parts in found.items()} for name in SERVED}  # type: ignore[misc]


def served(folder: Path, method: str, attention: int) -> tuple[StoredRanker, InferenceSession]:
    """A ranker as a bundle has it, and the search of its graph."""
    folder.mkdir()
    graph = DAREGraph(model_of(method, attention, max(LENGTHS)))
    card = RankerCard(
        name=method,
        config={},
        max_len=max(LENGTHS),
        blocks=BLOCKS,
        least_places=graph.least_places,
        recent=0,
        candidates=CANDIDATES,
        shortest=1,
        weight=None,
    )
    write_ranker_files(folder, graph, card, np.zeros(NUM_ITEMS + 1, dtype=np.float32))
    export_search(graph, folder / "search.onnx")
    return StoredRanker.load(folder), graph_session(folder / "search.onnx")


def searched(ranker: StoredRanker, search: InferenceSession, user: UserKeys, candidates: RowArray) -> None:
    """The search of `StoredRanker.logits`."""
    inputs = ranker.inputs(user)
    given = {name: inputs[name] for name in ("keys", "place_scores")}
    for part in in_parts(candidates, given["place_scores"].size):
        search.run(None, {"candidates": part} | given)


def export_search(graph: DAREGraph, path: Path) -> None:
    """Writes the graph of the search alone."""
    example = (torch.ones(3, dtype=torch.int64), torch.ones((BLOCKS, 30, graph.item_keys().shape[1])))
    places = {1: torch.export.Dim("places", min=graph.least_places, max=2**20)}
    shapes = ({0: torch.export.Dim("asked", min=1, max=2**16)}, places, places)
    inputs = ["candidates", "keys", "place_scores"]
    write_graph(Search(graph), (*example, torch.zeros(BLOCKS, 30)), inputs, ["scores", "places"], shapes, path)


def torch_times(method: str) -> dict[int, Times]:
    """By events: `score` as evaluation calls it, of a model that reads no more of them."""
    rng, found = np.random.default_rng(0), {}
    candidates = torch.from_numpy(rng.integers(1, NUM_ITEMS + 1, (1, CANDIDATES)))
    for length in (n for n in LENGTHS if n <= LONGEST_BY_TORCH.get(method, max(LENGTHS))):
        model = model_of(method, WIDTH, length)
        items = torch.from_numpy(rng.integers(1, NUM_ITEMS + 1, (1, length)))
        history = Histories(items, torch.zeros_like(items), torch.tensor([length], dtype=torch.int32))
        with torch.no_grad():
            found[length] = timed({method: partial(model.score, history, candidates)}, fewest=3)[method]
        print(method, length, found[length], sep=" | ", flush=True)
    return found


def timed(calls: Mapping[str, Callable[[], object]], fewest: int = FEWEST) -> dict[str, Times]:
    """Makes the calls in turns for a while."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    until, rounds = time.perf_counter() + SECONDS * len(calls), 0
    while rounds < fewest or (time.perf_counter() < until and rounds < MOST):
        for name, call in calls.items():
            began, spent = time.perf_counter(), time.thread_time()
            call()
            taken[name].append((time.perf_counter() - began, time.thread_time() - spent))
        rounds += 1
    return {name: summary(np.array(times) * 1e3) for name, times in taken.items()}


def summary(times: Float[np.ndarray, "N 2"]) -> Times:
    """Of milliseconds by the wall and of the processor."""
    median, late = np.quantile(times[:, 0], (0.5, 0.99))
    return Times(float(median), float(late), float(np.median(times[:, 1])))


def page(times: dict[str, dict[int, tuple[Times, Times, Times]]], peers: dict[str, dict[int, Times]]) -> str:
    """All of it as Markdown."""
    columns = " | ".join(f"N = {length:,}" for length in LENGTHS)
    head = [f"| | {columns} |", "|---|" + "---|" * len(LENGTHS)]

    def table(part: int) -> list[str]:
        rows = [row(name, [str(parts[n][part]) for n in LENGTHS]) for name, parts in times.items()]
        return [*head, *rows, ""]

    by_torch = [
        row(name, [str(by_length.get(n, "does not fit")) for n in LENGTHS]) for name, by_length in peers.items()
    ]
    return "\n".join([
        *HEAD,
        "## The whole stage",
        "",
        *table(0),
        "## Its search alone",
        "",
        *table(1),
        *faster(times),
        "## Keys gathered anew, where none were kept",
        "",
        *table(2),
        "## Other methods, by torch",
        "",
        *head,
        *by_torch,
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, commit {(git_commit() or 'unknown')[:12]}, torch {torch.__version__}; one "
        f"thread, {os.cpu_count()} cores, no accelerator, load average {os.getloadavg()[1]:.1f} in the last minutes.",
        "",
    ])


def row(name: str, cells: list[str]) -> str:
    """Of a table."""
    return f"| {name} | {' | '.join(cells)} |"


def faster(times: dict[str, dict[int, tuple[Times, Times, Times]]]) -> list[str]:
    """How much narrow keys save."""
    narrow, wide = times["dare, width 32"], times["twin, width 128"]
    ratios = ", ".join(f"{wide[n][1].processor / narrow[n][1].processor:.1f} x at {n:,}" for n in LENGTHS)
    return [f"Search at width 32 against TWIN's at 128, by the processor's time: {ratios}.", ""]


HEAD = (
    "# Ranking: what the second stage costs a request",
    "",
    "Written by `python -m benchmarks.rank_stage`; do not edit. One user with N events, 500 candidates, 20 events kept",
    "for each; items and categories of width 64 each in what is pooled, 20,000 items. Each cell: median and 99th",
    "percentile in milliseconds by the wall, and median of the processor's own time, which other work on the machine",
    "changes less. Rankers of the first three tables took turns.",
    "",
)

if __name__ == "__main__":
    main()
