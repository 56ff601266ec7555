"""Answers that nobody sees: a variant in the shadow is asked what was asked, in the background, and compared."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Full, Queue
from threading import Event, Thread

from serving.metrics import Metrics
from serving.shown import Shown
from serving.swap import Variant

LOG = logging.getLogger("uvicorn.error")
SECONDS_TO_CLOSE = 1


@dataclass(frozen=True)
class _Task:
    shown: Shown
    variant: Variant


class Shadows:
    """One thread and a bounded queue: where it is full, what was asked is dropped and counted, and nobody waits.

    `keep` gets what a shadow would have shown. Where `deletions` went on since a request began, it is dropped too: its
    history may be that of the user who was deleted.
    """

    def __init__(
        self, waiting: int, metrics: Metrics, keep: Callable[[Shown], None], deletions: Callable[[], int]
    ) -> None:
        self._queue: Queue[_Task | None] = Queue(waiting)
        self._metrics, self._keep, self._deletions = metrics, keep, deletions
        self._closing = Event()
        self._thread = Thread(target=self._run, name="shadows", daemon=True)
        self._thread.start()

    def ask(self, shown: Shown, variant: Variant) -> None:
        """Later, if there is room."""
        try:
            self._queue.put_nowait(_Task(shown, variant))
        except Full:
            self._metrics.shadow_missed(variant.name, "dropped")

    def close(self) -> None:
        """What waits is dropped; one that hangs is left behind."""
        self._closing.set()
        with suppress(Full):
            self._queue.put_nowait(None)  # wakes a thread that has nothing to do
        self._thread.join(SECONDS_TO_CLOSE)

    def _run(self) -> None:
        while (task := self._queue.get()) is not None and not self._closing.is_set():
            if task.shown.assigned.deletions != self._deletions():
                self._metrics.shadow_missed(task.variant.name, "dropped")
                continue
            try:
                self._answer(task)
            except Exception as error:  # a shadow must never end what serves
                self._metrics.shadow_missed(task.variant.name, "failed")
                LOG.warning("variant %s: failed in the shadow: %s: %s", task.variant.name, type(error).__name__, error)

    def _answer(self, task: _Task) -> None:
        """To the same events; without the user, for whom nothing is to be kept twice."""
        service, shown = task.variant.service, task.shown
        started = time.perf_counter()
        query = replace(shown.query, user_id=None, history=shown.answer.history)
        answer = service.recommender.recommend(query.within(service.recommender.most_steps))
        seconds = time.perf_counter() - started
        item_ids = [service.items.item_id(row) for row in answer.rows.tolist()]
        same = len(set(item_ids) & set(shown.item_ids)) / max(len(shown.item_ids), len(item_ids), 1)
        self._metrics.shadow(task.variant.name, same, seconds)
        self._keep(
            replace(
                shown,
                variant=task.variant.name,
                propensity=1.0,
                model_version=service.bundle.version,
                answer=answer,
                item_ids=item_ids,
            )
        )
