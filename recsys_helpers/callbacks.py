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


def warm_up_and_cosine(peak, steps, end=0.0):
    """A learning rate: up for a twentieth of the steps, then down along a cosine.

    Args:
        peak: the highest rate.
        steps: of the optimizer in the whole training.
        end: share of the highest rate that it ends at.
    """
    warm_up = steps // 20
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - warm_up, alpha=end, warmup_target=peak, warmup_steps=warm_up
    )


def averaging(steps):
    """Arguments of a Keras optimizer for an exponential average of the weights beside them.

    As long as the learning rate does not go to nothing the weights jump about; their average lies
    in the middle. A relative of the equal average over all steps of Polyak and Juditsky (1992).
    `fit` puts it into the model at its end; until then see `averaged_weights`. (On JAX a second
    `fit` fails then, as of Keras 3.15: the model and the optimizer share the average.)

    Args:
        steps: of the optimizer, that the average remembers: the last has 1 / steps of the weight,
            each step before it the share 1 / steps less than the one after it. 0: no average.

    Raises:
        ValueError: `steps` is neither 0 nor at least 1.
    """
    if steps == 0:
        return {}
    if not steps >= 1:
        raise ValueError(f"Expected 0 steps to be remembered, or at least 1. Received {steps}.")
    return {"use_ema": True, "ema_momentum": 1 - 1 / steps}


def averaged_weights(model):
    """Callbacks for `fit`, so that what is validated and kept is the average, where there is one.

    Training goes on from the weights. List these before the callbacks that read the model.

    Args:
        model: compiled, and its optimizer made with what `averaging` returned.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # under loss scaling
    return [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if optimizer.use_ema else []
