"""A Keras callback that ranks the validation targets after every epoch."""

from __future__ import annotations

import keras

from recsys_helpers.metrics import evaluate_vectors, metrics_from_ranks
from recsys_helpers.samples import serving_inputs


class ValidationMetrics(keras.callbacks.Callback):
    """Put the full-catalogue metrics of the validation target into the logs of every epoch.

    They are then ordinary logs, `val_hit_rate@10` and `val_ndcg@10` among them: in the history
    that `fit` returns, and for `EarlyStopping(monitor="val_ndcg@10", mode="max")`. List this
    callback before those that read them. The test target is never looked at.

    Args:
        split: whose validation targets are ranked.
        history_length: as in the training samples.
    """

    def __init__(self, split, history_length=50):
        super().__init__()
        self.split = split
        self.inputs = serving_inputs(split, "validation", history_length)

    def on_epoch_end(self, epoch, logs=None):
        """Rank every user's validation target against the whole catalogue."""
        users, items = self.model.user_vectors(self.inputs), self.model.item_vectors()
        ranks = evaluate_vectors(self.split, users, items, target="validation")
        for name, value in metrics_from_ranks(ranks, ks=(10,)).items():
            logs[f"val_{name}"] = value
