"""What the callback puts into the logs."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_samples import make_split

from recsys_helpers.callbacks import ValidationMetrics
from recsys_helpers.samples import serving_inputs


def test_the_logs_rank_validation_targets_and_the_test_target_is_never_looked_at():
    split = replace(make_split(), test=None)
    targets, asked = split.targets("validation"), []
    catalogue = np.eye(split.dataset.num_items)

    def model(user_vectors):
        return SimpleNamespace(
            user_vectors=lambda inputs: asked.append(inputs) or user_vectors,
            item_vectors=lambda: catalogue,
        )

    callback = ValidationMetrics(split, history_length=3)
    best, worst = catalogue[targets - 1], -catalogue[targets - 1]
    for vectors, mrr in ((best, 1), (worst, (1 / 2 + 1 / 4 + 1 / 3) / 3)):
        callback.set_model(model(vectors))
        logs = {"loss": 1.0}
        callback.on_epoch_end(0, logs)
        assert logs["loss"] == 1.0 and logs["val_mrr"] == pytest.approx(mrr)
        assert {"val_hit_rate@10", "val_ndcg@10", "val_precision@10"} < logs.keys()
    expected = serving_inputs(split, "validation", history_length=3)
    for name, value in asked[0].items():
        np.testing.assert_array_equal(value, expected[name])
