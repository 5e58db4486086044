"""What the recorded runs, on all datasets and with all seeds, say of a chapter's model."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
from IPython.display import Markdown
from pandas.io.formats.style import Styler

from recsys_helpers.pages import show_table
from recsys_helpers.results import (
    BASELINES,
    MODELS,
    load_runs,
    metric_name,
    paired_differences,
    stale_note,
    value,
)

DATASETS = ("ml-100k", "ml-latest-small", "ml-1m-order")  # that the book reports on


def chosen(
    dataset: str | os.PathLike,
    candidates: tuple[str, ...],
    metric: str = "ndcg@10",
    folder: str | os.PathLike | None = None,
) -> str | None:
    """The recorded model with the highest validation metric, mean over seeds; None without any.

    Args:
        dataset: name of the dataset.
        candidates: which models, as in `results.MODELS`.
        metric: such as "ndcg@10".
        folder: see `results.load_runs`.

    Raises:
        ValueError: on a single name, a model that is unknown, or a metric that wasn't recorded.
    """
    runs, scores = load_runs(folder, dataset), {}
    _check_names("candidates", candidates, {**MODELS, **{run["model"]: 0 for run in runs}})
    for run in runs:
        if run["model"] in candidates and (found := run["validation_metrics"]):
            _check_names("metric", [metric], found)
            scores.setdefault(run["model"], []).append(found[metric])
    return max(scores, key=lambda model: np.mean(scores[model]), default=None)


def recorded_differences(
    models: tuple[str, ...],
    others: tuple[str, ...] = (),
    folder: str | os.PathLike | None = None,
    metrics: tuple[str, ...] = ("ndcg@10", "hit_rate@50"),
    datasets: tuple[str, ...] = DATASETS,
) -> tuple[Styler | Markdown, Markdown]:
    """Models minus others on the test target, in numbers and in words.

    Args:
        models: as in `results.MODELS`.
        others: what each of them is compared with, besides the baseline that the validation target
            chooses by each metric (by the first, where another isn't recorded of it).
        folder: see `results.load_runs`.
        metrics: such as "ndcg@10"; the first is one that is recorded of the validation target.
        datasets: names.

    Returns:
        A table with a row for each dataset and pair: the differences with 95% bootstrap intervals
        over users and seeds, and the model's own first metric from its lowest to its highest seed;
        and for each pair the datasets whose interval leaves out 0, with `results.stale_note` where
        a model's records are stale. Without records a sentence that says so, and no table.

    Raises:
        ValueError: on a single name where several are expected, or a model that is unknown.
    """
    for what, names in (("models", models), ("others", others)):
        _check_names(what, names, MODELS)
    for what, names in (("metrics", metrics), ("datasets", datasets)):
        _check_names(what, names)
    rows, verdicts, notes = [], {}, []
    for dataset in datasets:
        seeds, runs = {}, load_runs(folder, dataset)
        for run in runs:
            seeds.setdefault(run["model"], []).append(value(run, metrics[0]))
        judged = {metric for run in runs for metric in run["validation_metrics"] or ()}
        baselines = {
            metric: chosen(dataset, BASELINES, metric if metric in judged else metrics[0], folder)
            for metric in metrics
        }
        against = [o for o in dict.fromkeys([*baselines.values(), *others]) if o in seeds]
        ours = [model for model in dict.fromkeys(models) if model in seeds]
        pairs = [(model, other) for model in ours for other in against if model != other]
        tables = [paired_differences(dataset, m, folder=folder, pairs=pairs) for m in metrics]
        compared = {model for pair in pairs for model in pair}
        if any(run["stale"] and run["model"] in compared for run in runs):
            notes.append(stale_note(dataset, folder))
        for i, (model, other) in enumerate(pairs):
            cells = [tuple(table.iloc[i, :3]) for table in tables]
            span = dict.fromkeys(f"{value:.3f}" for value in (min(seeds[model]), max(seeds[model])))
            rows.append(
                {
                    "dataset": dataset,
                    "difference": f"{MODELS[model]} − {MODELS[other]}",
                    **dict(zip(map(metric_name, metrics), cells, strict=True)),
                    "by seed": f"{'–'.join(span)} ({len(seeds[model])})",
                }
            )
            for metric, (_, low, high) in zip(metrics, cells, strict=True):
                verdict = "ahead" if low > 0 else "behind" if high < 0 else "not told apart"
                of_metric = baselines[metric] == other
                if not of_metric and other in baselines.values() and other not in others:
                    continue  # the baseline that another metric chooses
                found = verdicts.setdefault((model, "" if of_metric else other), {})
                found.setdefault(metric, {}).setdefault(verdict, []).append(f"`{dataset}`")
    caption = (
        "Recorded runs, test target: differences [95% bootstrap interval over users and seeds]; by "
        f"seed: the first model's own {metric_name(metrics[0])}, lowest to highest (how many)"
    )
    if not rows:  # as where the package was installed without the book
        return Markdown(""), Markdown("No runs are recorded here: they come with a checkout.")
    said = "\n".join(_told(*pair, found) for pair, found in verdicts.items())
    return show_table(pd.DataFrame(rows), caption), Markdown("\n\n".join([said, *notes]))


def _check_names(what: str, names, known=None) -> None:
    if isinstance(names, str):  # each of its letters would be taken for a name
        raise ValueError(f"{what} must be several names, such as ({names!r},), received {names!r}.")
    if unknown := [name for name in names if known is not None and name not in known]:
        raise ValueError(f"{what} must be of {', '.join(known)}, received {unknown}.")


def _told(model: str, other: str, found: dict) -> str:
    rival = f"*{MODELS[other]}*" if other else "the baseline that the validation target chooses"
    same = {}  # what is told -> the metrics that tell it
    for metric, of in found.items():
        told = ", ".join(f"{verdict} on {_listed(names)}" for verdict, names in of.items())
        if len(of) == 1 and sum(map(len, of.values())) > 1:  # the same verdict everywhere
            (verdict,) = of
            told = {"not told apart": "told apart on no dataset"}.get(
                verdict, f"{verdict} on all datasets"
            )
        same.setdefault(told, []).append(f"by {metric_name(metric)}")
    told = "; ".join(f"{_listed(metrics)} {what}" for what, metrics in same.items())
    return f"- *{MODELS[model]}* against {rival}: {told}."


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
