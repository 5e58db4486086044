"""Sampled softmax: samplers of negatives, the log-Q correction, accidental hits, temperature.

Retrieval is classification with one class per item. For a user with logits ``o_j`` and target
``t`` the softmax loss is ``-o_t + log Z`` with ``Z = sum_j exp(o_j)``. For large catalogues Z is
estimated from S negatives drawn with replacement from a distribution q:

    Z_hat = exp(o_t) + sum over the draws j that are not t of exp(o_j) / (S * q_j)

The target's own term needs no estimate: it is there with probability one, so it enters
uncorrected, and a draw that happens to be the target (an accidental hit) is left out. Taken
over the draws, E[Z_hat] = Z exactly wherever q_j > 0 (importance sampling: Bengio and Senecal
2008). ``exp(o_j) / (S q_j)`` is ``exp(o_j - log(S q_j))``: the log-Q correction *subtracts* the
log of the expected number of times that item j is drawn. log Z_hat, and with it the gradient,
keeps a bias of order 1/S, which vanishes where q_j is proportional to exp(o_j) on the items other
than the target (Blanc and Rendle 2018).

Everything here is written with ``keras.ops`` and runs on any Keras backend.
"""

import keras
import numpy as np
from keras import ops

_register = keras.saving.register_keras_serializable(package="recsys_helpers")


class Sampler:
    """Draws item ids with replacement from a fixed distribution.

    Draws use an alias table (Walker 1977; built as in Vose 1991): one uniform integer and one
    uniform number per draw, whatever the size of the catalogue. A float32 cumulative sum would
    round each probability to a multiple of about 1e-7, more than a rare item of a large catalogue
    has; here the rounding is 1e-7 / num_items.

    Args:
        weights: `[num_items + 1]`, not negative; entry i is proportional to item i's probability.
            Entry 0 is padding and must be 0. An item of weight 0 is never drawn.

    Attributes:
        num_items: number of items; ids run from 1 to `num_items`.
        log_q: float32 `[num_items + 1]`, log-probability of each id in one draw (-inf: never).

    Raises:
        ValueError: if the weights are not one row of finite, non-negative numbers, if the entry
            for padding is not 0, or if all are 0.
    """

    def __init__(self, weights):
        weights = _checked(weights)
        q = weights / weights.sum()
        self.num_items = len(q) - 1
        self.log_q = np.full(len(q), -np.inf, dtype="float32")
        self.log_q[q > 0] = np.log(q[q > 0])
        self._keep, self._alias = _alias_table(q[1:])

    def sample(self, num_sampled, seed_generator, targets=None):
        """Draws negatives, shared by all rows of the batch.

        Args:
            num_sampled: number of draws S.
            seed_generator: a `keras.random.SeedGenerator`; the same seed gives the same draws.
            targets: not used here (the in-batch sampler does).

        Returns:
            `(ids, log_expected_count)`: int32 `[S]` and float32 `[S]`, the log of the number of
            times each drawn id was expected among the draws, log(S * q).

        Raises:
            ValueError: if `num_sampled` is not a positive integer.
        """
        if num_sampled is None or int(num_sampled) != num_sampled or num_sampled < 1:
            raise ValueError(
                f"{type(self).__name__} needs the number of negatives to draw: expected "
                f"num_sampled to be a positive integer. Received {num_sampled!r}."
            )
        column = keras.random.randint((num_sampled,), 0, self.num_items, seed=seed_generator)
        coin = keras.random.uniform((num_sampled,), dtype="float32", seed=seed_generator)
        kept = coin < ops.take(ops.convert_to_tensor(self._keep), column)
        ids = ops.where(kept, column, ops.take(ops.convert_to_tensor(self._alias), column)) + 1
        log_q = ops.take(ops.convert_to_tensor(self.log_q), ids)
        return ids, log_q + float(np.log(num_sampled))

    @classmethod
    def from_config(cls, config):
        """Makes the sampler that `get_config` described."""
        return cls(**config)


def _checked(counts):
    counts = np.asarray(counts, dtype="float64")
    if counts.ndim != 1 or len(counts) < 2:
        raise ValueError(
            "Expected one count per item id, of shape [num_items + 1] with entry 0 for "
            f"padding. Received shape {counts.shape}."
        )
    if not np.all(np.isfinite(counts)) or np.any(counts < 0) or counts.sum() == 0:
        raise ValueError(
            "Expected finite counts, none negative and not all zero. Received values from "
            f"{counts.min()} to {counts.max()}."
        )
    if counts[0] != 0:
        raise ValueError(
            "Entry 0 belongs to padding, which is never an item: expected 0, received "
            f"{counts[0]}. Count with np.bincount(item_ids, minlength=num_items + 1)."
        )
    return counts


