"""Versions in a folder: numbered, complete or not visible, the newest wins, older ones stay.

The convention is TensorFlow Serving's. Publishing and loading share nothing but the file system:
whoever publishes may be killed at any moment, and whoever loads never sees half a version.

    python -m recsys_helpers.versions versions/      train chapter 5's model briefly, and publish it
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import secrets
import shutil
import time
from pathlib import Path

from recsys_helpers.serving import Query, Version

log = logging.getLogger(__name__)
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # the machine's trouble, not the version's


def numbers(folder: str | os.PathLike) -> list[int]:
    """Numbers of the complete versions, newest first."""
    return [number for number in _numbered(folder) if (Path(folder) / str(number)).is_dir()]


def _numbered(folder) -> list[int]:
    names = (name for name in os.listdir(folder) if name.isdecimal())
    return sorted((int(name) for name in names if name == str(int(name))), reverse=True)


def publish(version: Version, folder: str | os.PathLike, keep: int = 3) -> int:
    """Add a version to a folder, whole or not at all, and return its number.

    Everything is written to a hidden folder beside, and to the disk, before that is renamed; so a
    numbered folder is complete, whenever this process ends. What an ended process has left behind
    is removed. Publishers take turns (by `flock`: on Linux, macOS and WSL, not on Windows itself).

    Args:
        version: from `make_version` or `Version.load`.
        folder: of all versions; made if missing.
        keep: how many to keep, this one included; older ones are removed.
    """
    if not isinstance(keep, int) or keep < 1:
        raise ValueError(f"keep must be at least 1, the version itself, received {keep!r}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _turn(folder) as last:
        for left_behind in folder.glob(".new-*/"):
            shutil.rmtree(left_behind)
        # Never one that was withdrawn, nor the name of somebody's file.
        number = max([*_numbered(folder), _number_in(last)]) + 1
        new = folder / f".new-{secrets.token_hex(4)}"
        version.save(new, created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        for path in [*new.rglob("*"), new]:
            _to_disk(path)
        last.write_text(f"{number}\n", encoding="utf-8")
        os.rename(new, folder / str(number))
        _to_disk(folder)
        for old in numbers(folder)[keep:]:
            _remove(folder, old)
    return number


def load_newest(
    folder: str | os.PathLike, current: int = 0, damaged: set | None = None
) -> Version | None:
    """The newest complete version; None if it is the current one, or there is none.

    A version that is removed while it is being loaded gives way to the one that has replaced it; a
    damaged one, or one that can't answer, with a line in the log, to the next older. Where the
    current one was withdrawn, by giving its folder another name, the one before it comes back.

    Args:
        folder: of all versions.
        current: number of the one that needn't be loaded.
        damaged: numbers that aren't tried; to which those are added that can't be loaded, unless
            the machine has no memory or no more open files for them now.
    """
    damaged = set() if damaged is None else damaged
    gone = set()
    while True:
        left = [n for n in numbers(folder) if n not in damaged | gone]
        if not left or left[0] == current:
            return None
        try:
            version = Version.load(Path(folder) / str(left[0]), left[0])
            version.recommend(Query(history=version.original_ids[:1]))  # and its pages are warm now
            return version
        except Exception as error:  # whatever it is, another version may do
            if left[0] in numbers(folder):
                passing = isinstance(error, MemoryError) or getattr(error, "errno", 0) in PASSING
                (gone if passing else damaged).add(left[0])
                log.error("version %s in %s can't be loaded: %r", left[0], folder, error)
            else:
                gone.add(left[0])


@contextlib.contextmanager
def _turn(folder: Path):
    """Wait for one's turn, and give the file that keeps the last number."""
    import fcntl

    with open(folder / ".last", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released with the process, however it ends
        yield folder / ".last"


def _number_in(path: Path) -> int:
    text = path.read_text(encoding="utf-8").strip()
    return int(text) if text.isdecimal() else 0


def _remove(folder: Path, number: int) -> None:
    gone = folder / f".new-{secrets.token_hex(4)}"
    os.rename(folder / str(number), gone)  # first invisible, then no more
    shutil.rmtree(gone)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def main(arguments=None) -> None:
    """Train YouTubeDNN for a few epochs and publish it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", help="of versions; made if missing")
    parser.add_argument("--dataset", default="ml-100k", help="a name, or a path of your own log")
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args(arguments)

    import keras
    import numpy as np

    from recsys_helpers.callbacks import warm_up_and_cosine
    from recsys_helpers.datasets import load_dataset
    from recsys_helpers.index import AnnoyIndex
    from recsys_helpers.samples import training_samples
    from recsys_helpers.serving import make_version
    from recsys_helpers.splits import leave_last_out
    from recsys_helpers.towers.youtubednn import ItemEmbeddingTower, YouTubeDNNUserTower
    from recsys_helpers.two_tower import TwoTower

    keras.utils.set_random_seed(1)
    split = leave_last_out(load_dataset(given.dataset))
    samples, items = training_samples(split, positions=16), split.dataset.num_items
    model = TwoTower(
        YouTubeDNNUserTower(samples.sizes, dim=64, dropout=0.5),
        ItemEmbeddingTower(items, dim=64),
        items,
        temperature=0.15,
        exclude_seen=not split.dataset.repeats,
    )
    steps = given.epochs * -(-len(samples) // 32)
    model.compile(optimizer=keras.optimizers.Adam(warm_up_and_cosine(2e-3, steps)))
    model.fit(samples.inputs, samples.targets, batch_size=32, epochs=given.epochs, verbose=2)
    index = AnnoyIndex("cosine", n_trees=50, seed=1)
    index.build(model.item_vectors(), np.arange(1, items + 1))
    number = publish(make_version(model, samples, index), given.folder)
    print(f"version {number} is in {given.folder}")


if __name__ == "__main__":
    main()
