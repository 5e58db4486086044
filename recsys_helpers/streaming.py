"""Negatives of a system that never stops: frequencies from the stream, two sources mixed.

In-batch negatives are drawn as often as items are targets, and the log-Q correction must know how
often that is. Where training runs on a stream of logs, nobody has counted, and popularity moves.
Yi et al. 2019 (section 4, pages 272 and 273) estimate it from what passes by: the mean number of
steps between two sights of an item is one over the probability of seeing it in a step.
"""

import keras
import numpy as np
from keras import ops

from recsys_helpers.layers import Tower, register
from recsys_helpers.sampled_softmax import InBatchSampler, Sampler


@register
class StreamingSampler(Tower, Sampler):
    """In-batch negatives whose frequencies are estimated while training runs.

    For each batch t and each of its items y, with h a hash function of the item's id,

        B[h(y)] <- (1 - rate) B[h(y)] + rate (t - A[h(y)]),    A[h(y)] <- t,

    and an item's expected number among the targets of a batch is 1 / B[h(y)] (Yi et al. 2019,
    equation 6 and algorithm 2). Two items in one bucket make the mean gap smaller than either's, so
    of several hash functions the largest gap is taken (algorithm 3). The first gap of a bucket,
    counted from the beginning of the stream, is taken as it is: on a stream without memory no start
    is better.

    A layer without trainable weights: A, B and t are saved and loaded with the model, so that a
    training that is taken up again goes on where the stream was left. As with `InBatchSampler`, a
    target alone in its batch has no negatives.

    Args:
        num_items: size of the catalogue; ids run from 1 to `num_items`. No array has this size.
        rate: of the moving average; small is steady, large is quick to follow.
        hashes: number of hash functions.
        bits: each has 2^bits buckets.
        each_target: False, as in the paper: an item is seen in a batch or it isn't, so that 1 / B
            estimates the probability that it is in there, which is less than its expected number.
            True: n targets of one batch are n sights, an nth of the gap each, so that 1 / B
            estimates the expected number itself.
        seed: of the hash functions.

    Raises:
        ValueError: on a rate that isn't above 0 and up to 1, no hash function, or bits that are not
            from 1 to 30.
    """

    def __init__(
        self, num_items, rate=0.05, hashes=2, bits=16, each_target=False, seed=0, **kwargs
    ):
        Tower.__init__(self, **kwargs)
        Sampler.__init__(self, num_items, None)
        if not 0 < rate <= 1 or hashes < 1 or not 1 <= bits <= 30:
            raise ValueError(
                "expected a rate above 0 and up to 1, at least one hash function, and from 1 to 30 "
                f"bits, received rate={rate}, hashes={hashes}, bits={bits}."
            )
        self.rate, self.hashes, self.bits = rate, hashes, bits
        self.each_target, self.seed = each_target, seed
        size, kept = hashes << bits, {"trainable": False, "aggregation": "only_first_replica"}
        self.last_seen = self.add_weight((size,), "zeros", "int32", name="last_seen", **kept)  # A
        self.gaps = self.add_weight((size,), "zeros", "float32", name="gaps", **kept)  # B
        self.step = self.add_weight((), "zeros", "int32", name="step", **kept)  # t
        odd = np.random.default_rng(seed).integers(-(2**30), 2**30, (hashes, 2, 1)) * 2 + 1
        self.odd = odd.astype("int32")
        self.built = True

    def buckets(self, ids):
        """The bucket of each id [n] under each hash function, int32 [hashes, n]."""
        mixed = ops.cast(ids, "int32")[None] * self.odd[:, 0]  # int32 overflows, as it should
        mixed = ops.bitwise_xor(mixed, ops.right_shift(mixed, 15)) * self.odd[:, 1]
        top = ops.right_shift(mixed, 32 - self.bits) + (1 << (self.bits - 1))  # from 0
        return top + (np.arange(self.hashes, dtype="int32") << self.bits)[:, None]

    def update(self, targets):
        """One step of the stream: the item ids [b] of a batch, 0 for none."""
        step = self.step + 1
        place = ops.reshape(self.buckets(targets), (-1,))  # (hashes * b,)
        real = ops.tile(ops.cast(ops.cast(targets, "int32") > 0, "float32"), (self.hashes,))
        sights = ops.take(ops.segment_sum(real, place, self.hashes << self.bits), place)
        known, last_seen = ops.take(self.gaps, place), ops.take(self.last_seen, place)
        often = ops.maximum(sights, 1) if self.each_target else 1.0
        gap = ops.cast(step - last_seen, "float32") / often
        rate = ops.where(last_seen == 0, 1.0, 1 - (1 - self.rate) ** often)
        # Whatever shares a bucket is here with the same value, so it doesn't matter who writes it.
        gap = ops.where(sights > 0, known + rate * (gap - known), known)
        last_seen = ops.where(sights > 0, step, last_seen)
        self.gaps.assign(ops.scatter_update(self.gaps, place[:, None], gap))
        self.last_seen.assign(ops.scatter_update(self.last_seen, place[:, None], last_seen))
        self.step.assign(step)

    def gap(self, ids):
        """Estimated steps between two sights of each item [n], float32 [n]; 0 if never seen."""
        return ops.max(ops.take(self.gaps, self.buckets(ids)), axis=0)

    def log_expected(self, ids):
        """Log of how often each item [n] is expected among a batch's targets; -inf if never."""
        gap = self.gap(ids)
        return ops.where(gap > 0, -ops.log(ops.where(gap > 0, gap, 1.0)), -np.inf)

    def sample(self, seed_generator, targets=None):
        """The batch's own targets, after they were counted; as `InBatchSampler.sample`."""
        if targets is None:
            raise ValueError("In-batch negatives are the batch's own targets. Received none.")
        ids = ops.cast(targets, "int32")
        self.update(ids)
        number = ops.sum(ops.cast(ids > 0, "float32"))
        others = ops.maximum(number - 1, 1) / ops.maximum(number, 1)  # a row's own is given
        return ids, self.log_expected(ids) + ops.log(others)


@register
class MixedSampler(Sampler):
    """In-batch negatives and some drawn evenly from the catalogue (Yang et al. 2020).

    In-batch negatives alone hold no item that is never a target, and few that rarely are. Of both
    sources together item j is expected (b - 1) p_j + num_sampled / num_items times, p_j its
    frequency among the targets, whichever of the two it came from: that is its correction.

    Args:
        counts: `[num_items + 1]`, how often each id is a training target; entry 0 is padding.
        num_sampled: number of negatives drawn evenly for a batch.
    """

    draws = True

    def __init__(self, counts, num_sampled):
        self.in_batch = InBatchSampler(counts)
        super().__init__(self.in_batch.num_items, num_sampled)

    def sample(self, seed_generator, targets=None):
        """The batch's targets and then the draws; arguments and results as in `Sampler.sample`."""
        targets, _ = self.in_batch.sample(seed_generator, targets)
        size = (self.num_sampled,)
        drawn = keras.random.randint(
            size, 1, self.num_items + 1, dtype="int32", seed=seed_generator
        )
        others = ops.maximum(ops.sum(ops.cast(targets > 0, "float32")) - 1, 1)
        ids = ops.concatenate([targets, drawn])
        often = others * ops.exp(ops.take(ops.convert_to_tensor(self.in_batch.log_q), ids))
        return ids, ops.log(often + self.num_sampled / self.num_items)

    def get_config(self):
        """Returns what the constructor needs."""
        return {**self.in_batch.get_config(), "num_sampled": self.num_sampled}