def _alias_table(q):
    """Turns `q [n]`, summing to 1, into `keep [n]` float32 and `alias [n]` int32.

    Draw a column c evenly, then take c with probability keep[c] and alias[c] otherwise.
    """
    small = np.flatnonzero(q * len(q) < 1).tolist()
    large = np.flatnonzero(q * len(q) >= 1).tolist()
    keep, alias = (
        (q * len(q)).tolist(),
        list(range(len(q))),
    )  # lists: quicker one by one
    while small and large:
        poor, rich = small.pop(), large[-1]
        alias[poor] = rich
        keep[rich] -= 1 - keep[poor]  # the rich column pays for the rest of the poor one
        if keep[rich] < 1:
            small.append(large.pop())
    for column in small + large:  # all that is missing from 1 here is rounding
        keep[column] = 1.0
    return np.array(keep, dtype="float32"), np.array(alias, dtype="int32")


@_register
class UniformSampler(Sampler):
    """Every item equally often: q = 1 / num_items. Draws without any table of the catalogue's size.

    Args:
        num_items: number of items.

    Raises:
        ValueError: if there is none.
    """

    def __init__(self, num_items):
        if num_items < 1:
            raise ValueError(f"Expected at least one item to draw. Received {num_items}.")
        self.num_items = num_items
        self.log_q = np.full(num_items + 1, -np.log(num_items), dtype="float32")
        self.log_q[0] = -np.inf

    def sample(self, num_sampled, seed_generator, targets=None):
        """Draws negatives; arguments, returned values and errors as in `Sampler.sample`."""
        if num_sampled is None or int(num_sampled) != num_sampled or num_sampled < 1:
            raise ValueError(
                f"Expected num_sampled to be a positive integer. Received {num_sampled!r}."
            )
        ids = keras.random.randint((num_sampled,), 1, self.num_items + 1, seed=seed_generator)
        return ids, ops.full((num_sampled,), float(np.log(num_sampled / self.num_items)))

    def get_config(self):
        """Returns what the constructor needs."""
        return {"num_items": self.num_items}


@_register
class LogUniformSampler(Sampler):
    """q falls like 1 / rank: an item of rank r = 1, 2, ... gets log((r + 1) / r) / log(n + 1).

    This is the distribution that `tf.nn.sampled_softmax_loss` draws from, where it is silently
    assumed that ids are sorted by frequency, most frequent first. MovieLens ids are not: pass the
    counts, and items are ranked by them here (items that were never seen come last, but are drawn).

    Args:
        num_items: number of items, if ids are already ranked (id 1 the most frequent).
        counts: `[num_items + 1]`, entry 0 for padding, if they are not.

    Raises:
        ValueError: unless exactly one of the two is given.
    """

    def __init__(self, num_items=None, counts=None):
        if (num_items is None) == (counts is None):
            raise ValueError(
                "Give either num_items (ids are ranked by frequency already) or counts (they "
                f"are not). Received num_items={num_items!r} and counts="
                f"{'None' if counts is None else 'an array'}."
            )
        self.counts = None if counts is None else _checked(counts)
        if counts is None:
            rank = np.arange(1, num_items + 1)
        else:
            rank = np.argsort(np.argsort(-self.counts[1:], kind="stable")) + 1
        super().__init__(np.concatenate([[0], np.log1p(1 / rank)]))

    def get_config(self):
        """Returns what the constructor needs."""
        if self.counts is None:
            return {"num_items": self.num_items}
        return {"counts": self.counts.tolist()}


@_register
class PopularitySampler(Sampler):
    """q proportional to count^alpha: alpha 1 follows popularity, 0.75 (word2vec) flattens it.

    An item that was never a training target is never drawn as a negative either, even at alpha 0.

    Args:
        counts: `[num_items + 1]`, how often each id is a training target; entry 0 is padding.
        alpha: exponent.
    """

    def __init__(self, counts, alpha=0.75):
        self.counts, self.alpha = _checked(counts), float(alpha)
        super().__init__(
            np.power(
                self.counts,
                self.alpha,
                where=self.counts > 0,
                out=np.zeros_like(self.counts),
            )
        )

    def get_config(self):
        """Returns what the constructor needs."""
        return {"counts": self.counts.tolist(), "alpha": self.alpha}


