"""Several towers as one: scores add, so their vectors stand side by side (after chapter 9)."""

from __future__ import annotations

from keras import ops

from recsys_helpers.layers import Tower, at_least_float32, num_positions, register


@register
class SumUserTower(Tower):
    """User towers side by side, each times its scale, [batch, T, d_1 + ... + d_n].

    With a `SumItemTower` of the item towers in the same order, a score is the sum of the towers'
    scores, each times its scale. The towers are held, not copied.

    Args:
        towers: user towers that read the same inputs.
        scales: one number a tower, such as its weight divided by its model's temperature.

    Raises:
        ValueError: if there isn't one scale a tower, or the towers are of different datasets.
    """

    def __init__(self, towers, scales, **kwargs):
        super().__init__(**kwargs)
        self.towers, self.scales = list(towers), [float(scale) for scale in scales]
        if not self.towers or len(self.towers) != len(self.scales):
            raise ValueError(
                f"expected one scale for each tower, received {len(self.scales)} scales and "
                f"{len(self.towers)} towers."
            )
        self.sizes = {}
        for tower in self.towers:
            for name, size in getattr(tower, "sizes", {}).items():
                if self.sizes.setdefault(name, size) != size and name != "history_length":
                    raise ValueError(
                        f"expected towers of one dataset, but {name} has {self.sizes[name]} codes "
                        f"for one and {size} for {type(tower).__name__}. Make all for one split."
                    )

    @property
    def reads(self):
        """Names of the inputs that the vectors depend on."""
        return list(dict.fromkeys(name for t in self.towers for name in getattr(t, "reads", ())))

    def call(self, inputs, training=False):
        """Map the inputs to user vectors, [batch, T, d_1 + ... + d_n]."""
        positions, parts = num_positions(inputs), []
        for tower, scale in zip(self.towers, self.scales, strict=True):
            vectors = at_least_float32(tower(inputs, training=training))
            parts.append(vectors[:, -positions:] * scale)  # a tower may return more moments
        return ops.concatenate(parts, -1)


@register
class SumItemTower(Tower):
    """Item towers side by side, [n, d_1 + ... + d_n].

    Args:
        towers: item towers of one catalogue, in the order of the `SumUserTower`'s.

    Raises:
        ValueError: without towers, or if their catalogues have different sizes.
    """

    def __init__(self, towers, **kwargs):
        super().__init__(**kwargs)
        self.towers = list(towers)
        known = {t.num_items for t in self.towers if hasattr(t, "num_items")}
        if not self.towers or len(known) > 1:
            raise ValueError(
                f"expected towers of one catalogue, received {len(self.towers)} towers of "
                f"{sorted(known)} items."
            )
        if known:
            (self.num_items,) = known

    def call(self, item_ids, training=False):
        """Map item ids [n] to item vectors, [n, d_1 + ... + d_n]."""
        parts = [at_least_float32(tower(item_ids, training=training)) for tower in self.towers]
        return ops.concatenate(parts, -1)
