"""Record what a model reached, and read the records back as tables.

One JSON file per run: `<folder>/<dataset>/<model>-seed<seed>.json`. It holds the metrics, where
they came from, every user's rank, so that two models can be compared user by user later on, and
what every user was shown. `<folder>/stale.json` lists the files that an earlier version of the code
wrote; `results/run.py` and the build of the book keep it, and tables say it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

from recsys_helpers.bootstrap import interval, means_of_draws
from recsys_helpers.machine import describe_machine
from recsys_helpers.metrics import bootstrap_interval, evaluate, recommendation_metrics, user_values
from recsys_helpers.records import as_text, check_name, folders_of, pack, reading, unpack, write_run
from recsys_helpers.splits import Split

# Names in the tables, in their order: the baselines first, then the models as the book meets them.
MODELS = {
    "popularity": "Popularity",
    "item_knn": "Item-kNN",
    "markov": "Markov chain",
    "ease": "EASE",
    "ease_recency": "EASE, recent history",
    "fm_profile": "FM, user id and profile",
    "fm": "FM",
    "dssm": "DSSM",
    "youtubednn": "YouTubeDNN",
    "self_attentive": "Self-attention",
    "sum": "Several towers, one index",
    "distilled": "Several towers, distilled",
}
# No training by gradients; several towers or their teaching, not to be compared with one; the rest.
BASELINES, SEVERAL = tuple(MODELS)[:5], ("sum", "distilled")
TOWERS = tuple(model for model in MODELS if model not in BASELINES + SEVERAL)
METRICS = ("hit_rate@10", "ndcg@10", "hit_rate@50", "mrr")
NEEDED = ("dataset", "model", "seed", "split", "split_dataset_fingerprint", "metrics", "intervals")
METRIC_NAMES = {"hit_rate": "HR", "ndcg": "NDCG", "precision": "Precision", "mrr": "MRR"}


def record_run(
    folder: str | os.PathLike,
    *,
    model: str,
    split: Split,
    seed: int,
    ranks: np.ndarray,
    validation_ranks: np.ndarray | None = None,
    recommended: np.ndarray | None = None,
    parameters: dict | None = None,
    seconds: float | None = None,
    experiment: str = "",
    target: str = "test",
) -> Path | None:
    """Write one run as JSON, whole or not at all.

    Args:
        folder: where results are kept; "" records nothing, which is how readers run a chapter.
        model: short name, as in `MODELS`.
        split: what the model was trained and judged on.
        seed: of everything random.
        ranks: [num_users] 1-based ranks of the test targets.
        validation_ranks: [num_users] the same for the validation targets.
        recommended: item ids [num_users, k], what each user is shown when the test target is asked
            for: for a two-tower model, what Annoy returns.
        parameters: what else was chosen (sizes, rates, epochs): what JSON has, numpy's numbers.
        seconds: that training took.
        experiment: keeps the run out of the tables of models, in a folder of this name.
        target: what `ranks` are the ranks of, "validation" for experiments that lead to a choice.

    Returns:
        The file, or None if nothing was recorded.

    Raises:
        ValueError: if there is not one rank for every user, or on a name that isn't one folder's, a
            seed that is no integer, an unknown target, a parameter that JSON doesn't have.
    """
    if not folder:
        return None
    names = {"the dataset's name": split.dataset.name, "model": model}
    for what, name in (names | {"experiment": experiment or "none"}).items():
        check_name(what, name)
    if not isinstance(seed, int | np.integer):
        raise ValueError(f"seed must be an integer, received {seed!r}.")
    if target not in ("test", "validation") or (target == "validation" and not experiment):
        raise ValueError(
            f'target must be "test", or "validation" in an experiment, received {target!r} in '
            f"{experiment!r}."
        )
    for name, value in (parameters or {}).items():
        try:
            as_text({name: value})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"parameters[{name!r}] must be what JSON has, received {value!r}. Record its text."
            ) from error
    for name, values in (("ranks", ranks), ("validation_ranks", validation_ranks)):
        if values is not None and np.shape(values) != (split.dataset.num_users,):
            raise ValueError(
                f"{name} must have one rank for each of the {split.dataset.num_users} users, "
                f"received shape {np.shape(values)}."
            )
    table, dataset = evaluate(ranks), split.dataset
    run = {
        "dataset": dataset.name,
        "model": model,
        "seed": seed,
        "split": split.name,
        "target": target,
        "metrics": table["mean"].to_dict(),
        "intervals": {name: [row["low"], row["high"]] for name, row in table.iterrows()},
        "validation_metrics": None,
        "recommended": None,
        "recommended_items": None,
        "num_users": dataset.num_users,
        "num_items": dataset.num_items,
        "split_dataset_fingerprint": dataset.fingerprint,  # after the split dropped rare items
        "configuration": parameters or {},
        "wall_clock_seconds": None if seconds is None else round(float(seconds), 1),
        **describe_machine(),
        "ranks": pack(ranks),
    }
    if validation_ranks is not None:
        run["validation_metrics"] = evaluate(validation_ranks)["mean"].to_dict()
    if recommended is not None:
        counts = np.bincount(split.train["item_id"], minlength=dataset.num_items + 1)
        run["recommended"] = recommendation_metrics(recommended, split.targets("test"), counts)
        run["recommended_items"] = pack(recommended)
    path = Path(folder) / dataset.name / experiment / f"{model}-seed{seed}.json"
    return write_run(path, run)


def load_runs(
    folder: str | os.PathLike | None = None,
    dataset: str | os.PathLike | None = None,
    experiment: str = "",
) -> list[dict]:
    """Read recorded runs, baselines first.

    Args:
        folder: where results are kept; by default `results/` of the checkout this package is in.
        dataset: only the runs on this dataset, by its name or by a path as for `load_dataset`.
        experiment: the runs of this experiment instead of those of the models.

    Returns:
        One dict a run, with `ranks` as an int array [num_users], `recommended_items` as one
        [num_users, k] or None, `file`, its path in the folder, and `stale`, whether an earlier
        version of the code wrote it. An empty list where nothing is recorded.

    Raises:
        ValueError: if a file is damaged.
    """
    folder = results_folder(folder)
    stale, runs = stale_files(folder), []
    folders = [place / experiment for place in folders_of(dataset, folder)]
    for path in (path for place in folders for path in place.glob("*-seed*.json")):
        with reading(path):
            run = json.loads(path.read_text())
            for name in NEEDED:
                run[name]  # here, where what is missing is said with the file's name
            run["file"] = path.relative_to(folder).as_posix()
            run["stale"] = run["file"] in stale
            run["ranks"] = unpack(run["ranks"])
            run["recommended_items"] = unpack(run.get("recommended_items"))
            runs.append(run)
    order = list(MODELS)
    place = {model: order.index(model) if model in order else len(order) for model in
             {run["model"] for run in runs}}  # fmt: skip
    return sorted(runs, key=lambda r: (r["dataset"], place[r["model"]], r["model"], r["seed"]))


def load_benchmark(name: str, folder: str | os.PathLike | None = None) -> pd.DataFrame:
    """The rows that `benchmarks/<name>.py` wrote; an empty table where it has not been run.

    Args:
        name: of the benchmark, such as "training_step".
        folder: where results are kept; by default `results/` of the checkout this package is in.
    """
    path = results_folder(folder) / "benchmarks" / f"{name}.json"
    with reading(path):
        return pd.DataFrame(json.loads(path.read_text()) if path.exists() else None)


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
        One row a model: its seeds as text, "(stale)" if an earlier version of the code wrote them;
        for each metric (mean, standard deviation) over several seeds, or for one seed, or seeds
        that give the same number, as the baselines do, (mean, low, high) with the 95% bootstrap
        interval over users. Empty where nothing is recorded.
    """
    rows = {}
    for model, runs in _by_model(dataset, folder).items():
        stale = " (stale)" * any(run["stale"] for run in runs)
        row = rows[MODELS.get(model, model)] = {
            "seeds": ", ".join(str(run["seed"]) for run in runs) + stale
        }
        for metric in metrics:
            values = np.array([value(run, metric) for run in runs])
            if np.ptp(values) > 0:
                row[metric_name(metric)] = (values.mean(), values.std(ddof=1))
            else:
                interval = runs[0]["intervals"].get(metric)
                interval = interval or bootstrap_interval(user_values(runs[0]["ranks"], metric))
                row[metric_name(metric)] = (values[0], *interval)
    return _frame(rows, ["seeds", *map(metric_name, metrics)])


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


