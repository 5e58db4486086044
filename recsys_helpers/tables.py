"""Records as tables: what the chapters and the README show of them, beside what a page computed."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from recsys_helpers.metrics import bootstrap_interval, user_values
from recsys_helpers.results import MODELS, evaluated, load_runs
from recsys_helpers.splits import Split

METRICS = ("hit_rate@10", "ndcg@10", "hit_rate@50", "mrr")
METRIC_NAMES = {"hit_rate": "HR", "ndcg": "NDCG", "precision": "Precision", "mrr": "MRR"}


def results_table(
    dataset: str | os.PathLike,
    folder: str | os.PathLike | None = None,
    metrics: tuple[str, ...] = METRICS,
) -> pd.DataFrame:
    """The recorded models on one dataset: what the chapters and the README show.

    Args:
        dataset: name of the dataset.
        folder: see `load_runs`.
        metrics: columns, such as "ndcg@10".

    Returns:
        Text, one row a model: its seeds, "(stale)" if an earlier version of the code wrote them;
        "mean ± standard deviation" over several seeds (over seeds that give the same number, as for
        the baselines, the interval too), or for one seed the value with its 95% bootstrap interval
        over users. Empty where nothing is recorded.
    """
    models = _by_model(dataset, folder)
    rows = {MODELS.get(model, model): _row(runs, metrics) for model, runs in models.items()}
    return _frame(rows, ["seeds", *map(metric_name, metrics)])


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
    table = table[~table.index.isin([MODELS[model] for model in order[first:]])]
    rows = {
        f"{MODELS.get(model, model)}, this page": _row(
            [{"seed": seed, "stale": False} | evaluated(values)], metrics
        )
        for model, values in ranks.items()
    }
    caption = (
        f"{dataset.name}, {split.name}, test target, {dataset.num_users:,} users, "
        f"{dataset.num_items:,} items, full ranking; [95% bootstrap interval over users], or ± "
        f"standard deviation over seeds. {stale_note(dataset.name, folder)}"
    )
    return pd.concat([table, _frame(rows, table.columns)]).style.set_caption(caption.strip())


def stale_note(
    dataset: str | os.PathLike, folder: str | os.PathLike | None = None, experiment: str = ""
) -> str:
    """One sentence to stand beside tables of records, "" if all are what the code records now.

    Args:
        dataset: name of the dataset.
        folder: see `load_runs`.
        experiment: see `load_runs`.
    """
    runs = load_runs(folder, dataset, experiment)
    stale = [run for run in runs if run["stale"]]
    if not stale:
        return ""
    names = dict.fromkeys(MODELS.get(run["model"], run["model"]) for run in stale)
    which = "All records" if len(stale) == len(runs) else f"The records of {', '.join(names)}"
    commits = ", ".join(sorted({str(run.get("git_commit") or "unknown") for run in stale}))
    return (
        f"{which} on {stale[0]['dataset']} are stale: an earlier version of the code wrote them "
        f"(commit {commits}); `make results` makes them anew."
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
        ValueError: on a user that isn't in the dataset.
    """
    dataset, known = split.dataset, split.known("test")
    if not 1 <= user <= dataset.num_users:
        raise ValueError(f"user must be an id from 1 to {dataset.num_users}, received {user}.")
    items = dataset.items.drop(columns=["year"], errors="ignore")  # titles end with it
    if "title" in items:
        items = items.drop(columns=["original_id"])
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


def served_table(
    dataset: str | os.PathLike, folder: str | os.PathLike | None = None
) -> pd.DataFrame:
    """What the recorded models show to people, beside the exact ranking it should agree with.

    Args:
        dataset: name of the dataset.
        folder: see `load_runs`.

    Returns:
        One row a model that recorded its recommendations, means over the seeds: HR@10 of the exact
        ranking, and of what is shown HR@10, and coverage, popularity and Gini coefficient as in
        `metrics.recommendation_metrics`.
    """
    columns = ["HR@10, exact", "HR@10, shown", "coverage", "popularity", "Gini"]
    keys = ["hit_rate@10", "coverage@10", "popularity@10", "gini@10"]
    rows = {}
    for model, runs in _by_model(dataset, folder).items():
        shown = [
            [run["metrics"]["hit_rate@10"], *(run["recommended"][key] for key in keys)]
            for run in runs
            if run.get("recommended")
        ]
        if shown:
            rows[MODELS.get(model, model)] = np.mean(shown, axis=0)
    return _frame(rows, columns)


