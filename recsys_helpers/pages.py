"""What a chapter shows of its models: beside the records, and to a person who can judge."""

from __future__ import annotations

import ast
import inspect
import io
import json
import math
import os
import textwrap
from collections.abc import Callable
from hashlib import sha1
from html import escape
from numbers import Real

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from recsys_helpers.metrics import bootstrap_interval, user_values
from recsys_helpers.plots import for_the_page, strip_plot
from recsys_helpers.results import (
    BASELINES,
    MODELS,
    SEVERAL,
    intervals_table,
    load_runs,
    metric_name,
    results_table,
    stale_note,
)
from recsys_helpers.splits import Split

OTHER_RECORDS = "What is recorded under this name is of other data or another split: not shown."
CLOSING = ("hit_rate@50", "hit_rate@200", "ndcg@10")


def code_of(*functions) -> Markdown:
    """The source of functions or methods of the package, without docstrings, as it runs.

    Shown so, and not copied, a page can't differ from what it describes.
    """
    shown = []
    for function in functions:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        first, *rest = tree.body[0].body
        lines = textwrap.dedent(inspect.getsource(function)).splitlines()
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and rest:
            del lines[first.lineno - 1 : first.end_lineno]
        owner, _, name = function.__qualname__.rpartition(".")
        shown.append("\n".join([f"# {owner or function.__module__}.{name}", *lines]))
    return Markdown("```python\n" + "\n\n".join(shown) + "\n```")


def sentences(**templates: str):
    """A chapter's sentences with numbers, in one place: to be read, checked and translated.

    Args:
        **templates: by name, the text with `{name}` or `{name:.2f}` where a number belongs.

    Returns:
        A function `say(name, **values)` that fills a template, as Markdown. It raises KeyError on
        a name or a value that isn't there.
    """
    templates = {name: " ".join(inspect.cleandoc(text).split("\n")) if "\n\n" not in text else
                 inspect.cleandoc(text) for name, text in templates.items()}  # fmt: skip

    def say(name: str, /, **values) -> Markdown:
        if name not in templates:
            raise KeyError(f"no sentence {name!r}; there are {', '.join(templates)}")
        return Markdown(templates[name].format(**values))

    return say


def glue(name: str, value: float | str) -> None:
    """Leave a number or a sentence for a page of text, which shows it by `{glue:text}`.

    As `myst_nb.glue`, but without myst-nb, which is missing where a chapter is run by itself.
    Nothing is seen where it is called.
    """
    prefix = "application/papermill.record/"
    mark = {"scrapbook": {"name": name, "mime_prefix": prefix}}
    value = value.item() if isinstance(value, np.generic) else value  # else "np.float64(0.25)"
    display({f"{prefix}text/plain": repr(value)}, metadata=mark, raw=True)


def significant(digits: int = 3):
    """A format for `show_table`: so many significant digits, never an exponent, no decimals beyond.

    For columns whose numbers differ by orders of magnitude: 0.0840, 2.34 and 51,200.
    """

    def text(value: float) -> str:
        for _ in range(2):  # again, because rounding may make one more: 9.999 is 10.0
            if not value or not math.isfinite(value):
                return f"{value or 0}"
            place = digits - 1 - math.floor(math.log10(abs(value)))
            value = round(value, place)
        return f"{value:,.{max(place, 0)}f}"

    return text


