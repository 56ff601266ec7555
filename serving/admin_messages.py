"""What those who run the service send and get: which bundle answers whom."""

from typing import Annotated

from pydantic import BaseModel, Field

from serving.options import Request
from serving.split import CONTROL

VariantName = Annotated[str, Field(min_length=1, max_length=64)]
Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class ChangeRequest(Request):
    """Which variant's bundle is to be changed."""

    variant: VariantName = CONTROL


class Changed(BaseModel):
    """The answer of `/v1/models/reload` and `/v1/models/rollback`: what answers now."""

    request_id: str
    variant: str
    model_version: str
    previous: str | None
    swapped: bool = Field(description="false: the source names the very bundle that answers already")


class SplitRequest(Request):
    """Weights of variants, 0 of those that are not named; `shadows`: those that answer in the background."""

    weights: Annotated[dict[VariantName, Weight], Field(min_length=1, max_length=100)]
    shadows: Annotated[list[VariantName], Field(max_length=100)] | None = Field(
        default=None, description="null: as they are"
    )


class StopRequest(Request):
    """Which variant is to answer nobody any more."""

    variant: VariantName | None = Field(default=None, description="null: all but control")


class SplitNow(BaseModel):
    """The answer of `/v1/variants`: which part of the users gets which variant."""

    request_id: str
    weights: dict[str, float]
    shares: dict[str, float]
    shadows: list[str]
    kept: bool = Field(description="whether a restart keeps this: RECSYS_SPLIT_FILE is set")