def intervals_table(
    dataset: str | os.PathLike, metric: str = "ndcg@10", folder: str | os.PathLike | None = None
) -> pd.DataFrame:
    """One metric of every recorded model as numbers, for figures.

    The values of a user are averaged over the seeds first, so the interval is over users.

    Returns:
        Columns mean, low, high (95% bootstrap interval over users); one row a model.
    """
    rows = {}
    for model, values in _user_means(dataset, metric, folder).items():
        low, high = bootstrap_interval(values)
        rows[MODELS.get(model, model)] = {"mean": values.mean(), "low": low, "high": high}
    return _frame(rows, ["mean", "low", "high"])


def paired_differences(
    dataset: str | os.PathLike,
    metric: str = "ndcg@10",
    against: str | None = None,
    folder: str | os.PathLike | None = None,
) -> pd.DataFrame:
    """Models compared on the same users.

    Differences of the same user vary less than the two models do, so they tell models apart whose
    own intervals overlap.

    Args:
        dataset: name of the dataset.
        metric: such as "ndcg@10".
        against: the model to compare all others with; by default each with the one before it.
        folder: see `load_runs`.

    Returns:
        Columns difference, low, high (95% bootstrap interval over users), better, worse (shares
        of the users); one row a pair, named "<model> − <other>".

    Raises:
        ValueError: if `against` has no record.
    """
    values = _user_means(dataset, metric, folder)
    pairs = list(zip(values, list(values)[1:], strict=False))
    if against is not None and values:
        if against not in values:
            raise ValueError(f"against must be one of {list(values)}, received {against!r}.")
        pairs = [(against, model) for model in values if model != against]
    rows = {}
    for other, model in pairs:
        difference = values[model] - values[other]
        low, high = bootstrap_interval(difference)
        rows[f"{MODELS.get(model, model)} − {MODELS.get(other, other)}"] = {
            "difference": difference.mean(),
            "low": low,
            "high": high,
            "better": (difference > 0).mean(),
            "worse": (difference < 0).mean(),
        }
    return _frame(rows, ["difference", "low", "high", "better", "worse"], "pair")


def metric_name(metric: str) -> str:
    """Turn "ndcg@10" into what people write, "NDCG@10"."""
    name, at, k = metric.partition("@")
    return METRIC_NAMES.get(name, name) + at + k


def _frame(rows: dict, columns: list[str], name: str = "model") -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis(name)


def _row(runs: list[dict], metrics: tuple[str, ...]) -> dict[str, str]:
    """A model's row in `results_table`, of its runs with different seeds."""
    stale = " (stale)" * any(run["stale"] for run in runs)
    row = {"seeds": ", ".join(str(run["seed"]) for run in runs) + stale}
    for metric in metrics:
        values = np.array([run["metrics"][metric] for run in runs])
        if np.ptp(values) > 0:
            row[metric_name(metric)] = f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"
        else:
            low, high = runs[0]["intervals"][metric]
            row[metric_name(metric)] = f"{values[0]:.4f} [{low:.4f}, {high:.4f}]"
    return row


def _by_model(dataset, folder) -> dict[str, list[dict]]:
    models: dict[str, list[dict]] = {}
    for run in load_runs(folder, dataset):
        models.setdefault(run["model"], []).append(run)
    return models


def _user_means(dataset, metric: str, folder) -> dict[str, np.ndarray]:
    return {
        model: np.mean([user_values(run["ranks"], metric) for run in runs], axis=0)
        for model, runs in _by_model(dataset, folder).items()
    }
