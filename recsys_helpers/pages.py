"""What a chapter shows of its models: beside the records, and to a person who can judge."""

from __future__ import annotations

import ast
import inspect
import os
import textwrap

import numpy as np
from IPython.display import Markdown
from pandas.io.formats.style import Styler

from recsys_helpers.metrics import evaluate
from recsys_helpers.results import METRICS, MODELS, results_table, stale_note
from recsys_helpers.splits import Split


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


def table_with(
    split: Split,
    ranks: dict[str, np.ndarray],
    seed: int,
    folder: str | os.PathLike | None = None,
    metrics: tuple[str, ...] = METRICS,
) -> Styler:
    """The models of this page below the recorded ones that the book meets before them.

    Args:
        split: what the models were trained and judged on.
        ranks: by model, as in `MODELS`: [num_users] ranks of the test targets.
        seed: of this page.
        folder: see `load_runs`.
        metrics: columns, such as "ndcg@10".

    Returns:
        `results_table` with a row "<name>, this page" for each model, and a caption.
    """
    dataset, order = split.dataset, list(MODELS)
    first = min((order.index(model) for model in ranks if model in MODELS), default=len(order))
    table = results_table(dataset.name, folder, metrics)
    table = table[~table.index.isin([MODELS[model] for model in order[first:]])].copy()
    for model, values in ranks.items():
        values = evaluate(values)
        table.loc[f"{MODELS.get(model, model)}, this page"] = [
            str(seed),
            *("{mean:.4f} [{low:.4f}, {high:.4f}]".format(**values.loc[m]) for m in metrics),
        ]
    caption = (
        f"{dataset.name}, {split.name}, test target, {dataset.num_users:,} users, "
        f"{dataset.num_items:,} items, full ranking; [95% bootstrap interval over users], or ± "
        f"standard deviation over seeds. {stale_note(dataset.name, folder)}"
    )
    return table.style.set_caption(caption.strip())


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
        ValueError: on a user that isn't in the dataset.
    """
    dataset, known = split.dataset, split.known("test")
    if not 1 <= user <= dataset.num_users:
        raise ValueError(f"user must be an id from 1 to {dataset.num_users}, received {user}.")
    items = dataset.items.copy()
    if "title" in items:  # which says more than the id, and ends with the year
        items = items.drop(columns=["original_id", "year"], errors="ignore")
        items.insert(0, "title", items.pop("title"))
    for name in items:
        if items[name].map(type).isin([tuple, list]).all():
            items[name] = items[name].map(lambda values: ", ".join(map(str, values)))
    watched = known.loc[known["user_id"] == user, "item_id"].to_numpy()[::-1][:last]
    more = {name.replace("_", " "): np.asarray(values) for name, values in columns.items()}
    shown = (items.loc[watched], items.loc[np.asarray(recommended)].assign(**more))
    captions = (f"Watched last by user {user}", "Recommended")
    return tuple(
        table.style.hide(axis="index").format(precision=3).set_caption(caption)
        for table, caption in zip(shown, captions, strict=True)
    )
