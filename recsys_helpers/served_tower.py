"""User towers as they are served: a batch of one, thousands of times a second.

For a single user the arithmetic of a tower takes microseconds, and a framework's way to it a
hundred times as long. `benchmarks/serving.py` measures that: Keras's call, the exported TensorFlow
function, and the same in numpy. Numpy wins, so the towers of chapters 4 and 5 are served by it, and
any other by the function that `TwoTower.export` writes.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np

NUMPY, EXPORTED = "user_tower.npz", "user_tower"


class NumpyTower:
    """`DSSMUserTower` or `YouTubeDNNUserTower` from its weights, at one moment: T = 1.

    Attributes:
        weights: name -> array: `fields/<name>` tables of the profile, `items` and `kinds` of the
            history (how much each step counts in each kind of mean, [kinds, length]), `search`,
            `kernels/<i>` and `biases/<i>` of the network; `age`, whether it reads the example age;
            `normalize`.
    """

    def __init__(self, weights: dict[str, np.ndarray]):
        self.weights = weights
        self.fields = [n.split("/", 1)[1] for n in weights if n.startswith("fields/")]
        self.layers = sum(name.startswith("kernels/") for name in weights)

    @classmethod
    def of(cls, tower) -> NumpyTower:
        """The weights of a Keras tower."""
        length = tower.history.length
        kinds = [np.ones((1, length)), tower.history.apart]
        if tower.recency:
            kinds.insert(1, np.exp(_numpy(tower.history.recency_logits)))
        weights = {f"fields/{n}": _numpy(t.embeddings) for n, t in tower.profile.items()}
        weights |= {"kinds": np.concatenate(kinds), "items": _numpy(tower.history.items.embeddings)}
        if hasattr(tower, "search"):
            weights["search"] = _numpy(tower.search.embeddings)
        for i, layer in enumerate(tower.network.layers):
            weights |= {f"kernels/{i}": _numpy(layer.kernel), f"biases/{i}": _numpy(layer.bias)}
        weights = {name: np.array(value, np.float32) for name, value in weights.items()}
        for name in ("items", "search"):
            if name in weights:
                weights[name][0] = 0  # padding adds nothing to a sum
        age = getattr(tower, "example_age_scale", None) or 0
        return cls(weights | {"age": np.array(age), "normalize": np.array(tower.normalize)})

    def user_vectors(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Vectors [b, d] of inputs as `samples.Encoder.inputs` makes them."""
        w = self.weights
        parts = [_embedded(w[f"fields/{name}"], inputs[name]) for name in self.fields]
        history = inputs["history"][:, -w["kinds"].shape[1] :]  # (b, steps)
        kinds = w["kinds"][:, -history.shape[1] :]
        total = (history != 0).astype(np.float32) @ kinds.T  # (b, kinds)
        means = kinds @ w["items"][history] / np.maximum(total, 1e-9)[..., None]
        parts.append(means.reshape(len(history), -1))
        if "search" in w:
            tokens = inputs["search"][:, -1]
            count = np.maximum((tokens != 0).sum(1, keepdims=True), 1)
            parts.append(w["search"][tokens].sum(1) / count)
        if w["age"]:
            age = np.maximum(inputs["example_age"][:, -1:] / w["age"], 0)
            parts += [age, np.sqrt(age), age**2]
        x = np.concatenate(parts, axis=1).astype(np.float32)
        for i in range(self.layers):
            x = x @ w[f"kernels/{i}"] + w[f"biases/{i}"]
            if i < self.layers - 1:
                x = np.maximum(x, 0)
        if w["normalize"]:
            x = x / np.maximum(np.sqrt((x * x).sum(1, keepdims=True)), 1e-12)
        return x

    def save(self, folder: Path) -> None:
        """Write the weights into the folder of a version."""
        np.savez(folder / NUMPY, **self.weights)


class ExportedTower:
    """Any user tower, as the TensorFlow function that `TwoTower.export` writes."""

    def __init__(self, path):
        import tensorflow as tf

        self.path = path
        self.model = tf.saved_model.load(str(path))
        self.reads = self.model.user_vectors.input_signature[0]

    @classmethod
    def of(cls, model) -> ExportedTower:
        """Export a `TwoTower` into a temporary folder."""
        folder = tempfile.mkdtemp()
        model.export(Path(folder) / EXPORTED, verbose=False)
        tower = cls(Path(folder) / EXPORTED)
        weakref.finalize(tower, shutil.rmtree, folder, ignore_errors=True)
        return tower

    def user_vectors(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Vectors [b, d] of inputs as `samples.Encoder.inputs` makes them."""
        given = {n: np.asarray(inputs[n], s.dtype.as_numpy_dtype) for n, s in self.reads.items()}
        return self.model.user_vectors(given).numpy()

    def save(self, folder: Path) -> None:
        """Copy the function into the folder of a version."""
        shutil.copytree(self.path, folder / EXPORTED)


def served_tower(model):
    """The fastest way to serve a `TwoTower`'s user tower."""
    from recsys_helpers.towers.dssm import DSSMUserTower
    from recsys_helpers.towers.youtubednn import YouTubeDNNUserTower

    if type(model.user_tower) in (DSSMUserTower, YouTubeDNNUserTower):  # a subclass may do more
        return NumpyTower.of(model.user_tower)
    return ExportedTower.of(model)


def load_tower(folder: Path):
    """The tower that was saved in the folder of a version."""
    if (folder / EXPORTED).exists():
        return ExportedTower(folder / EXPORTED)
    with open(folder / NUMPY, "rb") as file:
        return NumpyTower(dict(np.load(file)))


def _embedded(table, codes):
    """Embeddings [b, dim] of codes [b], or their mean where a user may have several [b, m]."""
    if codes.ndim == 1:
        return table[codes]
    there = (codes != 0)[..., None]
    return (table[codes] * there).sum(1) / np.maximum(there.sum(1), 1)


def _numpy(variable):
    from keras import ops

    return ops.convert_to_numpy(variable)