@_register
class InBatchSampler(Sampler):
    """A row's negatives are the other rows' targets, so q is the frequency of targets.

    No further items have to be encoded, hence its wide use. Popular items are drawn most often,
    hence its need of the log-Q correction (Yi et al. 2019).

    Args:
        counts: `[num_items + 1]`, how often each id is a training target; entry 0 is padding.
    """

    def __init__(self, counts):
        self.counts = _checked(counts)
        super().__init__(self.counts)

    def sample(self, num_sampled, seed_generator, targets=None):
        """Returns the batch's own targets; nothing is drawn at random here.

        Args:
            num_sampled: None; the batch decides how many negatives there are.
            seed_generator: not used.
            targets: int `[b]`, item ids; rows without a target have 0, which is never drawn.

        Returns:
            `(targets, log_expected_count)`, both `[b]`. For each row the other b - 1 are
            independent draws and its own is masked as a hit, so S = b - 1 in log(S * q).

        Raises:
            ValueError: without targets, or if `num_sampled` is given.
        """
        if targets is None or num_sampled is not None:
            raise ValueError(
                "In-batch negatives are the batch's own targets: expected targets and "
                f"num_sampled=None. Received targets={targets!r}, num_sampled={num_sampled!r}."
            )
        ids = ops.cast(targets, "int32")
        others = ops.maximum(ops.cast(ops.count_nonzero(ids), "float32") - 1, 1)
        return ids, ops.take(ops.convert_to_tensor(self.log_q), ids) + ops.log(others)

    def get_config(self):
        """Returns what the constructor needs."""
        return {"counts": self.counts.tolist()}


def full_softmax_loss(user_vectors, item_vectors, targets, temperature=1.0, left_out=None):
    """Softmax cross-entropy over the whole catalogue, or over what is not left out of it.

    Args:
        user_vectors: float `[b, d]`.
        item_vectors: float `[num_items + 1, d]`; row 0 is padding and left out.
        targets: int `[b]`, item ids from 1.
        temperature: logits are dot products divided by this.
        left_out: bool `[b, num_items]`, True where an item has no part in a row's softmax. A row's
            target always has.

    Returns:
        Loss `[b]`, one per row, in nats.

    Raises:
        ValueError: if shapes do not fit or the temperature is not positive.
    """
    _check_vectors(temperature, user_vectors=user_vectors, item_vectors=item_vectors)
    _check_left_out(left_out, user_vectors, item_vectors[1:])
    logits = ops.matmul(user_vectors / temperature, ops.transpose(item_vectors[1:]))  # (b, n)
    columns = ops.expand_dims(ops.cast(targets, "int32") - 1, 1)
    positive = ops.squeeze(ops.take_along_axis(logits, columns, axis=1), 1)
    if left_out is not None:
        own = columns == ops.arange(logits.shape[1], dtype="int32")
        logits = _leave_out(ops.logical_and(left_out, ops.logical_not(own)), logits)
    return ops.logsumexp(logits, axis=1) - positive


