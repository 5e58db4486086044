"""What a fresh process makes of a folder of saved models; test_two_tower.py runs it and compares.

In this order, so that each part has only what it may have: TensorFlow alone, the package alone,
the tests' own tower, two replicas.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import tensorflow as tf

folder = Path(sys.argv[1])
found = {}
devices = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)


def arrays(name):
    with np.load(folder / f"{name}.npz") as file:
        inputs = dict(file)
    return inputs, inputs.pop("targets")


windows, _ = arrays("windows")
served = tf.saved_model.load(folder / "served")
found["served", "serve"] = served.serve(windows)[:, -1]
found["served", "user_vectors"] = served.user_vectors(windows)
found["served", "item_vectors"] = served.item_vectors(np.arange(1, 25, dtype="int32"))
assert "recsys_helpers" not in sys.modules

import keras  # noqa: E402

import recsys_helpers  # noqa: E402, F401

rows, targets = arrays("rows")
for path in sorted(folder.glob("*.keras")):
    if path.stem == "gru":
        import test_two_tower  # noqa: F401
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Keras's on layers that were not built
        model = keras.models.load_model(path)
    found[path.stem, "users"] = model.user_vectors(rows)
    found[path.stem, "items"] = model.item_vectors()
    found[path.stem, "weights"] = len(model.trainable_variables)
    if path.stem in ("tied", "row-wise"):  # go on training
        model.fit(rows, targets, batch_size=64, shuffle=False, verbose=0)
        found[path.stem, "later users"] = model.user_vectors(rows)
        found[path.stem, "later items"] = model.item_vectors()

from test_two_tower import short_training  # noqa: E402

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])  # TensorFlow breaks with a second
for name in ("full", "popularity", "in batch"):
    with strategy.scope():
        for what, value in short_training(name).items():
            found[f"replicas, {name}", what] = value

np.savez(folder / "found.npz", **{"/".join(key): value for key, value in found.items()})