def show_table(
    frame: pd.DataFrame,
    caption: str = "",
    *,
    best: tuple[str, ...] = (),
    formats: dict | str | Callable | None = None,
    rule_before: tuple = (),
    spread: bool = True,
) -> Styler:
    """The book's one style of table.

    A named index becomes the first column. None and NaN are a dash. Text is shown as it is, markup
    in it, too. A cell (mean, low, high) or (mean, deviation) becomes two: the value, and its
    interval or "± deviation", with two digits of the narrowest interval of the column and no more.
    Other tuples and lists, such as genres, are enumerated.

    Args:
        frame: one row a thing that is compared.
        caption: what was measured: dataset, split, target, seed, kind of interval.
        best: columns whose largest value is set in bold, with every value that its interval (or
            deviation) contains: those can't be told from it here.
        formats: of other columns, by name, or one for all numbers: "{:.3f}", or a function such as
            `significant(3)`.
        rule_before: row labels above which a line is drawn; by default the first tower after a
            baseline, and what is made of several towers after these, as `results.MODELS` says.
        spread: whether the intervals are shown; if not, they still say how many digits the values
            have and which are bold, for tables that stand beside a figure with the intervals.

    Returns:
        A Styler to be shown.

    Raises:
        ValueError: if a column of `best` isn't there.
    """
    missing = [name for name in best if name not in frame]
    if missing:
        raise ValueError(f"best must name columns of {list(frame)}, received {missing}.")
    labels = list(frame.index)
    if frame.index.names != [None]:
        frame = frame.reset_index()
    shown, classes, chosen = {}, {}, {}
    for number, (name, column) in enumerate(frame.items()):
        values, key = [None if _missing(value) else value for value in column], (number, 0)
        pairs = [value if _is_spread(value) else None for value in values]
        if any(pairs):
            widths = [p[1] if len(p) == 2 else (p[2] - p[1]) / 2 for p in pairs if p]
            digits = _digits([width for width in widths if 0 < width < math.inf])
            shown[key] = [
                f"{p[0]:.{digits}f}" if p else _text(v) for p, v in zip(pairs, values, strict=True)
            ]
            if spread:
                shown[number, 1] = [_spread(p, digits) if p else "" for p in pairs]
                classes[number, 1] = ["interval"] * len(values)
        else:
            one = formats.get(name) if isinstance(formats, dict) else formats
            shown[key] = [_text(value, one) for value in values]
        numeric = bool(any(pairs)) or pd.api.types.is_numeric_dtype(column)
        bold = _best(values) if name in best else [False] * len(values)
        chosen[key] = str(name)
        classes[key] = [("number " * numeric + "best " * bool(b)).strip() for b in bold]
    order = sorted(shown)
    table = pd.DataFrame(
        {key: shown[key] for key in order}, columns=pd.MultiIndex.from_tuples(order)
    )
    marks = pd.DataFrame({key: classes[key] for key in order}, columns=table.columns)
    for row in _rules(labels, rule_before):
        marks.iloc[row] = [f"{old} rule".strip() for old in marks.iloc[row]]
    table.columns = marks.columns = [chosen.get(key, "\u200b" * number) for number, key in
                                     enumerate(order)]  # fmt: skip
    style = table.style.hide(axis="index").set_caption(caption.replace("`", ""))
    style = style.set_td_classes(marks).format(escape="html").format_index(escape="html", axis=1)
    style.set_uuid(sha1((caption + table.to_csv()).encode()).hexdigest()[:8])
    style.cell_ids = False
    return style.set_table_attributes('class="book-table"').set_table_styles(
        [  # for notebooks, which have no style sheet of ours
            {"selector": "td.best", "props": "font-weight: bold"},
            {"selector": "td.interval", "props": "opacity: 0.8; padding-left: 0"},
            {"selector": "td.rule", "props": "border-top: 1px solid currentColor"},
            {"selector": "caption", "props": "text-align: left"},
        ]
    )


def _digits(widths: list[float]) -> int:
    """Decimals that show two digits of the narrowest half-width."""
    return min(4, max(1, 1 - math.floor(math.log10(min(widths))))) if widths else 4


def _spread(cell: tuple, digits: int) -> str:
    if len(cell) == 2:
        return f"± {cell[1]:.{digits}f}"
    return f"[{cell[1]:.{digits}f}, {cell[2]:.{digits}f}]"


def _is_spread(value) -> bool:
    numbers = isinstance(value, tuple) and all(isinstance(number, Real) for number in value)
    return numbers and len(value) in (2, 3)


