"""The chapters on data that are not MovieLens's: `make test-own-data`, not part of `make test`.

Each kind of data lacks something that MovieLens has, or has what it lacks; each is named to the
chapters in another way. Chapters run as readers run them, through papermill, for few epochs.
"""

import ast
import os
import re
import warnings
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
CHAPTERS = [
    path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if "load_dataset" in path.read_text()
]
USERS, ITEMS = 300, 200
# Enough to run every cell; what comes out need not be good.
SHORT = {"epochs": 2, "effort": 0.2, "memories": [3], "neighbours": [20]}


def events(seed=0, repeats=False, users=USERS, items=ITEMS, most=40):
    """A log of user, item, position, with tastes in it: half of the steps go to the next item."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, items + 1) ** 0.7
    popularity /= popularity.sum()
    rows = []
    for user in range(1, users + 1):
        seen = [int(rng.integers(1, items + 1))]
        for _ in range(int(rng.integers(1 if repeats else 8, most))):
            near = seen[-1] % items + 1
            item = near if rng.random() < 0.5 else int(rng.choice(items, p=popularity)) + 1
            if repeats or item not in seen:
                seen.append(item)
        rows += [(user, item, place) for place, item in enumerate(seen)]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "position"])


def with_times(log):
    """Times instead of positions: an hour between two events."""
    times = 1_700_000_000 + 3_600 * log["position"] + 86_400 * (log["user_id"] % 50)
    return log.drop(columns="position").assign(timestamp=times)


def shop(folder):
    """Text ids, ISO times, people who come back, some with one or two events; no titles."""
    log = with_times(events(repeats=True))
    log["user_id"] = "customer-" + log["user_id"].astype(str)
    log["item_id"] = "SKU/" + log["item_id"].astype(str)
    log["timestamp"] = pd.to_datetime(log["timestamp"], unit="s").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    log.to_csv(folder / "interactions.csv", index=False)


def positions(folder):
    """An order and nothing else."""
    events().to_parquet(folder / "interactions.parquet")


def times(folder):
    """Times and nothing else."""
    with_times(events()).to_csv(folder / "interactions.csv", index=False)


def titles(folder):
    """Items with titles, but no other field."""
    events().to_csv(folder / "interactions.csv", index=False)
    names = [f"The {number} chairs" for number in range(1, ITEMS + 1)]
    table = pd.DataFrame({"item_id": range(1, ITEMS + 1), "title": names})
    table.to_csv(folder / "items.csv", index=False)


def features(folder):
    """Fields of users and items that have other names."""
    rng = np.random.default_rng(1)
    with_times(events()).to_csv(folder / "interactions.csv", index=False)
    country = rng.choice(["de", "fr", "jp"], USERS)
    users = pd.DataFrame({"user_id": range(1, USERS + 1), "country": country})
    users.to_csv(folder / "users.csv", index=False)
    brands = [list(rng.choice(["a", "b", "c", "d"], 2, replace=False)) for _ in range(ITEMS)]
    band = rng.choice(["low", "high"], ITEMS)
    items = pd.DataFrame({"item_id": range(1, ITEMS + 1), "brand": brands, "price_band": band})
    items.to_parquet(folder / "items.parquet")


def small(folder):
    """Few people and fewer items than a long list has places, all on one day."""
    log = events(users=40, items=30, most=16).drop(columns="position")
    log.assign(timestamp="2024-05-31").to_csv(folder / "interactions.csv", index=False)


# How each is written, and how a chapter is told of it.
KINDS = {
    "shop": (shop, lambda data: "shop"),  # in the data folder
    "positions": (positions, lambda data: str(data / "positions")),
    "times": (times, lambda data: os.path.relpath(data / "times", NOTEBOOKS)),
    "with titles": (titles, lambda data: str(data / "with titles")),
    "features": (features, lambda data: "features"),
    "small": (small, lambda data: "small"),
}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, (write, _) in KINDS.items():
        (folder / name).mkdir()
        write(folder / name)
    return folder


def parameters_of(path):
    """Names in a chapter's parameters cell."""
    (cell,) = [
        cell
        for cell in nbformat.read(path, as_version=4).cells
        if "parameters" in cell.metadata.get("tags", [])
    ]
    targets = [target for line in ast.parse(cell.source).body for target in ast.walk(line)]
    return {name.id for name in targets if isinstance(name, ast.Name)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs(path, kind, data, tmp_path, monkeypatch):
    names = parameters_of(path)
    if "dataset" not in names:
        pytest.skip("shows what is recorded, of the datasets it names")
    monkeypatch.setenv("RECSYS_DATA", str(data))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    chosen = {name: value for name, value in SHORT.items() if name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        notebook = papermill.execute_notebook(
            path,
            tmp_path / "out.ipynb",
            parameters={"dataset": KINDS[kind][1](data), **chosen},
            cwd=NOTEBOOKS,
            kernel_name="python3",
            progress_bar=False,
        )
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = "".join(output.get("data", {}).get("text/markdown", ""))
            text = text.split("```")[0]  # code may say None
            # A sentence with a hole in it is worse than none.
            assert not re.search(r"\bnan\b|\bNone\b|\bNaT\b", text), text
