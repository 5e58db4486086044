"""An epoch of each chapter's towers gives the same vectors on every backend of Keras.

Run by `make test-backends`; each backend needs a process of its own, which is this file, run as a
script.
"""

import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

KINDS = ["fm", "dssm", "youtubednn", "self_attentive"]


def epoch(folder):
    """Train each kind from the weights in the folder, made here if there are none yet."""
    import keras
    from test_two_tower import KINDS, SAMPLERS, make, ring, towers

    inputs, targets = ring()
    vectors = {}
    for kind in KINDS:
        sampler = SAMPLERS["in batch"] if kind == "dssm" else None
        sgd = keras.optimizers.SGD(0.1, momentum=0.5)
        model = make(kind, sgd, towers_=towers(kind), sampler=sampler, exclude_seen=kind != "fm")
        model.user_vectors(inputs)
        start = folder / f"{kind}.npz"
        if not start.exists():
            np.savez(start, *model.get_weights())
        with np.load(start) as weights:
            model.set_weights(list(weights.values()))
        before = model.item_vectors()
        model.fit(inputs, targets, batch_size=64, shuffle=False, verbose=0)
        vectors[f"{kind}/users"] = model.user_vectors(inputs)
        vectors[f"{kind}/items"] = model.item_vectors()
        assert np.abs(vectors[f"{kind}/items"] - before).max() > 0.01  # it did learn
    np.savez(folder / f"found_{keras.backend.backend()}.npz", **vectors)


@pytest.fixture(scope="module")
def vectors_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backends")

    @cache
    def run(backend):
        command = [sys.executable, __file__, folder]
        environment = os.environ | {"KERAS_BACKEND": backend}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, run.stderr
        with np.load(folder / f"found_{backend}.npz") as file:
            return dict(file)

    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_vectors_are_those_of_tensorflow(backend, kind, vectors_of):
    if not importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is not installed; `make test-backends` has an environment with it")
    expected = vectors_of("tensorflow")  # first: its weights are those to start from
    for side in ("users", "items"):
        found = vectors_of(backend)[f"{kind}/{side}"]
        np.testing.assert_allclose(found, expected[f"{kind}/{side}"], atol=1e-4)


if __name__ == "__main__":
    epoch(Path(sys.argv[1]))
