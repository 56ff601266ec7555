"""What the service counts, in Prometheus's text format; one registry an app."""

from collections.abc import Mapping, Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from recsys.bundle import Bundle
from serving.encodings import CacheSize
from serving.queries import Answer
from serving.recent import Recent

Outcome = Literal["swapped", "unchanged", "refused", "rolled back", "unseen"]
TENTHS = tuple(step / 10 for step in range(11))
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Counters and histograms of one app."""

    def __init__(self) -> None:
        self.recent = Recent()
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "recsys_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self._latency = Histogram(
            "recsys_request_seconds", "Whole requests.", ["route"], registry=self.registry, buckets=SECONDS
        )
        self._stages = Histogram(
            "recsys_stage_seconds", "Stages of a recommendation.", ["stage"], registry=self.registry, buckets=SECONDS
        )
        self._fallbacks = Counter("recsys_no_history", "Answers without a known history.", registry=self.registry)
        self._encodings = Counter(
            "recsys_encodings", "Histories by how they were encoded.", ["origin"], registry=self.registry
        )
        self._cache_bytes = Gauge("recsys_encoding_cache_bytes", "Memory of kept encodings.", registry=self.registry)
        self._cache_entries = Gauge("recsys_encoding_cache_entries", "Encodings kept.", registry=self.registry)
        self._rankings = Counter(
            "recsys_rank_keys",
            "Ranked answers by how the keys of their events came about.",
            ["origin"],
            registry=self.registry,
        )
        self._unranked = Counter(
            "recsys_unranked", "Answers that the bundle's ranker left as they were.", ["reason"], registry=self.registry
        )
        self._key_bytes = Gauge("recsys_key_cache_bytes", "Memory of users' kept keys.", registry=self.registry)
        self._key_entries = Gauge("recsys_key_cache_entries", "Users whose keys are kept.", registry=self.registry)
        self._unknown = Counter(
            "recsys_unknown_items", "Ids that the catalogue does not know.", ["route"], registry=self.registry
        )
        self._events = Counter("recsys_events", "Events by outcome.", ["outcome"], registry=self.registry)
        self._without_state = Counter(
            "recsys_without_state",
            "Answers without the user's events: the state was silent.",
            registry=self.registry,
        )
        self._state = Gauge("recsys_state_up", "1 where the user state answers, else 0.", registry=self.registry)
        self._bundle = Gauge(
            "recsys_bundle",
            "1 for each bundle that answers.",
            ["variant", "version", "model"],
            registry=self.registry,
        )
        self._changes = Counter(
            "recsys_bundle_changes",
            "Attempts to put another bundle in a variant's place.",
            ["variant", "outcome"],
            registry=self.registry,
        )

        self._answers = Histogram(
            "recsys_answer_seconds",
            "All stages of an answer.",
            ["variant"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self._share = Gauge("recsys_share", "Share of users that get it.", ["variant"], registry=self.registry)
        self._shadow_seconds = Histogram(
            "recsys_shadow_seconds", "Answers in the shadow.", ["variant"], registry=self.registry, buckets=SECONDS
        )
        self._shadow_overlap = Histogram(
            "recsys_shadow_overlap",
            "Share of items that a shadow would have shown too.",
            ["variant"],
            registry=self.registry,
            buckets=TENTHS,
        )
        self._shadow_missed = Counter(
            "recsys_shadow_missed", "Requests that a shadow did not answer.", ["variant", "why"], registry=self.registry
        )

        self._exposures = Counter(
            "recsys_exposures", "Rows of the exposure log that were written.", ["kind"], registry=self.registry
        )
        self._exposures_lost = Counter(
            "recsys_exposures_lost", "Rows of the exposure log that were not.", ["kind", "why"], registry=self.registry
        )

    def exposures_written(self, kind: str, count: int) -> None:
        """Rows of one part."""
        self._exposures.labels(kind).inc(count)

    def exposures_lost(self, kind: str, why: Literal["dropped", "unwritten"], count: int) -> None:
        """Rows for which there was no room, or no disk at the end."""
        self._exposures_lost.labels(kind, why).inc(count)

    def shares(self, shares: Mapping[str, float]) -> None:
        """Which part of the users gets which variant."""
        for variant, share in shares.items():
            self._share.labels(variant).set(share)

    def shadow(self, variant: str, overlap: float, seconds: float) -> None:
        """One answer that nobody saw."""
        self._shadow_seconds.labels(variant).observe(seconds)
        self._shadow_overlap.labels(variant).observe(overlap)

    def shadow_missed(self, variant: str, why: Literal["dropped", "failed"]) -> None:
        """One that was not made."""
        self._shadow_missed.labels(variant, why).inc()

    def serving(self, bundles: Mapping[str, Bundle]) -> None:
        """Names the bundle of each variant."""
        self._bundle.clear()
        for variant, bundle in bundles.items():
            self._bundle.labels(variant, bundle.version, bundle.card.name).set(1)

    def change(self, variant: str, outcome: Outcome) -> None:
        """One attempt."""
        self._changes.labels(variant, outcome).inc()

    def request(self, route: str, status: int, seconds: float) -> None:
        """One finished request."""
        self.recent.request(status, seconds)
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def answer(self, answer: Answer, variant: str | None = None) -> None:
        """One recommendation; without a variant where none was chosen for somebody: the page shows it in any case."""
        if variant is not None:
            self._answers.labels(variant).observe(sum(answer.seconds.values()))
        for stage, seconds in answer.seconds.items():
            if seconds:
                self._stages.labels(stage).observe(seconds)
        if answer.stored == "unavailable":
            self._without_state.inc()
        if answer.source == "no_history":
            self._fallbacks.inc()
        if answer.encoding is not None:
            self._encodings.labels(answer.encoding).inc()
        if answer.rank_keys is not None:
            self._rankings.labels(answer.rank_keys).inc()
        if answer.unranked is not None:
            self._unranked.labels(answer.unranked).inc()
        self._unknown.labels("recommend").inc(len(answer.unknown_items))

    def events(self, outcomes: Mapping[str, int], unknown: int) -> None:
        """One accepted list of events."""
        for outcome, count in outcomes.items():
            self._events.labels(outcome).inc(count)
        self._unknown.labels("events").inc(unknown)

    def refused_events(self, count: int) -> None:
        """Events of one list that could not be stored."""
        self._events.labels("refused").inc(count)

    def state(self, answers: bool) -> None:
        """Whether the user state does."""
        self._state.set(answers)

    def caches(self, encodings: Sequence[CacheSize], keys: Sequence[CacheSize]) -> None:
        """What is kept between requests, by each bundle."""
        self._cache_entries.set(sum(size.entries for size in encodings))
        self._cache_bytes.set(sum(size.bytes for size in encodings))
        self._key_entries.set(sum(size.entries for size in keys))
        self._key_bytes.set(sum(size.bytes for size in keys))

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)
