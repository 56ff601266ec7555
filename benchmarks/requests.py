"""What a request costs a bundle: `python -m benchmarks.requests PREPARED BUNDLE...`, on a quiet machine.

Histories of the test part, each asked for once through the service's own path (encode, then exact search), batch 1, one
thread, no encoding kept; bundles take turns, so that a slow moment of the machine hits all of them. Prints a table.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from recsys.errors import DataError
from recsys.prepared import Prepared, open_prepared
from serving.queries import Query
from serving.service import Service
from serving.settings import Settings
from serving.stores import Stores

REQUESTS, WARM_UP, SEED = 300, 20, 0


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    arguments = parser.parse_args()
    histories = some_histories(open_prepared(arguments.prepared))
    with TemporaryDirectory() as folder:
        settings = Settings(state=str(Path(folder) / "state.sqlite"), encoding_cache_bytes=0)
        stores = Stores.open(settings)
        services = {bundle.name: Service.open(bundle, settings, stores) for bundle in arguments.bundles}
        times: dict[str, list[float]] = {name: [] for name in services}
        for number, history in enumerate([*histories[:WARM_UP], *histories]):
            for name, service in services.items():
                taken = answer_time(service, history)
                times[name] += [taken] if number >= WARM_UP else []
        stores.close()
    print("| bundle | median, ms | 95th percentile, ms |\n|---|---|---|")
    for name, taken in times.items():
        median, late = np.quantile(np.array(taken) * 1e3, (0.5, 0.95))
        print(f"| {name} | {median:.2f} | {late:.2f} |")


def some_histories(prepared: Prepared) -> list[list[str]]:
    """Of random test cases that have one, as item ids."""
    cases = prepared.cases("test").filter(prepared.cases("test")["history_length"] > 0)
    if not len(cases):
        raise DataError(f"{prepared.folder}: no test case has a history; prepare another split.")
    store, chosen = prepared.store, cases.sample(min(REQUESTS, len(cases)), seed=SEED)
    return [
        prepared.catalog.item_ids.gather(store.item_idx[store.offsets[user] :][:stop].astype(np.int64) - 1).to_list()
        for user, stop in zip(chosen["user_idx"].to_list(), chosen["position"].to_list(), strict=True)
    ]


def answer_time(service: Service, history: list[str]) -> float:
    """Seconds of one request."""
    began = time.perf_counter()
    service.recommender.recommend(Query(history=history))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
