"""What the callback puts into the logs, and the rates of the schedule."""

from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest

from recsys_helpers.callbacks import ValidationMetrics, warm_up_and_cosine
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
    return replace(samples, split=replace(split, test=None))


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
