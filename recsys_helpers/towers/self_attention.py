"""Causal self-attention over the history (chapter 6)."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from recsys_helpers.layers import Tower, at_least_float32, network, num_positions, register
from recsys_helpers.towers.youtubednn import YouTubeDNNUserTower


@register
class CausalAttention(Tower):
    """Multi-head attention of each step to itself and to the steps before it.

    What a step gives to another is `softmax(q_i k_j / sqrt(w) + b_(i-j))` (Vaswani et al. 2017,
    equation 1), with one learned number `b` for each head and distance instead of an embedding of
    absolute positions (Raffel et al. 2020, section 2.1): a moment then looks the same wherever it
    is in a row.

    Args:
        dim: size of the input and of the output.
        heads: number of heads, each `dim / heads` wide.
        length: distances told apart; what is further away is not seen.
    """

    def __init__(self, dim, heads, length, **kwargs):
        super().__init__(**kwargs)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, received {dim} and {heads}.")
        self.dim, self.heads, self.length = dim, heads, length
        self.mix, self.out = layers.Dense(3 * dim), layers.Dense(dim)
        # It starts as a gentle preference for the recent, like the weights of `HistoryFeatures`.
        self.distance_logits = self.add_weight((heads, length), "zeros", name="distance_logits")
        self.distance_logits.assign(np.tile(-np.log1p(np.arange(length)), (heads, 1)))

    def call(self, x, present):
        """Map `x` [batch, steps, dim] to the same shape; `present` [batch, steps] is no padding."""
        steps, width = ops.shape(x)[1], self.dim // self.heads
        queries, keys, values = (
            ops.swapaxes(ops.reshape(part, (-1, steps, self.heads, width)), 1, 2)
            for part in ops.split(self.mix(x), 3, axis=-1)
        )  # each (batch, heads, steps, width)
        logits = at_least_float32(ops.matmul(queries * width**-0.5, ops.swapaxes(keys, 2, 3)))
        distance = ops.arange(steps)[:, None] - ops.arange(steps)
        seen = (distance >= 0) & (distance < self.length)
        bias = ops.take(self.distance_logits, ops.where(seen, distance, 0), axis=1)
        bias = ops.where(seen, ops.cast(bias, logits.dtype), -1e9)  # (heads, steps, steps)
        padding = ops.where(present, 0.0, -1e9)[:, None, None, :]
        weights = ops.softmax(logits + (bias + ops.cast(padding, logits.dtype)), -1)
        found = ops.matmul(ops.cast(weights, values.dtype), values)
        found = ops.swapaxes(found, 1, 2)  # (batch, steps, heads, width)
        return self.out(ops.reshape(found, (-1, steps, self.dim)))


@register
class SelfAttentiveUserTower(YouTubeDNNUserTower):
    """A `YouTubeDNNUserTower` that also reads the history by self-attention, [batch, T, dim].

    The attention blocks are those of SASRec (Kang and McAuley 2018), but with layer normalisation
    before each sublayer and with relative positions (see `CausalAttention`). What they make of the
    last step joins what a `YouTubeDNNUserTower` reads. Every step attends to what came before it
    only, so the vectors of all moments come out of one pass over the history.

    Args:
        sizes, dim, **kwargs: see `YouTubeDNNUserTower`; `dropout` also drops of the embeddings and
            of the sublayers' outputs.
        blocks: number of attention blocks; 0 leaves attention out.
        heads: attention heads of a block.
        reach: how many steps back a step may look.
    """

    def __init__(self, sizes, dim, blocks=1, heads=2, reach=100, **kwargs):
        super().__init__(sizes, dim, **kwargs)
        self.blocks, self.heads, self.reach = blocks, heads, reach

        def norm(gamma=1.0):
            start = keras.initializers.Constant(gamma)
            return layers.LayerNormalization(epsilon=1e-6, gamma_initializer=start)

        self.attention = [
            (norm(), CausalAttention(dim, heads, reach), norm(), network((dim,), dim))
            for _ in range(blocks)
        ]
        # The last one starts small, like the embeddings beside its output, so as not to drown them.
        self.norms = [norm(), norm(0.1)] if blocks else []

    def parts(self, inputs, training):
        """What the network reads, each [batch, T, width]."""
        parts = super().parts(inputs, training)
        if self.blocks:
            parts.append(self.attended(inputs["history"], num_positions(inputs), training))
        return parts

    def attended(self, history, positions, training):
        """What attention makes of the last steps, 0 for padding, [batch, positions, dim]."""
        first, final = self.norms
        present = ops.not_equal(history, 0)
        x = self.drop(first(self.history.items(history)), training=training)
        for norm, attention, norm2, feed_forward in self.attention:
            x = x + self.drop(attention(norm(x), present), training=training)
            x = x + self.drop(feed_forward(norm2(x)), training=training)
        return final(x[:, -positions:]) * ops.cast(present, x.dtype)[:, -positions:, None]
