"""Train small models in this process, alone or with others; run by test_scale_training.py.

python tests/shared_training.py '{"out": "result.npz", "layout": "rows", ...}'
"""

import json
import os
import sys
import weakref

task = json.loads(sys.argv[1])
os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"
sys.modules["tensorflow"] = None  # which Keras would load, for seconds, to seed it
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={task.get('devices', 1)}"

import keras  # noqa: E402
import numpy as np  # noqa: E402

from recsys_helpers.layers import ItemFeatures  # noqa: E402
from recsys_helpers.sampled_softmax import InBatchSampler, PopularitySampler  # noqa: E402
from recsys_helpers.scale import training  # noqa: E402
from recsys_helpers.towers.dssm import DSSMItemTower, DSSMUserTower  # noqa: E402
from recsys_helpers.two_tower import TwoTower  # noqa: E402

NUM_ITEMS, ROWS, POSITIONS, BATCH = 50, 44, 3, 16  # 16 doesn't divide 44; 51 rows don't divide by 2
rng = np.random.default_rng(0)
HISTORY = rng.integers(1, NUM_ITEMS + 1, (ROWS, POSITIONS + 4)).astype("int32")
INPUTS = {"user_id": np.arange(1, ROWS + 1, dtype="int32"), "history": HISTORY,
          "example_age": np.zeros((ROWS, POSITIONS), "float32")}  # fmt: skip
TARGETS = rng.integers(1, NUM_ITEMS + 1, (ROWS, POSITIONS)).astype("int32")
COUNTS = np.bincount(TARGETS.ravel(), minlength=NUM_ITEMS + 1)
SIZES = {"user_id": ROWS + 1, "history": NUM_ITEMS + 1, "history_length": 5}
GENRES = {"genre": np.r_[0, np.random.default_rng(1).integers(1, 7, NUM_ITEMS)].astype("int32")}
SAMPLERS = {
    "full": lambda: None,
    "sampled": lambda: PopularitySampler(COUNTS, 12, 0.75),
    "in-batch": lambda: InBatchSampler(COUNTS),
}


def make(loss):
    keras.utils.set_random_seed(1)
    table = {"table": training.SharedTable, "hidden": (16,)}
    model = TwoTower(
        DSSMUserTower(SIZES, 8, dropout=0.0, **table),
        DSSMItemTower(ItemFeatures(GENRES), 8, **table),
        NUM_ITEMS,
        SAMPLERS[loss](),
        temperature=0.2,
        exclude_seen=loss == "full",
    )
    model.compile("adam")
    model({name: array[:1] for name, array in INPUTS.items()})
    return model


def batches(spoilt="", epoch=0):
    """Everybody's, unless one of the arguments is this process's own."""
    return training.GlobalBatches(
        INPUTS,
        np.roll(TARGETS, int(spoilt == "arrays")),
        NUM_ITEMS,
        BATCH // (1 + (spoilt == "batch_size")),
        3 + (spoilt == "seed"),
        epoch + (spoilt == "epoch"),
    )


def watch_gathered():
    """How many gathered weights are still held when the next one is: a list that grows."""
    held, gathered, alive = [], training._gathered, []

    def watched(weight):
        held.append(sum(ref() is not None for ref in alive))
        value = gathered(weight)
        alive.append(weakref.ref(value))
        return value

    training._gathered = watched
    return held


def main():
    held = watch_gathered()
    if task.get("processes", 1) > 1:
        training.start(task["address"], task["processes"], task["process"])
    layout = task.get("layout")
    if layout:
        layouts = {"data": training.data_parallel, "rows": training.tables_sharded,
                   "both": lambda: training.tables_sharded(data=2)}  # fmt: skip
        layouts[layout]()
    for what in task.get("spoilt", []):
        try:
            batches(what if task["process"] else "")
        except ValueError as error:
            print(error, file=sys.stderr)
    found = {}
    for loss in task["losses"]:
        if task.get("load"):
            model = keras.models.load_model(task["load"])
        else:
            model = make(loss.removesuffix(" of half"))
        spoilt = "batch_size" if loss.endswith(" of half") else ""
        data = batches(spoilt, task.get("epochs_before", 0))
        orders, callbacks = [data.order], []
        if task.get("dies") == task.get("process", 0):

            def die(epoch, logs=None):
                if epoch == 2:
                    os.kill(os.getpid(), 9)

            callbacks.append(keras.callbacks.LambdaCallback(on_epoch_begin=die))
        log = training.fit(model, data, task.get("save", ""), epochs=task.get("epochs", 4),
                           callbacks=callbacks, verbose=0)  # fmt: skip
        found[f"{loss}/loss"], found[f"{loss}/orders"] = log.history["loss"], [*orders, data.order]
        if task.get("shards"):
            tables = [w for w in model.weights if w.path.endswith("embeddings")]
            found[f"{loss}/shards"] = [
                [*w.shape, *w.value.addressable_shards[0].data.shape] for w in tables
            ]
        found[f"{loss}/items"] = model.item_vectors()
        found[f"{loss}/users"] = model.user_vectors(INPUTS)
    if held:
        print("held at once:", max(held), file=sys.stderr)
    if task.get("process", 0) == 0:
        np.savez(task["out"], **found)


if __name__ == "__main__":
    main()