def served_table(
    dataset: str | os.PathLike, folder: str | os.PathLike | None = None
) -> pd.DataFrame:
    """What the recorded models show to people, beside the exact ranking it should agree with.

    Args:
        dataset: name of the dataset.
        folder: see `load_runs`.

    Returns:
        One row a model that recorded ten recommendations, means over the seeds: HR@10 of the exact
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
            if "hit_rate@10" in (run.get("recommended") or {})  # not if others than ten were shown
        ]
        if shown:
            rows[MODELS.get(model, model)] = np.mean(shown, axis=0)
    return _frame(rows, columns)


def intervals_table(
    dataset: str | os.PathLike, metric: str = "ndcg@10", folder: str | os.PathLike | None = None
) -> pd.DataFrame:
    """One metric of every recorded model as numbers, for figures.

    Returns:
        Columns mean, low, high (95% bootstrap interval over users and seeds, see
        `bootstrap.means_of_draws`); one row a model.
    """
    values = _values(dataset, metric, folder)
    rows = {
        MODELS.get(model, model): (values[model].mean(), *interval(drawn))
        for model, drawn in means_of_draws(values).items()
    }
    return _frame(rows, ["mean", "low", "high"])


def paired_differences(
    dataset: str | os.PathLike,
    metric: str = "ndcg@10",
    against: str | None = None,
    folder: str | os.PathLike | None = None,
    pairs: list[tuple[str, str]] | None = None,
) -> pd.DataFrame:
    """Models compared on the same users, with intervals that know of users and of seeds.

    Differences of the same user vary less than the two models do, so they tell models apart whose
    own intervals overlap. How users and seeds are drawn: `bootstrap.means_of_draws`.

    Args:
        dataset: name of the dataset.
        metric: such as "ndcg@10".
        against: the model to compare all others with; by default each with the one before it.
        folder: see `load_runs`.
        pairs: (model, other) to be compared instead.

    Returns:
        Columns difference, low, high (95% bootstrap interval over users and seeds), better, worse
        (shares of the users, by their means over the seeds); one row a pair, named
        "<model> − <other>".

    Raises:
        ValueError: if `against`, or a model of `pairs`, has no record, or users aren't the same.
    """
    values = _values(dataset, metric, folder)
    named = {against} - {None} if pairs is None else {model for pair in pairs for model in pair}
    if values and not named <= values.keys():
        what = "against" if pairs is None else "each model of pairs"
        unknown = sorted(named - values.keys())
        raise ValueError(f"{what} must be one of {list(values)}, received {', '.join(unknown)!r}.")
    if pairs is None:
        models = list(values)
        pairs = list(zip(models[1:], models, strict=False))
        if against is not None:
            pairs = [(model, against) for model in models if model != against]
    drawn, rows = means_of_draws(values), {}
    for model, other in pairs if values else []:
        difference = values[model].mean(axis=0) - values[other].mean(axis=0)
        rows[f"{MODELS.get(model, model)} − {MODELS.get(other, other)}"] = (
            difference.mean(),
            *interval(drawn[model] - drawn[other]),
            (difference > 0).mean(),
            (difference < 0).mean(),
        )
    return _frame(rows, ["difference", "low", "high", "better", "worse"], "pair")


def metric_name(metric: str) -> str:
    """Turn "ndcg@10" into what people write, "NDCG@10"."""
    name, at, k = metric.partition("@")
    return METRIC_NAMES.get(name, name) + at + k


def results_folder(folder: str | os.PathLike | None) -> Path:
    """`folder`, or `results/` of the checkout this package is in."""
    return Path(folder) if folder else Path(__file__).resolve().parent.parent / "results"


def stale_files(folder: Path) -> list[str]:
    """What in `folder` an earlier version of the code wrote, as `results/run.py` found."""
    listed = folder / "stale.json"
    with reading(listed):
        return json.loads(listed.read_text()) if listed.is_file() else []


def _frame(rows: dict, columns: list[str], name: str = "model") -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis(name)


def value(run: dict, metric: str) -> float:
    """A metric of a run; the ranks have those too that weren't recorded."""
    recorded = run["metrics"].get(metric)
    return float(user_values(run["ranks"], metric).mean()) if recorded is None else recorded


