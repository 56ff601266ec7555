"""Guardrails: figures that a better model must not pay with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recsys.errors import ConfigError


@dataclass(frozen=True)
class Guardrail:
    """How far a figure may change, as a share of the base's: fall where below 0, rise where above."""

    figure: str
    change: float

    @classmethod
    def parse(cls, text: str) -> "Guardrail":
        """From `FIGURE=CHANGE`, e.g. `coverage@10=-0.2`."""
        figure, separator, change = text.rpartition("=")
        try:
            parsed = float(change)
        except ValueError:
            parsed = math.nan
        if not (separator and figure and math.isfinite(parsed)):
            raise ConfigError(
                f"compare: --guard {text!r} is not FIGURE=CHANGE such as coverage@10=-0.2 (may fall by a fifth) or "
                "popularity_bias@10=0.1 (may rise by a tenth)."
            )
        return cls(figure, parsed)


GUARDRAILS = (
    Guardrail("coverage@10", -0.2),
    Guardrail("novelty@10", -0.1),
    Guardrail("popularity_bias@10", 0.1),
    Guardrail("item: cold/ndcg@10", -0.2),
)
"""Of lists, and of items new to training; those that an evaluation has no figure for are left out. Time (`seconds` of
ranking a case) is not among them: evaluations run on whatever machine is free."""


def with_standard(own: Sequence[Guardrail]) -> tuple[Guardrail, ...]:
    """The standard ones, those of the same figure replaced."""
    named = {guardrail.figure for guardrail in own}
    return (*(guardrail for guardrail in GUARDRAILS if guardrail.figure not in named), *own)


@dataclass(frozen=True)
class Check:
    """A guardrail's figure in both models."""

    figure: str
    allowed: float
    base: float
    value: float

    @property
    def holds(self) -> bool:
        """Whether the change is within what is allowed."""
        limit = self.base * (1 + self.allowed)
        return self.value >= limit if self.allowed < 0 else self.value <= limit

    @property
    def change(self) -> float:
        """As a share of the base's figure."""
        return self.value / self.base - 1 if self.base else (0.0 if self.value == self.base else math.inf)

    @property
    def change_text(self) -> str:
        """The change for people."""
        return f"{self.change:+.1%}" if math.isfinite(self.change) else "from 0"

    def sentence(self) -> str:
        """What the figures say."""
        word = "fall" if self.allowed < 0 else "rise"
        return (
            f"{self.figure} is {self.value:.4g} against {self.base:.4g} ({self.change_text}; it may {word} by "
            f"{abs(self.allowed):.0%})"
        )


def checked(guardrails: Sequence[Guardrail], base: Mapping[str, float], values: Mapping[str, float]) -> list[Check]:
    """One check a guardrail; a named figure that no evaluation has is an error, a default one is left out."""
    checks = []
    for guardrail in guardrails:
        if guardrail.figure in base and guardrail.figure in values:
            figures = base[guardrail.figure], values[guardrail.figure]
            checks.append(Check(guardrail.figure, guardrail.change, *figures))
        elif guardrail not in GUARDRAILS:
            raise ConfigError(
                f"compare: --guard {guardrail.figure}: the evaluations have no such figure; they have "
                f"{', '.join(name for name in base if '/' not in name)}, and SEGMENT/METRIC such as item: warm/ndcg@10."
            )
    return checks
