"""What the callback puts into the logs, and the rates of the schedule."""

from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest

from recsys_helpers.callbacks import (
    ValidationMetrics,
    averaged_weights,
    averaging,
    warm_up_and_cosine,
)
from recsys_helpers.datasets import Dataset
from recsys_helpers.samples import training_samples
from recsys_helpers.splits import leave_last_out


def samples_without_a_test_target():
    """Three users and five items; whoever looks at the test target finds none."""
    watched = {1: [3, 1, 4, 2, 5], 2: [2, 5, 1, 3], 3: [5, 4, 3, 1]}
    rows = [(user, item, at) for user, items in watched.items() for at, item in enumerate(items)]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "position"])
    table = table.astype({"user_id": "int32", "item_id": "int32"})
    users = pd.DataFrame({"original_id": range(1, 4)}, pd.Index(range(1, 4), name="user_id"))
    items = pd.DataFrame({"original_id": range(1, 6)}, pd.Index(range(1, 6), name="item_id"))
    dataset = Dataset("by hand", table, users, items)
    split = leave_last_out(dataset, min_item_interactions=1)
    samples = training_samples(split, history_length=3, positions=2)
    object.__setattr__(split, "test", None)  # samples.split is the same one
    return samples


def test_the_logs_rank_validation_targets_and_the_test_target_is_never_looked_at():
    samples, asked = samples_without_a_test_target(), []
    targets, catalogue = np.array([2, 1, 3]), np.eye(5)

    def model(user_vectors):
        return SimpleNamespace(
            user_vectors=lambda inputs: asked.append(inputs) or user_vectors,
            item_vectors=lambda: catalogue,
        )

    callback = ValidationMetrics(samples)
    best, worst = catalogue[targets - 1], -catalogue[targets - 1]
    # Of five items three, two and two had been seen, so the last places are 2, 3 and 3.
    for vectors, mrr in ((best, 1), (worst, (1 / 2 + 1 / 3 + 1 / 3) / 3)):
        callback.set_model(model(vectors))
        logs = {"loss": 1.0}
        callback.on_epoch_end(0, logs)
        assert logs["loss"] == 1.0 and logs["val_mrr"] == pytest.approx(mrr)
        assert {"val_hit_rate@10", "val_ndcg@10", "val_precision@10"} < logs.keys()
    # Served as trained: a history as long as a row, and nothing of what is to be found.
    expected = [[0, 3, 1, 4], [0, 0, 2, 5], [0, 0, 5, 4]]
    np.testing.assert_array_equal(asked[0]["history"], expected)


def test_the_rate_goes_up_for_a_twentieth_of_the_steps_then_down_to_nothing():
    rate = warm_up_and_cosine(0.3, 200)
    rates = [float(rate(step)) for step in (0, 5, 10, 105, 200, 210)]
    assert rates == pytest.approx([0, 0.15, 0.3, 0.15, 0, 0], abs=1e-6)
    few = warm_up_and_cosine(0.3, 10)  # too few to warm up
    assert [float(few(step)) for step in (0, 5, 10)] == pytest.approx([0.3, 0.15, 0], abs=1e-6)
    assert isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    tenth = warm_up_and_cosine(0.3, 200, end=0.1)
    rates = [float(tenth(step)) for step in (10, 105, 200, 210)]
    assert rates == pytest.approx([0.3, 0.165, 0.03, 0.03])
    assert float(warm_up_and_cosine(0.3, 200, end=1.0)(150)) == pytest.approx(0.3)


def one_weight(remembered):
    """A model of one weight, from which every step takes 1, three steps an epoch."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(
        keras.optimizers.SGD(1.0, **averaging(remembered)),
        loss=lambda y_true, y_pred: keras.ops.mean(y_pred),
    )
    model.layers[-1].set_weights([np.zeros((1, 1))])
    return model


def fitted(model, epochs, *callbacks):
    model.fit(
        np.ones((3, 1)), np.ones((3, 1)), batch_size=1, epochs=epochs, verbose=0,
        callbacks=[*averaged_weights(model), *callbacks],
    )  # fmt: skip
    return model.layers[-1].get_weights()[0].item()


@pytest.mark.parametrize("stop", [None, "early"])
def test_what_is_validated_and_kept_is_the_average_of_the_weights(stop):
    averages, average = [], -1.0  # the first step's weight is the first average
    for step in range(2, 13):
        average += (-step - average) / 4
        if step % 3 == 0:
            averages.append(average)
    model, seen = one_weight(remembered=4), []

    def look(epoch, logs):
        seen.append(model.layers[-1].get_weights()[0].item())
        logs["best"] = -abs(epoch - 1)  # the second epoch is the best

    more = [keras.callbacks.LambdaCallback(on_epoch_end=look)]
    if stop:
        more.append(
            keras.callbacks.EarlyStopping("best", 0, 2, 0, "max", restore_best_weights=True)
        )
    kept = fitted(model, 4 if not stop else 9, *more)
    # Training went on from the weights: these are the averages of -1, -2, -3, and so on.
    assert seen == pytest.approx(averages)
    assert kept == pytest.approx(averages[1] if stop else averages[-1])
    if keras.backend.backend() != "jax":  # Trained again, it goes on from what was kept.
        assert np.isfinite(fitted(model, 1))


def test_without_an_average_the_weights_are_kept():
    assert averaging(0) == {}
    model = one_weight(remembered=0)
    assert averaged_weights(model) == []
    assert fitted(model, 2) == -6
    for steps in (0.5, -1, float("nan")):
        with pytest.raises(ValueError, match=f"at least 1. Received {steps}"):
            averaging(steps)