def _missing(value) -> bool:
    """None, NaN, pd.NA, and a cell of which the value is."""
    value = value[0] if isinstance(value, tuple) and value else value
    return pd.api.types.is_scalar(value) and pd.isna(value)


def _text(value, form: str | Callable | None = None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str | bool | np.bool_):
        return str(value)
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    if form:
        return form(value) if callable(form) else form.format(value)
    if isinstance(value, int | np.integer) or (isinstance(value, float) and value.is_integer()
                                               and abs(value) >= 1000):  # fmt: skip
        return f"{int(value):,}"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _best(values: list) -> list[bool]:
    """The largest, and what can't be told from it; nothing where nothing is known."""
    means = [v[0] if isinstance(v, tuple) else v for v in values]
    known = [i for i, mean in enumerate(means) if mean is not None]
    if not known:
        return [False] * len(means)
    top = max(known, key=lambda i: means[i])
    low = cell = values[top]
    if isinstance(cell, tuple):
        low = cell[1] if len(cell) == 3 else cell[0] - cell[1]
    return [i == top or (mean is not None and mean >= low) for i, mean in enumerate(means)]


def _rules(labels: list, rule_before: tuple) -> list[int]:
    if rule_before:
        return [labels.index(label) for label in rule_before if label in labels]
    block = {MODELS[m]: 0 if m in BASELINES else 2 if m in SEVERAL else 1 for m in MODELS}
    found = [[block[name] for name in block if str(label).startswith(name)] for label in labels]
    blocks = [max(of, default=0) for of in found]
    return [i for i in range(1, len(labels)) if blocks[i] > max(blocks[:i])]


def closing_table(
    split: Split,
    ranks: dict[str, np.ndarray],
    seed: int,
    folder: str | os.PathLike | None = None,
    metrics: tuple[str, ...] = CLOSING,
) -> Styler:
    """The models of this page below the best recorded baseline.

    Args:
        split: what the models were trained and judged on.
        ranks: by model, as in `MODELS`: [num_users] ranks of the test targets.
        seed: of this page.
        folder: see `load_runs`. What is recorded there of the dataset's name, but of another split
            or other interactions, isn't shown.
        metrics: columns, such as "ndcg@10"; the baseline is the best by the first.

    Raises:
        ValueError: if there is not one rank for every user.
    """
    dataset, rows, same = split.dataset, {}, _same_split(split, folder)
    note = stale_note(dataset.name, folder) if same else OTHER_RECORDS
    recorded = results_table(dataset.name, folder, metrics) if same else pd.DataFrame()
    baselines = recorded[recorded.index.isin([MODELS[m] for m in BASELINES])]
    if len(baselines):
        means = baselines[metric_name(metrics[0])].map(lambda cell: cell[0])
        rows[f"{means.idxmax()}, best baseline"] = baselines.loc[means.idxmax()].drop("seeds")
    for model, values in ranks.items():
        cells = {metric_name(metric): _judged(split, values, metric) for metric in metrics}
        rows[f"{MODELS.get(model, model)}, this page"] = pd.Series(cells)
    caption = (
        f"{dataset.name}, {split.name}, test target, {dataset.num_users:,} users, "
        f"{dataset.num_items:,} items, full ranking, seed {seed}; [95% bootstrap interval over "
        f"users]. Bold: the best, and what its interval contains. {note}"
    )
    frame = pd.DataFrame(rows).T.rename_axis("model")
    return show_table(frame, caption.strip(), best=tuple(frame))


def closing_plot(
    split: Split,
    ranks: dict[str, np.ndarray],
    folder: str | os.PathLike | None = None,
    metrics: tuple[str, ...] = ("hit_rate@50", "ndcg@10"),
) -> Figure:
    """The models of this page (filled) below all recorded ones that the book meets before them.

    Arguments and errors as of `closing_table`.
    """
    order = list(MODELS)
    first = min((order.index(model) for model in ranks if model in MODELS), default=len(order))
    before, panels, keys = order[:first] if _same_split(split, folder) else [], {}, []
    for metric in metrics:
        frame = intervals_table(split.dataset.name, metric, folder)
        frame = frame[frame.index.isin([MODELS[model] for model in before])]
        keys = [m for m in before if MODELS[m] in frame.index] + list(ranks)
        for model, values in ranks.items():
            frame.loc[f"{MODELS.get(model, model)}, this page"] = _judged(split, values, metric)
        panels[metric_name(metric)] = frame
    return strip_plot(panels, keys, new=len(ranks))


