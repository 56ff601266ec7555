"""What a job has done and paid: the figures of its manifest."""

import threading
from dataclasses import dataclass, field
from typing import Any

from recsys.llm.budget import Prices
from recsys.llm.calls import Usage


@dataclass
class Account:
    """`calls` are answers that were paid for in this run, `cache_hits` answers that were there already.

    `prompt_tokens`, `cached_tokens`, `output_tokens`: of this run's calls; `earlier_tokens`: of the answers that an
    earlier run paid. `lost`: attempts that may have been answered and paid for, whose answers never came.
    """

    calls: int = 0
    cache_hits: int = 0
    retries: int = 0
    lost: int = 0
    refused: int = 0
    asked_again: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    estimated_calls: int = 0
    cost: float = 0.0
    earlier_tokens: int = 0
    earlier_cost: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **amounts: int) -> None:
        """Counts further ones."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def called(self, usage: Usage, prices: Prices) -> None:
        """An answer was paid for."""
        with self._lock:
            self.calls += 1
            self.prompt_tokens += usage.prompt
            self.cached_tokens += usage.cached
            self.output_tokens += usage.output
            self.estimated_calls += usage.estimated
            self.cost += prices.cost(usage)

    def found(self, usage: Usage, prices: Prices) -> None:
        """An answer was there already."""
        with self._lock:
            self.cache_hits += 1
            self.earlier_tokens += usage.total
            self.earlier_cost += prices.cost(usage)

    def figures(self, seconds: float) -> dict[str, Any]:
        """All of it, after so many seconds."""
        return {
            "calls": self.calls,
            "cache_hits": self.cache_hits,
            "retries": self.retries,
            "lost": self.lost,
            "refused": self.refused,
            "asked_again": self.asked_again,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "calls_with_estimated_tokens": self.estimated_calls,
            "cost": round(self.cost, 6),
            "earlier_tokens": self.earlier_tokens,
            "earlier_cost": round(self.earlier_cost, 6),
            "seconds": round(seconds, 3),
            "tokens_per_second": round((self.prompt_tokens + self.output_tokens) / max(seconds, 1e-9), 1),
        }
