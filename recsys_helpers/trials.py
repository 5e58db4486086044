"""What was tried before anything was recorded: trials on the validation target, and their best.

One JSON file a trial, `<folder>/trials/<dataset>/<chapter>-<digest>.json`, written by
`results/tune.py`: a chapter with other parameters. A trial knows nothing of the test target.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from recsys_helpers.records import folders_of, reading
from recsys_helpers.results import MODELS, results_folder, stale_files
from recsys_helpers.splits import Split

CHOSEN_BY = "ndcg@10"  # on the validation target, the highest


def load_trials(
    folder: str | os.PathLike | None = None,
    dataset: str | os.PathLike | None = None,
    chapter: str | None = None,
) -> list[dict]:
    """Read the trials, in the order of their files.

    Args:
        folder: where results are kept; by default `results/` of the checkout this package is in.
        dataset: only the trials on this dataset, by its name or by a path as for `load_dataset`.
        chapter: only the trials of this chapter.

    Returns:
        One dict a trial: `chapter`, `dataset`, all the `parameters` of the chapter, and by `models`
        the `settings` that were searched for it (none: it follows the others), its
        `validation_metrics` and `seconds` of training; `stale`, whether an earlier version of the
        code made it. An empty list where nothing was tried.

    Raises:
        ValueError: if a file is damaged.
    """
    folder = results_folder(folder)
    stale, trials = stale_files(folder), []
    folders = folders_of(dataset, folder / "trials")
    for file in sorted(file for place in folders for file in place.glob("*.json")):
        name = file.relative_to(folder).as_posix()
        with reading(file):
            trial = json.loads(file.read_text()) | {"file": name, "stale": name in stale}
            if chapter in (None, trial["chapter"]):
                trials.append(trial)
    return trials


def best_trial(trials: list[dict], model: str) -> dict:
    """The trial with the highest validation NDCG@10 of a model.

    Of several that are equally good, the one whose settings come first as sorted JSON text.

    Raises:
        ValueError: if the model is in none of the trials.
    """

    def order(trial):
        tried = trial["models"][model]
        settings = json.dumps(tried["settings"], sort_keys=True)
        return -tried["validation_metrics"][CHOSEN_BY], settings, trial["file"]

    having = [trial for trial in trials if model in trial["models"]]
    if not having:
        tried = sorted({name for trial in trials for name in trial["models"]})
        raise ValueError(
            f"expected a trial of {model!r}, received {len(trials)} trials of {tried}. Try it with "
            "results/tune.py, or load trials of its own chapter and dataset."
        )
    return min(having, key=order)


def chosen_parameters(
    chapter: str, dataset: str | os.PathLike, folder: str | os.PathLike | None = None
) -> dict[str, object]:
    """What the trials of a chapter say it should be run with on a dataset, but for the seed.

    Args:
        chapter: name of the notebook.
        dataset: see `load_trials`.
        folder: see `load_trials`.

    Returns:
        All parameters of the best trial; where a chapter has several models with settings of their
        own, each has those of its own best trial. {} where nothing was tried.
    """
    trials, chosen = load_trials(folder, dataset, chapter), {}
    searched = {name: None for t in trials for name, of in t["models"].items() if of["settings"]}
    for model in searched:
        best = best_trial(trials, model)
        chosen = best["parameters"] | chosen | best["models"][model]["settings"]
    return {name: value for name, value in chosen.items() if name not in ("dataset", "seed")}


def trials_table(
    dataset: str | os.PathLike, folder: str | os.PathLike | None = None
) -> pd.DataFrame:
    """Every trial on a dataset as numbers, for the page that shows them.

    Returns:
        Columns model, value (validation NDCG@10), seconds, chosen, stale; one row a trial and
        model, for the models that have settings of their own, in the order of `results.MODELS`.
    """
    trials, rows = load_trials(folder, dataset), []
    for model in MODELS:
        own = [t for t in trials if t["models"].get(model, {}).get("settings")]
        best = best_trial(own, model)["file"] if own else None
        for trial in own:
            tried = trial["models"][model]
            value = tried["validation_metrics"][CHOSEN_BY]
            flags = trial["file"] == best, trial["stale"]
            rows.append((model, value, tried["seconds"], *flags))
    return pd.DataFrame(rows, columns=["model", "value", "seconds", "chosen", "stale"])


def without_test_targets(split: Split) -> Split:
    """A split whose test targets are stand-ins: whatever is ranked, it isn't they.

    Each user's is the first item that is ranked, see `Split.seen`, and isn't the target.

    Raises:
        ValueError: if a user has had every item, so that no other item than the target is ranked.
    """
    num_users, num_items = split.dataset.num_users, split.dataset.num_items
    ids = ["user_id", "item_id"]
    taken = pd.concat([split.seen("test")[ids], split.test[ids]]).drop_duplicates().sort_values(ids)
    # A user's n-th smallest id is n as long as none is left out before it.
    gapless = taken["item_id"] == taken.groupby("user_id").cumcount() + 1
    stand_in = 1 + np.bincount(taken["user_id"][gapless], minlength=num_users + 1)[1:]
    if (full := stand_in > num_items).any():
        raise ValueError(
            f"expected users who haven't had all {num_items} items, received "
            f"{full.sum():,} who have, such as user {full.argmax() + 1}: nothing can stand in for "
            "what they are tested on. Leave them out."
        )
    stand_in = stand_in.astype(split.test["item_id"].dtype)
    return replace(split, test=split.test.assign(item_id=stand_in))


def blind(split_by: Callable[..., Split]) -> Callable[..., Split]:
    """The same way to split, `without_test_targets`."""
    return lambda *arguments, **named: without_test_targets(split_by(*arguments, **named))
