"""Keras callbacks and schedules that the chapters share."""

from __future__ import annotations

import keras

from recsys_helpers.metrics import evaluate_vectors, metrics_from_ranks


class ValidationMetrics(keras.callbacks.Callback):
    """Put the full-catalogue metrics of the validation target into the logs of every epoch.

    They are then ordinary logs, `val_hit_rate@10` and `val_ndcg@10` among them: in the history
    that `fit` returns, and for `EarlyStopping(monitor="val_ndcg@10", mode="max")`. List this
    callback before those that read them. The test target is never looked at.

    Args:
        samples: what is trained on; its split's validation targets are ranked, and users are served
            as it says.
    """

    def __init__(self, samples):
        super().__init__()
        self.split, self.inputs = samples.split, samples.serving_inputs("validation")

    def on_epoch_end(self, epoch, logs=None):
        """Rank every user's validation target against the whole catalogue."""
        users, items = self.model.user_vectors(self.inputs), self.model.item_vectors()
        ranks = evaluate_vectors(self.split, users, items, target="validation")
        for name, value in metrics_from_ranks(ranks, ks=(10,)).items():
            logs[f"val_{name}"] = value


def warm_up_and_cosine(peak, steps):
    """A learning rate: up for a twentieth of the steps, then down to nothing along a cosine.

    Args:
        peak: the highest rate.
        steps: of the optimizer in the whole training.
    """
    warm_up = steps // 20
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - warm_up, warmup_target=peak, warmup_steps=warm_up
    )
