"""What clients send and get: pydantic at the border, unknown keys refused."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from serving import paging
from serving.encodings import Origin
from serving.keys import KeyOrigin
from serving.options import BoostMessage, DiversityMessage, FieldName, FilterMessage, Request, as_filter
from serving.queries import Query, Source, Stage, Stored
from serving.ranking import Unranked

MAX_K = 200
MAX_BOOSTS = 4
EARLIEST, LATEST = 10**14, 253_402_300_799_999_999

ItemId = Annotated[str, Field(min_length=1, max_length=512)]
UserId = Annotated[str, Field(min_length=1, max_length=512)]
Text = Annotated[str, Field(max_length=10_000)]
VariantName = Annotated[str, Field(min_length=1, max_length=64)]
Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
K = Annotated[int, Field(ge=1, le=MAX_K)]


def _a_page(after: str) -> str:
    """Refuses what no answer gave."""
    paging.read(after)
    return after


class RecommendRequest(Request):
    """Give `history` (oldest first), `user_id`, or both: stored events first, then those of `history`."""

    history: list[ItemId] | None = None
    user_id: UserId | None = None
    session_id: UserId | None = Field(
        default=None, description="of somebody without user_id: gives all requests of a session to one variant"
    )
    k: K = 10
    exclude_seen: bool | None = Field(default=None, description="null: the rule the bundle was evaluated with")
    exclude: list[ItemId] = Field(default=[])
    reasoning_steps: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="null: as many as the model was trained with; at most reasoning_steps of /version"
    )

    rank: bool | None = Field(
        default=None, description="whether the bundle's ranker orders what was found; null: where it has one"
    )
    filter: FilterMessage = Field(default={})
    boosts: Annotated[list[BoostMessage], Field(max_length=MAX_BOOSTS)] = Field(
        default=[], description="one after the other, of the whole catalogue"
    )
    diversity: DiversityMessage | None = None
    after: Annotated[str, Field(max_length=10_000), AfterValidator(_a_page)] | None = Field(
        default=None, description="next of an answer to the same request: its further items"
    )
    why: Annotated[int, Field(ge=0, le=5)] = Field(
        default=0, description="how many of the history's items that are nearest to it an item is explained by"
    )
    fields: Annotated[list[FieldName], Field(max_length=50)] = Field(
        default=[], description="fields of the items that the answer shows"
    )

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        if self.history is None and self.user_id is None:
            raise ValueError('give history (it may be empty: {"history": []}), user_id, or both')
        return self

    def wishes(self) -> str | None:
        """What is asked for beside a history, as JSON; None for nothing."""
        told = {"history", "user_id", "session_id", "after"}
        asked = self.model_fields_set - told
        return self.model_dump_json(include=asked, exclude_defaults=True) if asked else None

    def as_query(self) -> Query:
        """For the recommender."""
        return Query(
            history=self.history or [],
            user_id=self.user_id,
            k=self.k,
            exclude_seen=self.exclude_seen,
            exclude=self.exclude,
            reasoning_steps=self.reasoning_steps,
            rank=self.rank is not False,
            filter=as_filter(self.filter),
            boosts=[boost.as_boost() for boost in self.boosts],
            diversity=None if self.diversity is None else self.diversity.as_diversity(),
            shown=() if self.after is None else paging.read(self.after),
            why=self.why,
            fields=self.fields,
        )


class BatchRequest(Request):
    """Several requests, answered in their order; one that cannot be used refuses them all."""

    requests: Annotated[list[RecommendRequest], Field(min_length=1)]


def _in_microseconds(timestamp: int) -> int:
    """Refuses what must be seconds, milliseconds or nanoseconds."""
    if not EARLIEST <= timestamp <= LATEST:
        raise ValueError("lies outside the years 1973 to 9999; give microseconds since 1970-01-01 UTC")
    return timestamp


class EventMessage(Request):
    """One interaction; without `timestamp` it counts as happening now."""

    user_id: UserId
    item_id: ItemId
    timestamp: Annotated[int, AfterValidator(_in_microseconds)] | None = Field(
        default=None,
        description="microseconds since 1970-01-01 UTC",
        json_schema_extra={"minimum": EARLIEST, "maximum": LATEST},
    )
    event_id: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        default=None, description="an event of the same user sent again under this id is stored once"
    )
    event_type: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="such as view or purchase; for the exposure log"
    )
    value: Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)] | None = Field(
        default=None, description="such as a price; for the exposure log"
    )
    request_id: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="of the answer that it followed; for the exposure log"
    )


def _as_list(body: object) -> object:
    return [body] if isinstance(body, dict) else body


EventMessages = Annotated[
    list[EventMessage],
    Field(min_length=1),
    BeforeValidator(_as_list, json_schema_input_type=EventMessage | list[EventMessage]),
]


class ItemMessage(Request):
    """An item to be recommended from now on, by what is said of it; `fields` are further attributes by name."""

    item_id: ItemId
    title: Text | None = None
    categories: Annotated[list[Text], Field(max_length=100)] = Field(default=[])
    fields: Annotated[dict[FieldName, Text], Field(max_length=100)] = Field(default={})

    @model_validator(mode="after")
    def _names_each_attribute_once(self) -> Self:
        if clash := sorted(self.fields.keys() & {"item_id", "title", "categories"}):
            raise ValueError(f"fields: {clash[0]} has a place of its own, beside fields")
        return self

    @property
    def is_bare(self) -> bool:
        """An id alone: of a deleted item, asks for it back."""
        return self.title is None and not self.categories and not self.fields


ItemMessages = Annotated[
    list[ItemMessage],
    Field(min_length=1),
    BeforeValidator(_as_list, json_schema_input_type=ItemMessage | list[ItemMessage]),
]


class ItemsStored(BaseModel):
    """The answer of POST `/v1/items`: these items can be recommended now."""

    request_id: str
    model_version: str
    stored: int
    replaced: int = Field(description="of them: items stored before, written anew")
    restored: int = Field(description="items sent as an id alone that had been deleted, and are back as they were")


class Item(BaseModel):
    """What is shown of an item."""

    item_id: str
    title: str | None
    categories: list[str]


class ScoredItem(Item):
    """One line of a ranking; scores compare within one answer only."""

    score: float


class NearItem(Item):
    """An item of the history, and the cosine of its vector with the recommended item's."""

    cosine: float


