"""What a job may spend and what it has spent: every call is reserved at its most before it is made."""

import threading
from dataclasses import asdict, dataclass

from recsys.errors import BudgetError, ConfigError
from recsys.llm.calls import Usage

MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Money for a million tokens: of prompts, of prompts that the server had kept (None: the same), of answers."""

    prompt: float = 0.0
    cached: float | None = None
    output: float = 0.0

    def __post_init__(self) -> None:
        if negative := [name for name, price in asdict(self).items() if price is not None and price < 0]:
            raise ConfigError(f"Prices: {negative[0]}={getattr(self, negative[0])} must be at least 0.")

    def cost(self, usage: Usage) -> float:
        """Of so many tokens."""
        cached = self.prompt if self.cached is None else self.cached
        fresh = usage.prompt - usage.cached
        return (fresh * self.prompt + usage.cached * cached + usage.output * self.output) / MILLION


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The most tokens and the most money of one job; None is no limit."""

    tokens: int | None = None
    cost: float | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "cost"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ConfigError(f"budget: {name}={value} must be above 0.")


class Budget:
    """A hard stop. What was spent counts, and what calls under way may still cost."""

    def __init__(self, prices: Prices, limit: Limit) -> None:
        if limit.cost is not None and not (prices.prompt or prices.output):
            raise ConfigError(f"budget: cost={limit.cost} stops nothing without prices for a million tokens.")
        self.prices, self.limit = prices, limit
        self.tokens, self.cost = 0, 0.0
        self._reserved: list[Usage] = []
        self._changed = threading.Condition()

    def reserve(self, most: Usage) -> None:
        """Waits for calls under way where these may leave room; `BudgetError` where the call does not fit for good."""
        with self._changed:
            while not self._fits(most):
                if not self._reserved:
                    raise self._exceeded(most)
                self._changed.wait()
            self._reserved.append(most)

    def settle(self, reserved: Usage, used: Usage | None) -> None:
        """Ends a reservation: `used` is spent, None is nothing."""
        with self._changed:
            self._reserved.remove(reserved)
            if used is not None:
                self._spend(used)
            self._changed.notify_all()

    def spend(self, used: Usage) -> None:
        """Without a reservation: what the job paid in an earlier run."""
        with self._changed:
            self._spend(used)

    def _spend(self, used: Usage) -> None:
        self.tokens += used.total
        self.cost += self.prices.cost(used)

    def _fits(self, most: Usage) -> bool:
        tokens = self.tokens + sum(usage.total for usage in [*self._reserved, most])
        cost = self.cost + sum(map(self.prices.cost, [*self._reserved, most]))
        within_cost = self.limit.cost is None or cost <= self.limit.cost
        return within_cost and (self.limit.tokens is None or tokens <= self.limit.tokens)

    def _exceeded(self, most: Usage) -> BudgetError:
        spent = f"{self.tokens} tokens" + (f" and {self.cost:.4f} in money" if self.limit.cost is not None else "")
        limits = [
            f"{value} {unit}" for value, unit in ((self.limit.tokens, "tokens"), (self.limit.cost, "in money")) if value
        ]
        return BudgetError(
            f"budget: {spent} are spent, and the next call may take {most.total} tokens more than fit into "
            f"{' and '.join(limits)}; run again with a larger budget: what was answered is kept."
        )
