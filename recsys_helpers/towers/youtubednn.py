"""YouTubeDNN: the history, the search and the age of the example (chapter 5)."""

from __future__ import annotations

from keras import ops

from recsys_helpers.layers import (
    EmbeddingTable,
    Tower,
    at_least_float32,
    checked_sizes,
    items_in,
    l2_normalize,
    masked_mean,
    profile_fields,
    register,
)
from recsys_helpers.towers.dssm import DSSMUserTower


@register
class YouTubeDNNUserTower(DSSMUserTower):
    """YouTube's candidate generation network (Covington et al. 2016, figure 3), [batch, T, dim].

    Watch history and search tokens are embedded and pooled, and concatenated with the
    demographics and the age of the training example. It does not read the user id: a user is what
    they watched.

    Args:
        sizes, dim, hidden, dropout, history_dropout, fields, recency, last, normalize, table,
            item_table: see `DSSMUserTower`. The paper's has no recency, last=0 and normalize=False.
        example_age_scale: days by which `example_age` is divided, such as its mean in training;
            None ignores the input.
    """

    def __init__(self, sizes, dim, example_age_scale=None, **kwargs):
        super().__init__(sizes, dim, **kwargs)
        checked_sizes(sizes, "search")
        if example_age_scale is not None and not example_age_scale > 0:
            raise ValueError(
                f"example_age_scale must be positive, received {example_age_scale}. Without times "
                "there are no ages: give None."
            )
        self.example_age_scale = example_age_scale
        self.search = self.table(sizes["search"], max(1, dim // 4), name="search")

    @staticmethod
    def default_fields(sizes):
        """All fields of the profile but the user's id."""
        return [name for name in profile_fields(sizes) if name != "user_id"]

    @property
    def reads(self):
        """Names of the inputs that the vectors depend on."""
        return [*super().reads, "search", *(["example_age"] if self.example_age_scale else [])]

    def parts(self, inputs, training):
        """What the network reads, each [batch, T, width]."""
        search = masked_mean(self.search(inputs["search"]), inputs["search"])
        return [*super().parts(inputs, training), search]

    def call(self, inputs, training=False):
        """Map the inputs to user vectors, [batch, T, dim]."""
        history = self.hide(inputs["history"], training=training)
        wide = ops.concatenate(self.parts(inputs | {"history": history}, training), -1)
        wide = self.drop(wide, training=training)
        if self.example_age_scale is not None:
            # With its powers, as in section 4.1 of the paper; one number must not be dropped. Not
            # below 0, where the root ends: they serve with an age that is "slightly negative".
            age = ops.maximum(at_least_float32(inputs["example_age"]) / self.example_age_scale, 0.0)
            powers = ops.stack([age, ops.sqrt(age), age**2], -1)
            wide = ops.concatenate([wide, ops.cast(powers, wide.dtype)], -1)
        vectors = self.network(wide)
        return l2_normalize(vectors) if self.normalize else vectors


@register
class ItemEmbeddingTower(Tower):
    """YouTubeDNN's item side: one row of an embedding table for each item, [n, dim].

    Args:
        num_items: size of the catalogue.
        dim: size of an item's vector.
        normalize: give the vectors length one.
        table: class of the embedding table.
        item_table: the table, if another tower reads the same one.
    """

    def __init__(
        self, num_items, dim, normalize=True, table=EmbeddingTable, item_table=None, **kwargs
    ):
        super().__init__(**kwargs)
        self.num_items, self.dim, self.normalize = num_items, dim, normalize
        self.table, self.item_table = table, item_table
        self.items = items_in(table, item_table, num_items + 1, dim)

    def call(self, item_ids):
        """Map item ids [n] to item vectors, [n, dim]."""
        vectors = self.items(item_ids)
        return l2_normalize(vectors) if self.normalize else vectors
