"""Factorization machine, split into a user's and an item's half (chapter 3)."""

from __future__ import annotations

import numpy as np
from keras import layers, ops

from recsys_helpers.layers import (
    EmbeddingTable,
    HistoryDropout,
    Tower,
    at_least_float32,
    checked_sizes,
    most_recent,
    not_padding,
    num_positions,
    profile_fields,
    register,
    window_means,
)


def fm_interactions(weighted):
    """All pairwise interactions of a factorization machine in O(kn).

    Args:
        weighted: `x_i v_i` of every feature, [..., n, k].

    Returns:
        `sum_{i<j} <v_i, v_j> x_i x_j`, [...], as half the square of the sum minus the sum of the
        squares (Rendle 2010, lemma 3.1).
    """
    return 0.5 * ops.sum(ops.sum(weighted, -2) ** 2 - ops.sum(weighted**2, -2), -1)


@register
class FMUserTower(Tower):
    """The user's half of a factorization machine: `[1; sum_a x_a v_a]`, [batch, T, 1 + dim].

    The user's side of the feature vector x is the profile (one indicator a field; a field of
    several values shares out 1 between them), and, if `use_history`, the history as a bag of items
    for each r of `decays`, with x proportional to 1/s^r for the item s steps back and a sum of 1,
    and one indicator field for each of the `last` most recent items. Every field has a table of its
    own, so this is still a factorization machine (Rendle 2010, equation 1).

    Args:
        sizes: `samples.sizes`: number of codes of every input, and the history's length.
        dim: number of factors k.
        fields: of the profile; None: all in `sizes`.
        use_history: False gives the classical model, profile fields only.
        decays: how fast each bag forgets; 0 is the plain mean.
        last: how many of the most recent items have a field of their own.
        dropout: share of the numbers in each field's part of the sum that is dropped in training.
        history_dropout: share of the history's items that are hidden in training.
        table: class of the tables of factors.
    """

    def __init__(
        self,
        sizes,
        dim,
        fields=None,
        use_history=True,
        decays=(0, 1),
        last=3,
        dropout=0.0,
        history_dropout=0.0,
        table=EmbeddingTable,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.fields = list(profile_fields(sizes) if fields is None else fields)
        self.sizes = checked_sizes(sizes, *self.fields, "history", "history_length")
        self.dim, self.use_history, self.decays, self.last = dim, use_history, tuple(decays), last
        self.dropout, self.history_dropout, self.table = dropout, history_dropout, table
        length = sizes["history_length"]
        # x of each place in a window, before padding is left out, for each field of the history.
        bags = [np.arange(length, 0, -1.0) ** -decay for decay in decays]
        self.x = np.array([*bags, *most_recent(last, length)] if use_history else [], "float32")
        self.profile = {name: table(sizes[name], dim, name=name) for name in self.fields}
        self.items = [table(sizes["history"], dim, name=f"items_{i}") for i in range(len(self.x))]
        self.hide, self.drop = HistoryDropout(history_dropout), layers.Dropout(dropout)
        self.drop.autocast = False  # the parts are summed in float32

    @property
    def reads(self):
        """Names of the inputs that the vectors depend on."""
        return [*self.fields, *(["history"] if self.use_history else [])]

    def call(self, inputs, training=False):
        """Map the inputs to user vectors, [batch, T, 1 + dim]."""
        history, positions = inputs["history"], num_positions(inputs)
        history = self.hide(history, training=training)
        parts = [  # each field's part of the sum, (batch, 1 or T, dim)
            self._profile_part(name, inputs[name])[:, None] for name in self.fields
        ]
        for table, x in zip(self.items, self.x, strict=True):
            factors = at_least_float32(table(history))
            present = not_padding(history, factors.dtype)
            weights = ops.cast(x[None], factors.dtype)
            factors = factors * present[..., None]
            parts.append(window_means(factors, present, weights, positions)[:, :, 0])
        user = sum(self.drop(part, training=training) for part in parts)
        user = ops.broadcast_to(user, (ops.shape(history)[0], positions, self.dim))
        return ops.concatenate([ops.ones_like(user[..., :1]), user], -1)

    def _profile_part(self, name, codes):
        codes = codes if len(codes.shape) > 1 else codes[:, None]  # (batch, several)
        factors = at_least_float32(self.profile[name](codes))
        x = not_padding(codes, factors.dtype)[..., None]
        return ops.sum(factors * x, 1) / ops.maximum(ops.sum(x, 1), 1.0)


@register
class FMItemTower(Tower):
    """The item's half: `[sum_b w_b x_b + interactions within the item; sum_b x_b v_b]`.

    The item's features are its id and its fields, x = 1 for each code. What depends on the user
    alone is missing from the score: it cannot change an order (Rendle 2010, equation 1, split by
    side).

    Args:
        item_features: `layers.ItemFeatures` of the catalogue.
        dim: number of factors k.
        table: class of the tables of factors and of weights.
    """

    def __init__(self, item_features, dim, table=EmbeddingTable, **kwargs):
        super().__init__(**kwargs)
        self.item_features, self.dim, self.table = item_features, dim, table
        self.num_items = item_features.num_items
        sizes = {"item_id": self.num_items + 1, **item_features.sizes}
        self.factors = {name: table(size, dim, name=name) for name, size in sizes.items()}
        self.linear = {
            name: table(size, 1, stddev=0.0, name=f"{name}_weight") for name, size in sizes.items()
        }

    def call(self, item_ids, training=False):
        """Map item ids [n] to item vectors, [n, 1 + dim]."""
        weighted, linear = [], 0.0  # x_b v_b of every code, and the sum of all w_b x_b
        ids = self.item_features.ids(item_ids, training)
        for name, codes in {"item_id": ids, **self.item_features(item_ids)}.items():
            codes = codes if len(codes.shape) > 1 else codes[:, None]  # (n, several)
            factors = at_least_float32(self.factors[name](codes))
            x = not_padding(codes, factors.dtype)[..., None]
            weighted.append(factors * x)
            linear += ops.sum(ops.cast(self.linear[name](codes), factors.dtype) * x, 1)
        weighted = ops.concatenate(weighted, 1)  # (n, codes, dim)
        own_score = linear + fm_interactions(weighted)[:, None]
        return ops.concatenate([own_score, ops.sum(weighted, 1)], 1)
