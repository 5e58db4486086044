"""DSSM: a deep network on either side (chapter 4)."""

from __future__ import annotations

from keras import layers, ops

from recsys_helpers.layers import (
    EmbeddingTable,
    HistoryDropout,
    HistoryFeatures,
    Tower,
    checked_sizes,
    embedded,
    items_in,
    l2_normalize,
    network,
    num_positions,
    profile_fields,
    register,
)


@register
class DSSMUserTower(Tower):
    """A deep tower over the user's profile and history, normalised to length one, [batch, T, dim].

    The history is seen as in `HistoryFeatures`. After Huang et al. 2013, figure 1, whose towers
    read bags of letter trigrams; here the sparse features are the fields of a recommender.

    Args:
        sizes: `samples.sizes`: number of codes of every input, and the history's length.
        dim: size of the output, the same as the item tower's, and of an item in the history.
        hidden: sizes of the hidden layers.
        dropout: share of the network's input that is dropped in training.
        history_dropout: share of the history's items that are hidden in training.
        fields: of the profile; None: all in `sizes`.
        recency, last: see `HistoryFeatures`; 0 and 0 give a plain average.
        normalize: give the vectors length one.
        table: class of the embedding tables.
        item_table: the history's table, if another tower reads the same one.
    """

    def __init__(
        self,
        sizes,
        dim,
        hidden=(256,),
        dropout=0.2,
        history_dropout=0.0,
        fields=None,
        recency=True,
        last=3,
        normalize=True,
        table=EmbeddingTable,
        item_table=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.fields = list(self.default_fields(sizes) if fields is None else fields)
        self.sizes = checked_sizes(sizes, *self.fields, "history", "history_length")
        self.dim, self.hidden, self.dropout = dim, tuple(hidden), dropout
        self.history_dropout, self.recency, self.last = history_dropout, recency, last
        self.normalize = normalize
        self.table, self.item_table = table, item_table
        self.profile = {  # small fields need no more than a few numbers
            name: table(sizes[name], dim if sizes[name] > 100 else max(1, dim // 4), name=name)
            for name in self.fields
        }
        items = items_in(table, item_table, sizes["history"], dim)
        self.history = HistoryFeatures(items, sizes["history_length"], recency, last)
        self.hide, self.drop = HistoryDropout(history_dropout), layers.Dropout(dropout)
        self.network = network(hidden, dim)

    @staticmethod
    def default_fields(sizes):
        """Names of the profile's fields that are read unless others are asked for."""
        return profile_fields(sizes)

    @property
    def reads(self):
        """Names of the inputs that the vectors depend on."""
        return [*self.fields, "history"]

    def parts(self, inputs, training):
        """What the network reads, each [batch, T, width]."""
        positions = num_positions(inputs)
        profile = [
            ops.repeat(embedded(table, inputs[name])[:, None], positions, axis=1)
            for name, table in self.profile.items()
        ]
        return [*profile, self.history(inputs["history"], positions=positions)]

    def call(self, inputs, training=False):
        """Map the inputs to user vectors, [batch, T, dim]."""
        history = self.hide(inputs["history"], training=training)
        wide = ops.concatenate(self.parts(inputs | {"history": history}, training), -1)
        vectors = self.network(self.drop(wide, training=training))
        return l2_normalize(vectors) if self.normalize else vectors


@register
class DSSMItemTower(Tower):
    """A deep tower over the item's id and its fields, normalised to length one, [n, dim].

    Args:
        item_features: `layers.ItemFeatures` of the catalogue.
        dim: size of the output, the same as the user tower's.
        hidden: sizes of the hidden layers.
        table: class of the embedding tables.
        item_table: the ids' table, if another tower reads the same one.
    """

    def __init__(
        self, item_features, dim, hidden=(256,), table=EmbeddingTable, item_table=None, **kwargs
    ):
        super().__init__(**kwargs)
        self.item_features, self.dim, self.hidden = item_features, dim, tuple(hidden)
        self.table, self.item_table = table, item_table
        self.num_items = item_features.num_items
        self.ids = items_in(table, item_table, self.num_items + 1, dim)
        self.tables = {
            name: table(size, max(1, dim // 4), name=name)
            for name, size in item_features.sizes.items()
        }
        self.network = network(hidden, dim)

    def call(self, item_ids, training=False):
        """Map item ids [n] to item vectors of length one, [n, dim]."""
        features = self.item_features(item_ids)
        fields = [embedded(self.tables[name], codes) for name, codes in features.items()]
        ids = self.ids(self.item_features.ids(item_ids, training))
        return l2_normalize(self.network(ops.concatenate([ids, *fields], -1)))
