"""What a request for recommendations may ask for beside a history: a filter, boosts, diversity."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from serving.boosts import Boost
from serving.diversity import Counted, Diversity, Quota
from serving.filters import Condition, Filter

FieldName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Number = Annotated[float, Field(allow_inf_nan=False)]
WholeNumber = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Value = Annotated[str, StringConstraints(max_length=1_000)] | bool | WholeNumber | Number
Values = Annotated[list[Value], Field(min_length=1, max_length=1_000)]


class Request(BaseModel):
    """Base of what clients send: no unknown keys, no guessed types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ConditionMessage(Request):
    """What one field of an item must be; of several, all must hold."""

    any: Values | None = Field(default=None, description="one of the item's values is among these")
    none: Values | None = Field(default=None, description="none of the item's values is among these")
    min: Number | None = Field(default=None, description="the number is at least this")
    max: Number | None = Field(default=None, description="the number is at most this")
    known: bool | None = Field(default=None, description="whether the item has a value")

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if all(value is None for value in vars(self).values()):
            raise ValueError("asks nothing; give any, none, min, max or known")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min={self.min:g} is above max={self.max:g}, and nothing lies between them")
        return self


FilterMessage = Annotated[
    dict[FieldName, ConditionMessage],
    Field(
        max_length=20,
        description="conditions by the name of an item field; all must hold",
        examples=[{"categories": {"any": ["Tools"], "none": ["Toys"]}, "price": {"min": 5, "max": 20}}],
    ),
]


class BoostMessage(Request):
    """Scores of items that pass `filter` are raised or lowered."""

    filter: Annotated[FilterMessage, Field(min_length=1)]
    multiply: Annotated[float, Field(ge=1e-3, le=1_000)] = Field(
        default=1.0, description="scores from 0 are multiplied, those below divided: above 1 raises them all"
    )
    add: Annotated[float, Field(ge=-1e6, le=1e6)] = Field(default=0.0, description="added after that")

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.multiply == 1 and self.add == 0:
            raise ValueError("changes no score; give multiply or add")
        return self

    def as_boost(self) -> Boost:
        """For the recommender."""
        return Boost(filter=as_filter(self.filter), multiply=self.multiply, add=self.add)


class QuotaMessage(Request):
    """At most `most` items of one value of `field`."""

    field: FieldName
    most: Annotated[int, Field(ge=1)]
    of: Counted = Field(default="each", description="of a list: each value counts, or the first, or the last")


class DiversityMessage(Request):
    """A list less alike than the best items are: `quota`, `mmr`, or both."""

    quota: QuotaMessage | None = None
    mmr: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="lambda of maximal marginal relevance: 1 keeps the order of scores, 0 ignores them"
    )

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.quota is None and self.mmr is None:
            raise ValueError("asks nothing; give quota, mmr, or both")
        return self

    def as_diversity(self) -> Diversity:
        """For the recommender."""
        quota = None if self.quota is None else Quota(**vars(self.quota))
        return Diversity(quota=quota, mmr=1.0 if self.mmr is None else self.mmr)


def as_filter(message: dict[str, ConditionMessage]) -> Filter:
    """For the recommender."""
    return {name: Condition(**vars(condition)) for name, condition in message.items()}