def _same_split(split: Split, folder) -> bool:
    """Whether all that is recorded under the dataset's name is of this very split."""
    ours = split.name, split.dataset.fingerprint
    runs = load_runs(folder, split.dataset.name)
    return all(ours == (run["split"], run["split_dataset_fingerprint"]) for run in runs)


def _judged(split: Split, ranks: np.ndarray, metric: str) -> tuple[float, float, float]:
    if np.shape(ranks) != (split.dataset.num_users,):
        raise ValueError(
            f"ranks must be one for each of the {split.dataset.num_users} users, received shape "
            f"{np.shape(ranks)}."
        )
    values = user_values(ranks, metric)
    return values.mean(), *bootstrap_interval(values)


def live(name: str, data: dict, still, caption: str = "", alt: str = "") -> HTML:
    """A picture that can be touched in the built book, and is a still one everywhere else.

    Args:
        name: of the script `book/_static/live-<name>.js`.
        data: what the script needs; numbers should be rounded, since they become text.
        still: a matplotlib figure or the text of an SVG: shown without JavaScript and in notebooks.
        caption: one sentence for notebooks, where nothing is alive.
        alt: what is to be seen on the still picture.

    Returns:
        HTML: `<div class="live" data-live="<name>">` with the data as JSON and the still picture.
    """
    if not isinstance(still, str):
        file = io.StringIO()
        still.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
        still = file.getvalue()
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    return HTML(
        f'<div class="live" data-live="{name}">'
        f'<script type="application/json" class="live-data">{text}</script>'
        f'<div class="live-still" role="img" aria-label="{escape(alt)}">{for_the_page(still)}</div>'
        f'<p class="live-note">{caption} It can be moved in the pages that `make book` builds.</p>'
        "</div>"
    )


def watched_and_recommended(
    split: Split, user: int, recommended: np.ndarray, last: int = 8, **columns
) -> tuple[Styler, Styler]:
    """What a user watched last, and what is recommended, as two tables a person can judge.

    Args:
        split: everything before the test target counts as watched.
        user: id, from 1.
        recommended: item ids [k], the best first.
        last: rows of the first table, the latest first.
        **columns: more columns of the second table, numbers [k] each; "_" stands for a space.

    Raises:
        ValueError: on a user, or an item, that isn't in the dataset.
    """
    dataset, known, ids = split.dataset, split.known("test"), np.asarray(recommended)
    if user not in dataset.users.index:
        raise ValueError(f"user must be an id from 1 to {dataset.num_users}, received {user}.")
    if ids.ndim != 1 or not np.isin(ids, dataset.items.index).all():
        raise ValueError(
            f"recommended must be item ids [k] from 1 to {dataset.num_items}, received {ids!s:.60}."
        )
    items = dataset.items.copy()
    if "title" in items:  # which says more than the id, and ends with the year
        items = items.drop(columns=["original_id", "year"], errors="ignore")
        items.insert(0, "title", items.pop("title"))
    watched = known.loc[known["user_id"] == user, "item_id"].to_numpy()[::-1][:last]
    more = {name.replace("_", " "): np.asarray(values) for name, values in columns.items()}
    shown = (items.loc[watched], items.loc[ids].assign(**more))
    captions = (f"Watched last by user {user}", "Recommended")
    return tuple(
        show_table(table.reset_index(drop=True), caption, formats={n: "{:.3f}" for n in more})
        for table, caption in zip(shown, captions, strict=True)
    )
