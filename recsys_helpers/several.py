"""Fields of several values, such as genres: lists, and text in which they are written."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable

import numpy as np
import pandas as pd

SETS = (set, frozenset)
LISTS = (list, tuple, *SETS, np.ndarray)


def _listed(text: str):
    """What a Python list, tuple or set that `text` writes down holds; None of other text."""
    # Of numpy's ['a' 'b'] Python would make one text.
    if _in_brackets(text) and not re.search(r"""['"]\s+['"]""", text):
        with contextlib.suppress(ValueError, SyntaxError, TypeError):
            parts = ast.literal_eval(text)
            return parts if isinstance(parts, LISTS) else None


def _in_brackets(text: str) -> bool:
    return text[:1] + text[-1:] in ("[]", "()", "{}")


def is_several(column: pd.Series) -> bool:
    """Whether the column holds lists, or text that is written like Python's lists."""
    known = column[column.notna()]
    if known.empty or pd.api.types.is_numeric_dtype(column.dtype):
        return False
    first = known.iloc[0]
    if isinstance(first, str):  # "(live)" and "{x: 1}" are text as any other
        listed = first[:1] == "[" or _listed(first) is not None
        return listed and all(_in_brackets(str(v)) for v in known)
    return isinstance(first, LISTS)


def several(column: pd.Series, separator: str | None, what: str, say: Callable) -> list[tuple]:
    """Tuples of str [n]: of lists, sets (sorted), text written like lists, or separated text.

    Args:
        column: () where nothing stands.
        separator: of text; None is "|", or the one of ",;，；、" that occurs where "|" doesn't.
        what: the column's name for messages.
        say: prints a line.
    """
    texts = [v for v in column if isinstance(v, str)]
    if separator is None and texts and not is_several(column):
        marks = [mark for mark in "|,;，；、/" if any(mark in text for text in texts)]
        others = [mark for mark in marks if mark not in "|/"]  # "Sci-Fi/Fantasy" may be one
        if "|" in marks or not others:
            separator = "|"
        elif len(others) == 1:
            separator = others[0]
            say(f"{what}: taken to be separated by {separator!r} (separators= says otherwise)")
        else:
            raise ValueError(
                f"{what} holds neither lists nor text separated by '|': {texts[0]!r}. Name the "
                f"separator, for example separators={{{what.rsplit(': ')[-1]!r}: ','}}."
            )
        if inside := [mark for mark in marks if mark != separator]:
            say(f"{what}: not split at {' '.join(inside)} (separators= says otherwise)")

    def split(value) -> tuple:
        parts = value
        if isinstance(value, str) and (parts := _listed(value)) is None:
            if separator is None or value[:1] + value[-1:] in ("[]", "{}"):
                raise ValueError(f"{what} holds {value!r}, which is not a list such as ['x', 'y'].")
            parts = value.split(separator)
        elif not isinstance(parts, LISTS):
            parts = () if pd.isna(parts) else (parts,)
        if isinstance(parts, SETS):
            parts = sorted(parts, key=str)
        if inner := [part for part in parts if isinstance(part, (dict, *LISTS))]:
            raise ValueError(
                f"{what} holds {inner[0]!r} inside a list. Keep one text or number of each, such "
                "as its name, or leave the column out."
            )
        return tuple(t for part in parts if not pd.isna(part) and (t := str(part).strip()))

    return [split(value) for value in column]