def _by_model(dataset, folder) -> dict[str, list[dict]]:
    models: dict[str, list[dict]] = {}
    sources: dict[str, list[str]] = {}  # what was split, and how -> files
    for run in load_runs(folder, dataset):
        models.setdefault(run["model"], []).append(run)
        source = f"{run['split']} of {run['split_dataset_fingerprint']:.8}"
        sources.setdefault(source, []).append(run["file"])
    if len(sources) > 1:
        usual = max(sources, key=lambda source: len(sources[source]))
        others = "; ".join(f"{', '.join(f)} ({s})" for s, f in sources.items() if s != usual)
        raise ValueError(
            f"expected records of one split of one dataset, {usual} as most are, received {others}."
            " Record these anew, or remove them."
        )
    return models


def _values(dataset, metric: str, folder) -> dict[str, np.ndarray]:
    """By model: [seeds, users]; one row where all seeds give the same, as without chance."""
    models = _by_model(dataset, folder)
    users = {model: {len(run["ranks"]) for run in runs} for model, runs in models.items()}
    if len(set().union(*users.values())) > 1:
        raise ValueError(f"expected records of the same users, received numbers of users {users}.")
    values = {
        model: np.stack([user_values(run["ranks"], metric) for run in runs])
        for model, runs in models.items()
    }
    return {m: v[:1] if (v == v[0]).all() else v for m, v in values.items()}
