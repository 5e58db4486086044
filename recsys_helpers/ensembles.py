"""Several trained models as one, and one model that learns from them (the page after chapter 9)."""

from __future__ import annotations

from keras import ops

from recsys_helpers.layers import at_least_float32, register
from recsys_helpers.sampled_softmax import seen_before
from recsys_helpers.towers.several import SumItemTower, SumUserTower
from recsys_helpers.two_tower import TwoTower


def sum_of(models, weights=None) -> TwoTower:
    """One model whose logits are the weighted sum of the models' logits.

    It holds the models' own towers and has temperature 1: each user vector is divided by its
    model's temperature. With weights that add up to 1, its softmax is the weighted geometric mean
    of the models' softmaxes, normalised (Hinton 2002, equation 1).

    Args:
        models: `TwoTower`s of one dataset, trained.
        weights: one number a model; None: 1 / their number each.

    Raises:
        ValueError: if there isn't one weight a model, or the models are of different datasets.
    """
    models = list(models)
    weights = [1 / len(models) for _ in models] if weights is None else list(weights)
    if len(weights) != len(models) or not models:
        raise ValueError(
            f"expected one weight for each model, received {len(weights)} weights and "
            f"{len(models)} models."
        )
    scales = [w / model.temperature for w, model in zip(weights, models, strict=True)]
    users = SumUserTower([model.user_tower for model in models], scales)
    items = SumItemTower([model.item_tower for model in models])
    together = TwoTower(users, items, models[0].num_items)
    if models[0].built:
        together.build_from_config(models[0].get_build_config())
    return together


@register
class Distilled(TwoTower):
    """A student: its targets are mixed from what was watched next and what a teacher expects.

    The loss of an example is the cross-entropy to `(1 - share) * [i = target] + share * p(i)`,
    with p the teacher's softmax over the items that the student's softmax runs over, at a
    temperature (Hinton et al. 2015, section 2; there the student is softened as well). `evaluate`
    measures the plain loss.

    Args:
        *args, **kwargs: those of `TwoTower`.
        teacher: `TwoTower` of the same inputs and catalogue, as it is now: its item vectors are
            computed here, once, its user vectors in every step. It is not trained, and not saved: a
            student that was loaded has none and cannot go on learning.
        share: of the teacher in the targets, from 0 to 1.
        softness: the teacher's logits are divided by it, besides its own temperature.

    Raises:
        ValueError: if share or softness are out of range, or the teacher is of another catalogue.
    """

    def __init__(self, *args, teacher=None, share=0.5, softness=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        if not 0 <= share <= 1 or not softness > 0:
            raise ValueError(
                f"share must be from 0 to 1 and softness positive, received {share} and {softness}."
            )
        if teacher is not None and (not teacher.built or teacher.num_items != self.num_items):
            raise ValueError(
                f"expected a teacher that was called once, of {self.num_items} items, received one "
                f"of {teacher.num_items}{'' if teacher.built else ' that was not'}."
            )
        self.share, self.softness = share, softness
        # In a function, so that Keras doesn't take the teacher for a part of the student.
        self._teacher = None if teacher is None else lambda: teacher
        if teacher is not None:
            self._teacher_items = teacher.item_vectors().T / (teacher.temperature * softness)

    def target_losses(self, x, users, targets, positions, training):
        """Cross-entropy to the mixed targets, [batch * T]."""
        losses = super().target_losses(x, users, targets, positions, training)
        if not training or not self.share:
            return losses
        if self._teacher is None:
            raise ValueError("a student's teacher is not saved with it: make a new `Distilled`.")
        items = self.item_tower(ops.arange(1, self.num_items + 1, dtype="int32"), training=training)
        own = at_least_float32(self.item_tower(targets, training=training))  # [batch * T, d]
        # -sum_i y_i o_i differs from the plain loss's -o_target by this; log Z is the same.
        expected = ops.matmul(self.expectations(x, targets, positions), at_least_float32(items))
        change = ops.sum(at_least_float32(users) * (own - expected), 1) / self.temperature
        return losses + self.share * ops.where(targets > 0, change, 0.0)

    def expectations(self, x, targets, positions):
        """What the teacher expects to be watched next, [batch * T, num_items]; rows add up to 1."""
        users = self._teacher()(x, training=False)[:, -positions:]
        users = ops.reshape(users, (-1, users.shape[-1]))
        logits = ops.matmul(at_least_float32(users), ops.convert_to_tensor(self._teacher_items))
        if self.exclude_seen:
            ids = ops.arange(1, self.num_items + 1, dtype="int32")
            seen = ops.reshape(seen_before(x["history"], ids, positions), (-1, self.num_items))
            seen = ops.logical_and(seen, targets[:, None] != ids)
            logits = ops.where(seen, -float("inf"), logits)
        return ops.stop_gradient(ops.softmax(logits, -1))

    def get_config(self):
        """The constructor's arguments, without the teacher."""
        return {**super().get_config(), "share": self.share, "softness": self.softness}
