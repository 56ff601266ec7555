"""Everything that answers here: the variants with their bundles, and what all of them share."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from threading import Thread
from typing import Any

from recsys.errors import ConfigError
from serving.exposure_log import ExposureLog
from serving.metrics import Metrics
from serving.new_items import NewItem
from serving.service import Service
from serving.settings import Settings
from serving.shadow import Shadows
from serving.shown import Assigned, Shown
from serving.sources import Source, source_of
from serving.split import CONTROL, Split, SplitFile
from serving.state import Event, StateError
from serving.stores import Stores
from serving.swap import Variant

LOG = logging.getLogger("uvicorn.error")
SECONDS_TO_CLOSE = 1
"""For a bundle that is being loaded: the next start loads it again."""


class Variants:
    """Open and checked; `start` has them follow their sources, `close` when done."""

    def __init__(self, source: Source, settings: Settings, metrics: Metrics) -> None:
        self.metrics = metrics
        with ExitStack() as opened:
            self._log = None if settings.exposures is None else ExposureLog(settings.exposures, settings, metrics)
            if self._log is not None:
                opened.callback(self._log.close)
            self._split = SplitFile(_split(settings), settings.split_file)
            self.stores = Stores.open(settings)
            opened.callback(self.stores.close)
            sources = {CONTROL: source, **{name: source_of(text) for name, text in settings.variants.items()}}
            self.all = {
                name: Variant(name, each, self.stores, settings, metrics.change) for name, each in sources.items()
            }
            opened.pop_all()
        self._shadows = Shadows(settings.shadow_waiting, metrics, self._log_shadow, lambda: self.stores.state.deletions)
        self._pause, self._stopped = settings.watch_seconds, threading.Event()
        self._watcher = Thread(target=self._watch, name="watcher", daemon=True)

    @property
    def control(self) -> Variant:
        """What answers where no other is chosen."""
        return self.all[CONTROL]

    @property
    def split(self) -> Split:
        """Who gets which variant now."""
        return self._split.now

    @property
    def keeps_split(self) -> bool:
        """Whether a restart knows of changes."""
        return self._split.is_kept

    def change_split(self, changed: Callable[[Split], Split]) -> None:
        """To what `changed` makes of the present one, from the next request on."""
        split = self._split.change(changed)
        LOG.warning("weights are now %s, shadows %s", dict(split.weights), list(split.shadows))

    def assigned(self, user_id: str | None, session_id: str | None, request_id: str) -> Assigned:
        """By the user, or else the session, so that these keep their variant; without either by the request."""
        unit = next(
            f"{kind}:{name}"
            for kind, name in (("user", user_id), ("session", session_id), ("request", request_id))
            if name is not None
        )
        split, began, deletions = self.split, time.time_ns() // 1_000, self.stores.state.deletions
        name, share = split.choose(unit)
        shadows = [each for each in split.shadows if each != name]
        return Assigned(self.all[name], self.all[name].service, share, shadows, began, deletions)

    async def showed(self, answers: Sequence[Shown]) -> None:
        """Notes answers that went out, and has the shadows answer the same; nothing here waits.

        To be called after that, and so never where a client got something else instead.
        """
        for shown in answers:
            self.metrics.recent.answered(shown.variant, shown.answer, shown.item_ids)
            if self._log is not None:
                self._log.answer(shown)
            for name in shown.assigned.shadows:
                self._shadows.ask(shown, self.all[name])

    def happened(self, events: Sequence[Mapping[str, Any]]) -> int:
        """Stores events of users, and notes them with all that was said; how many were new. Columns of `Outcomes`."""
        began = time.time_ns() // 1_000
        stored = self.stores.state.append([
            Event(
                user_id=event["user_id"],
                item_id=event["item_id"],
                timestamp=event["timestamp"],
                event_id=event.get("event_id"),
            )
            for event in events
        ])
        if self._log is not None:
            self._log.outcomes(events, began)
        return stored

    def services(self) -> list[Service]:
        """The bundles that answer now, that of `control` first."""
        return [variant.service for variant in self.all.values()]

    def start(self) -> None:
        """From now on sources are followed, unless the settings say otherwise."""
        if self._pause:
            self._watcher.start()

    def close(self) -> None:
        """Ends following, and closes what is shared, within seconds: threads that hang are left behind."""
        self._stopped.set()
        try:
            self._shadows.close()
        finally:
            if self._log is not None:
                self._log.close()
        if self._watcher.is_alive():
            self._watcher.join(SECONDS_TO_CLOSE)
        for variant in self.all.values():
            variant.close()
        self.stores.close()

    def state_answers(self) -> bool:
        """Whether the user state does so now."""
        try:
            self.stores.state.check()
        except StateError:
            return False
        return True

    def forget(self, user_id: str) -> int:
        """Deletes all that is known of a user, from the store and from what is kept; how many events there were."""
        deleted = self.stores.state.delete(user_id)
        for variant in self.all.values():
            for service in variant.services:
                service.recommender.drop_kept()
        if self._log is not None:
            try:
                self._log.forget(user_id)
            except OSError as error:
                raise StateError(
                    f"the exposure log cannot note that a user was deleted: {error}; delete again"
                ) from None
        return deleted

    def add_items(self, items: Sequence[NewItem], restored: Sequence[str] = ()) -> int:
        """Stores items and makes them recommendable by all bundles that take them, and `restored` ones again, all or
        none; how many items were written anew. Of two with the same id the later counts.
        """
        newest = {item.item_id: item for item in items}
        with self.stores.writing:
            services = self.services()
            again = [item_id for item_id in newest if any(_has_new(service, item_id) for service in services)]
            read = [service.read([item for item in newest.values() if service.takes(item)]) for service in services]
            self.stores.items.put(list(newest.values()), restored)
            for service, admission in zip(services, read, strict=True):
                service.admit(admission)
                service.heed_deletions()
        return len(again)

    def delete_item(self, item_id: str) -> None:
        """No answer holds the item from now on, until it is restored."""
        with self.stores.writing:
            self.stores.items.delete(item_id)
            for service in self.services():
                service.heed_deletions()

    def has_deleted(self, item_id: str) -> bool:
        """Whether a client took the item out, and may bring it back."""
        return any(service.is_deleted(item_id) for service in self.services())

    def _log_shadow(self, shown: Shown) -> None:
        if self._log is not None:
            self._log.answer(shown, "shadow")

    def _watch(self) -> None:
        while not self._stopped.wait(self._pause):
            for variant in self.all.values():
                variant.follow()


def _split(settings: Settings) -> Split:
    if CONTROL in settings.variants:
        raise ConfigError(
            f"RECSYS_VARIANTS: {CONTROL} is the bundle that `recsys serve` names; call the other one otherwise."
        )
    everybody = Split(salt=settings.salt, weights={CONTROL: 1.0, **dict.fromkeys(settings.variants, 0.0)})
    try:
        return everybody.changed(settings.weights or everybody.weights, settings.shadows)
    except ConfigError as error:
        raise ConfigError(f"RECSYS_WEIGHTS, RECSYS_SHADOWS: {error}") from None


def _has_new(service: Service, item_id: str) -> bool:
    return service.row(item_id) is not None and item_id not in service.bundle.catalog.rows
