"""What travels to the service and back: the JSON of a request, of an answer and of a refusal."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

MOST_ITEMS, MOST_IDS, MOST_HISTORY = 100, 10_000, 1_000

Whole = Annotated[int, Strict()]
Text = Annotated[str, Strict(), Field(max_length=200)]
Id = Whole | Text
Value = Annotated[bool, Strict()] | Whole | Annotated[float, Strict()] | Text
Ids = Annotated[list[Id], Field(max_length=MOST_IDS)]


class RecommendRequest(BaseModel):
    """A known user's id, or a history, or both; whoever is unknown gets what is popular."""

    model_config = ConfigDict(extra="forbid")

    user_id: Annotated[Id | None, Field(description="Original id of a user.")] = None
    history: Annotated[
        list[Id] | None,
        Field(max_length=MOST_HISTORY, description="Original ids of items, oldest first."),
    ] = None
    profile: Annotated[
        dict[str, Value | list[Value]] | None,
        Field(max_length=100, description="Field -> value, in place of what is known."),
    ] = None
    k: Annotated[Whole, Field(ge=1, le=MOST_ITEMS, description="How many items.")] = 10
    exclude: Annotated[Ids, Field(description="Items that must not be shown.")] = []
    allow: Annotated[Ids | None, Field(description="The only items that may be shown.")] = None
    filters: Annotated[
        dict[str, Annotated[list[Value], Field(min_length=1, max_length=100)]],
        Field(max_length=20, description="Field -> values, of which an item needs one."),
    ] = {}


class Recommended(BaseModel):
    """One item; its score is the dot product, or, by popularity, how often it was chosen."""

    item_id: int | str
    title: str
    score: float


class RecommendResponse(BaseModel):
    """Items, best first, fewer than k if no more may be shown; all from one version."""

    version: int
    source: Annotated[str, Field(description='"history" or "popularity".')]
    items: list[Recommended]
    unknown: Annotated[dict[str, int], Field(description="How many ids of each kind are unknown.")]


class Reason(BaseModel):
    """What was wrong, and where."""

    loc: list[str | int]
    msg: str
    type: str


class Refusal(BaseModel):
    """All that was wrong with a request."""

    detail: list[Reason]