class RecommendedItem(ScoredItem):
    """One line of an answer."""

    fields: dict[str, Any] | None = Field(description="those that were asked for; null where none were")
    why: list[NearItem] = Field(description="nearest items of the history that the model read")


class ItemDetails(Item):
    """All that is known of an item; a retired one is never recommended."""

    retired: bool
    fields: dict[str, Any]


class Milliseconds(BaseModel):
    """Time in each stage; 0 where one was not needed."""

    state: float
    encode: float
    search: float
    rank: float


class Recommendations(BaseModel):
    """The answer of `/v1/recommend`, best item first."""

    request_id: str
    model_version: str
    variant: str = Field(description="which of the bundles that answer here was chosen for this user")
    items: list[RecommendedItem]
    next: str | None = Field(description="sent as after of the same request it gives further items; null at the end")
    source: Source
    no_history: str | None = Field(description="what ranked the items where source is no_history, else null")
    unknown_items: list[str] = Field(description="ids of history and exclude that were ignored")
    history_length: int = Field(description="known events of the whole history")
    history_used: int = Field(description="the newest of them, which the model read")
    state: Stored | None = Field(description="of user_id's events: read, or unavailable and left out; null: no user_id")
    encoding: Origin | None = Field(description="of the history: cached, a step from a cached one, or made in full")
    stages: list[Stage] = Field(description="those that ran")
    unranked: Unranked | None = Field(description="why the bundle's ranker did not order the items, else null")
    rank_events: int = Field(description="newest events of items it knows, which the ranker read")
    rank_keys: KeyOrigin | None = Field(description="of these events: kept, appended to kept ones, or gathered anew")
    milliseconds: Milliseconds


class BatchRecommendations(BaseModel):
    """The answer of `/v1/recommend/batch`, in the order of the requests."""

    request_id: str
    answers: list[Recommendations]


class EventsStored(BaseModel):
    """The answer of `/v1/events`."""

    request_id: str
    stored: int
    duplicates: int = Field(description="events whose event_id was stored before")
    unknown_items: list[str] = Field(description="stored, but not in this bundle's catalogue")


class SimilarItems(BaseModel):
    """The answer of `/v1/similar/{item_id}`: scores are cosines of item vectors."""

    request_id: str
    model_version: str
    item_id: str
    items: list[ScoredItem]


class StoredEvent(BaseModel):
    """One event as it is kept; `timestamp` is microseconds since 1970 UTC."""

    item_id: str
    timestamp: int
    event_id: str | None


class UserData(BaseModel):
    """The answer of GET `/v1/users/{user_id}`: all that is known of a user, oldest event first."""

    request_id: str
    user_id: str
    events: list[StoredEvent]
    kept_keys: int = Field(description="events whose keys are kept in this process for the ranker")


class UserDeleted(BaseModel):
    """The answer of DELETE `/v1/users/{user_id}`: nothing is left of the user here."""

    request_id: str
    events: int = Field(description="how many there were")


class Health(BaseModel):
    """`ok`, or `degraded`: answers come from what requests carry, for the user state does not answer."""

    status: Literal["ok", "degraded"] = "ok"


class RankerVersion(BaseModel):
    """The second stage of a bundle."""

    name: str
    candidates: int = Field(description="items of the first stage that it orders, at least")
    max_len: int
    shortest: int = Field(description="events of a history from which it ranks")
    weight: float | None = Field(description="score = first stage's + weight x ranker's; null: the ranker's alone")


class Model(BaseModel):
    """One bundle that answers here."""

    variant: str
    source: str = Field(description="where the bundle came from, and is looked for again")
    share: float = Field(description="of users that get this variant")
    shadow: bool = Field(description="whether it also answers in the background what others are asked")
    since: str = Field(description="when it began to answer, ISO 8601")
    previous: str | None = Field(description="the bundle before it, loaded still: what a rollback brings back")
    refused: str | None = Field(description="why the last bundle that its source named was refused, else null")
    bundle: str
    model: str
    items: int
    new_items: int = Field(description="items that came since the bundle was exported")
    item_fields: dict[str, str] = Field(description="what filters may ask of, and what their values are")
    max_len: int
    seen: str
    reasoning_steps: int
    ranker: RankerVersion | None
    no_history: str
    exported: str | None
    index: dict[str, Any] = Field(description="how all items are searched, and the recall measured at export")
    metrics: dict[str, Any]


class ChangeRequest(Request):
    """Which variant's bundle is to be changed."""

    variant: VariantName = "control"


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


class Models(BaseModel):
    """The answer of `/v1/models`."""

    models: list[Model]


class Version(Model):
    """What runs here."""

    recsys: str


class Complaint(BaseModel):
    """One field of a request that cannot be used."""

    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457, with the request's id and, for 422, each field that cannot be used."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[Complaint] | None = None
