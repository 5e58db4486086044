"""What is asked of a version, and what it answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Query:
    """What is asked of a version; ids are the original ones, as text or numbers.

    Attributes:
        user_id: of a user, who needn't be known.
        history: item ids, oldest first; in place of what is known of the user.
        profile: field -> value or list of values; in place of what is known of the user.
        k: how many items.
        exclude: item ids that must not be returned.
        allow: item ids, the only ones that may be returned; None: all.
        filters: field of the items -> values; an item needs one of them in each field.
    """

    user_id: int | str | None = None
    history: list | None = None
    profile: dict | None = None
    k: int = 10
    exclude: list = field(default_factory=list)
    allow: list | None = None
    filters: dict = field(default_factory=dict)


@dataclass
class Answer:
    """What is recommended.

    Attributes:
        version: number of the version that answers; all of the answer comes from it.
        source: "history" or, where nothing is known to be searched with, "popularity".
        search: "index", "exact" (of what is left) or "none".
        rows: of the items, best first; fewer than k if no more may be returned. Row i is item
            i + 1.
        scores: float32, of each item; its number of interactions where popularity is the source.
        unknown: how many ids of the history, of exclude and allow, values of the profile, and
            users the version doesn't know.
        seconds: what each stage took; of the tower, a batch's share.
    """

    version: int
    source: str
    search: str
    rows: np.ndarray
    scores: np.ndarray
    unknown: Counter
    seconds: dict


def listed(values, what: str, of: str):
    """The values, unless they are text, whose letters would be taken for them, or only one."""
    if isinstance(values, str) or not np.iterable(values):
        raise ValueError(f"{what} must be a list of {of}, received {values!r}.")
    return values
