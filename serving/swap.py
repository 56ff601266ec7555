"""One place that answers come from: the next bundle is loaded aside and tried, then takes the last one's at once.

    source names another bundle -> loaded -> tried -> caught up with new items -> current, and what was so is previous
                                      |        |
                                      '- refused, said once: the current one serves on; what may pass is tried again

A request takes the current bundle once and keeps it to its end, so none sees two, and none waits.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from recsys.bundle import Bundle, bundle_version
from recsys.errors import RecsysError
from recsys.steps import MANIFEST
from serving.metrics import Outcome
from serving.service import Service
from serving.settings import Settings
from serving.sources import Fetched, Offer, Source
from serving.state import StateError
from serving.stores import Stores
from serving.successor import Trial, check_successor

LOG = logging.getLogger("uvicorn.error")
PASSING = (StateError, OSError, MemoryError)
"""What a load fails with through no fault of the bundle: the next look tries it again."""


class SwapError(RecsysError):
    """What was asked of a variant cannot be done; it serves on as before."""


@dataclass(frozen=True)
class Loaded:
    """A bundle that can answer, and since when it does, in seconds since 1970."""

    service: Service
    fetched: Fetched
    since: float


@dataclass(frozen=True)
class Place:
    """What answers, and what answered before and can do so again at once; replaced as a whole."""

    current: Loaded
    previous: Loaded | None = None

    @property
    def all(self) -> list[Loaded]:
        """The current one first."""
        return [self.current] if self.previous is None else [self.current, self.previous]

    def holding(self, folder: Path) -> Loaded | None:
        """The one that is of the bundle in this folder."""
        version = bundle_version(folder) if (folder / MANIFEST).is_file() else None
        return next((loaded for loaded in self.all if loaded.service.bundle.version == version), None)


class Variant:
    """A named place; any thread may ask it. `count` hears the outcome of every attempt to change it."""

    def __init__(
        self,
        name: str,
        source: Source,
        stores: Stores,
        settings: Settings,
        count: Callable[[str, Outcome], None],
    ) -> None:
        self.name, self.source = name, source
        self._stores, self._settings, self._count = stores, settings, count
        self._changing = Lock()
        offer = source.look()
        self._tried, self._unseen = offer.token, False
        self.refused: str | None = None
        self._place = Place(self._load(offer.fetch()))

    @property
    def service(self) -> Service:
        """What answers now."""
        return self._place.current.service

    @property
    def since(self) -> float:
        """When it began to, in seconds since 1970."""
        return self._place.current.since

    @property
    def previous(self) -> Bundle | None:
        """What `roll_back` would bring back."""
        return None if self._place.previous is None else self._place.previous.service.bundle

    @property
    def services(self) -> list[Service]:
        """All that is loaded."""
        return [loaded.service for loaded in self._place.all]

    def follow(self) -> None:
        """Tries what the source names, once; whatever goes wrong is logged, and the present bundle serves on."""
        try:
            offer = self.source.look()
        except Exception as error:  # as `fetch` below; it must not end the following
            self._say_unseen(error)
            return
        if offer.token == self._tried:
            self._unseen = False
            return
        if not self._changing.acquire(blocking=False):
            return
        try:
            self._take(offer)
        except SwapError:
            return  # said by `_take`
        finally:
            self._changing.release()

    def reload(self) -> bool:
        """Tries what the source names, also after a refusal or a rollback; whether another bundle answers now.

        A `SwapError` says why not.
        """
        with self._alone():
            try:
                offer = self.source.look()
            except Exception as error:
                raise SwapError(f"{self.source.name} does not answer: {_reason(error)}") from None
            return self._take(offer)

    def roll_back(self) -> None:
        """The previous bundle answers from now on; the source is not followed until it names something new."""
        with self._alone():
            place = self._place
            if place.previous is None:
                raise SwapError(f"variant {self.name} has no earlier bundle loaded to go back to")
            self._put(place.previous, keep=place.current)
            self._count(self.name, "rolled back")
            LOG.warning("variant %s: rolled back to bundle %s", self.name, self.service.bundle.version)

    def close(self) -> None:
        """Removes copies."""
        for loaded in self._place.all:
            loaded.fetched.close()

    def _take(self, offer: Offer) -> bool:
        """Fetches, loads, tries and swaps; a refusal is kept, logged and raised."""
        before, started = self.service.bundle.version, time.perf_counter()
        try:
            fetched = offer.fetch()
        except Exception as error:  # of whatever lies between here and a registry's files
            self._say_unseen(error)
            raise SwapError(f"{self.source.name} does not answer: {_reason(error)}") from None
        try:
            trial = self._taken(fetched)
        except PASSING as error:
            self._say_unseen(error)
            raise SwapError(f"{self.source.name} cannot be loaded now: {_reason(error)}") from None
        except Exception as error:  # whatever a bundle does wrong must not end what serves
            self._decided(offer)
            raise self._refusal(error) from None
        self._decided(offer)
        self.refused = None
        self._count(self.name, "unchanged" if trial is None else "swapped")
        if trial is not None:
            seconds = time.perf_counter() - started
            now = self.service.bundle.version
            LOG.info("variant %s: bundle %s follows %s after %.1f s; %s", self.name, now, before, seconds, trial)
        return trial is not None

    def _taken(self, fetched: Fetched) -> Trial | None:
        """None where the bundle is the present one; the previous one is not loaded again."""
        place = self._place
        known = place.holding(fetched.folder)
        if known is not None:
            fetched.close()
        if known is place.current:
            return None
        loaded = known or self._load(fetched)
        try:
            trial = check_successor(loaded.service, place.current.service, self._settings)
            self._put(loaded, keep=place.current)
        except BaseException:
            if loaded is not known:
                fetched.close()
            raise
        return trial

    def _load(self, fetched: Fetched) -> Loaded:
        try:
            return Loaded(Service.open(fetched.folder, self._settings, self._stores), fetched, time.time())
        except BaseException:
            fetched.close()
            raise

    def _put(self, loaded: Loaded, keep: Loaded) -> None:
        """`loaded` answers from now on, `keep` can do so again; neither memory nor a copy is held for others."""
        with self._stores.writing:
            loaded.service.catch_up()
            gone = self._place.previous
            self._place = Place(Loaded(loaded.service, loaded.fetched, time.time()), keep)
        keep.service.recommender.rest()
        if gone is not None and gone is not loaded:
            gone.fetched.close()

    def _refusal(self, error: Exception) -> SwapError:
        self.refused = reason = _reason(error)
        self._count(self.name, "refused")
        LOG.error("variant %s: refused, %s serves on: %s", self.name, self.service.bundle.version, reason)
        return SwapError(f"refused, bundle {self.service.bundle.version} serves on: {reason}")

    def _decided(self, offer: Offer) -> None:
        """Not tried again by itself, and its source was seen."""
        self._tried, self._unseen = offer.token, False

    def _say_unseen(self, error: Exception) -> None:
        """Once, until what the source names was seen and loaded, or refused."""
        if not self._unseen:
            where = self.source.name
            LOG.warning("variant %s: %s gives no bundle, tried again later: %s", self.name, where, _reason(error))
        self._unseen = True
        self._count(self.name, "unseen")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._changing.acquire(blocking=False):
            raise SwapError(f"variant {self.name} is being changed already; ask again when that is over")
        try:
            yield
        finally:
            self._changing.release()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, RecsysError) else f"{type(error).__name__}: {error}"