def sampled_softmax_loss(
    user_vectors,
    target_vectors,
    sampled_vectors,
    targets,
    sampled_ids,
    log_expected_count=None,
    temperature=1.0,
    left_out=None,
):
    """Softmax cross-entropy of each row's target against sampled negatives.

    The loss is -o_t + log Z_hat, with Z_hat as at the top of this module. Accidental hits (a
    sampled id that is the row's own target) contribute exactly nothing, and so does a sampled
    item whose `log_expected_count` is -inf: the sampler says that it cannot be drawn,
    so there is no weight that it could have.

    Args:
        user_vectors: float `[b, d]`.
        target_vectors: float `[b, d]`, the item vector of each row's target.
        sampled_vectors: float `[s, d]`, the item vectors of the negatives, shared by all rows.
        targets: int `[b]`, item ids.
        sampled_ids: int `[s]`, item ids.
        log_expected_count: float `[s]`, log(S * q) of each negative, subtracted from its logit.
            None leaves the logits as they are, which is right only if each item other than the
            target is sampled exactly once, and biased otherwise.
        temperature: logits are dot products divided by this, before any correction.
        left_out: bool `[b, s]`, True where a negative is none for a row. What is left then stands
            for the catalogue without these items.

    Returns:
        Loss `[b]`, one per row, in nats.

    Raises:
        ValueError: if shapes do not fit or the temperature is not positive.
    """
    _check_vectors(
        temperature,
        user_vectors=user_vectors,
        target_vectors=target_vectors,
        sampled_vectors=sampled_vectors,
    )
    _check_length("targets", targets, user_vectors)
    _check_length("target_vectors", target_vectors, user_vectors)
    _check_length("sampled_ids", sampled_ids, sampled_vectors)
    _check_left_out(left_out, user_vectors, sampled_vectors)
    user_vectors = user_vectors / temperature  # before the product: d numbers a row, not s
    positive = ops.sum(user_vectors * target_vectors, axis=1, keepdims=True)  # (b, 1)
    logits = ops.matmul(user_vectors, ops.transpose(sampled_vectors))  # (b, s)
    targets, sampled_ids = ops.cast(targets, "int32"), ops.cast(sampled_ids, "int32")
    hits = ops.expand_dims(targets, 1) == ops.expand_dims(sampled_ids, 0)  # (b, s)
    left_out = hits if left_out is None else ops.logical_or(hits, left_out)
    if log_expected_count is not None:
        _check_length("log_expected_count", log_expected_count, sampled_vectors)
        correction = ops.cast(log_expected_count, logits.dtype)
        left_out = ops.logical_or(left_out, correction == -np.inf)
        logits = logits - correction
    logits = _leave_out(left_out, logits)
    return ops.logsumexp(ops.concatenate([positive, logits], axis=1), axis=1) - positive[:, 0]


def _leave_out(where, logits):
    # A real -inf, not a large negative number: exp gives exactly 0, in value and gradient.
    return ops.where(where, ops.cast(-np.inf, logits.dtype), logits)


def seen_before(history, ids, positions=1):
    """Which of the items a user had watched by each of the last moments of their history.

    Takes memory for the answer only, whatever the size of the catalogue.

    Args:
        history: int `[b, steps]`, item ids, the oldest first, padded with 0.
        ids: int `[s]`, item ids to look for, repeated or not; 0 is never found.
        positions: number of moments T; the last one comes after the whole history, each of the
            others one step before the next.

    Returns:
        bool `[b, T, s]`, True where the item is among the steps up to the moment.
    """
    ids, history = ops.cast(ids, "int32"), ops.cast(history, "int32")
    rows, steps, size = ops.shape(history)[0], history.shape[1], ops.shape(ids)[0]
    in_order, watched = ops.sort(ids), ops.reshape(history, (-1,))
    place = ops.cast(ops.searchsorted(in_order, watched), "int32")  # the first of equals
    place = ops.minimum(place, size - 1)
    found = ops.logical_and(ops.take(in_order, place) == watched, watched != 0)
    # How many steps before the end it was watched; the longest counts, -1 is never.
    ago = ops.tile(ops.arange(steps - 1, -1, -1, dtype="int32"), (rows,))
    cell = ops.repeat(ops.arange(rows, dtype="int32"), steps) * size + place
    longest = ops.segment_max(ops.where(found, ago, -1), cell, rows * size)
    longest = ops.take(ops.reshape(longest, (-1, size)), ops.searchsorted(in_order, ids), axis=1)
    return longest[:, None] >= np.arange(positions - 1, -1, -1, dtype="int32")[:, None]


def _check_vectors(temperature, **vectors):
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"Expected temperature > 0. Received {temperature}.")
    widths = {name: tuple(value.shape) for name, value in vectors.items()}
    if any(len(shape) != 2 for shape in widths.values()) or (
        len({shape[1] for shape in widths.values() if shape[1] is not None}) > 1
    ):
        received = ", ".join(f"{name} of shape {shape}" for name, shape in widths.items())
        raise ValueError(f"Expected rows of vectors of one length d. Received {received}.")


def _check_length(name, value, vectors):
    length, expected = tuple(value.shape)[:1], tuple(vectors.shape)[:1]
    if None not in length + expected and length != expected:
        raise ValueError(
            f"Expected {name} to have one entry per vector, so length {expected[0]}. "
            f"Received shape {tuple(value.shape)}."
        )


def _check_left_out(left_out, rows, columns):
    if left_out is None:
        return
    shape, expected = tuple(left_out.shape), (rows.shape[0], columns.shape[0])
    known = [(a, b) for a, b in zip(shape, expected, strict=False) if None not in (a, b)]
    if len(shape) != 2 or any(a != b for a, b in known):
        raise ValueError(f"Expected left_out of shape {expected}. Received shape {shape}.")
