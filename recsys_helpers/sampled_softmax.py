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

from recsys_helpers.layers import at_least_float32, register


class Sampler:
    """What every sampler of negatives has: a subclass draws, and says how often it draws what.

    Args:
        num_items: size of the catalogue; ids run from 1 to `num_items`.
        num_sampled: number of negatives S, drawn once for each batch and shared by its rows; None
            where they are the batch's own targets, of which it then needs two.

    Attributes:
        draws: whether `num_sampled` negatives are drawn, so that None is refused.
        log_q: float32 `[num_items + 1]`, log-probability of each id in one draw (-inf: never).

    Raises:
        ValueError: if either is no positive integer.
    """

    draws = False

    def __init__(self, num_items, num_sampled):
        for name, value in (("num_items", num_items), ("num_sampled", num_sampled)):
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            of_the_batch = name == "num_sampled" and value is None and not self.draws
            if not (whole and value >= 1) and not of_the_batch:
                raise ValueError(
                    f"{type(self).__name__}: expected {name} to be a positive integer. "
                    f"Received {value!r}."
                )
        self.num_items = int(num_items)
        self.num_sampled = None if num_sampled is None else int(num_sampled)

    def sample(self, seed_generator, targets=None):
        """Draws negatives, shared by all rows of the batch.

        Args:
            seed_generator: a `keras.random.SeedGenerator`; the same seed gives the same draws.
            targets: int `[b]`, item ids of the batch, 0 for none; only some samplers need them.

        Returns:
            `(ids, log_expected_count)`: int32 `[S]` and float32 `[S]`, the log of the number of
            times each drawn id was expected among the draws, log(S * q).
        """
        raise NotImplementedError(f"{type(self).__name__} has no sample(seed_generator, targets).")

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


def _log_q(weights):
    """Log-probability of each entry, float32; -inf where the weight is 0."""
    with np.errstate(divide="ignore"):
        return np.log(weights / weights.sum()).astype("float32")


def _alias_table(q):
    """Turns `q [n]`, summing to 1, into `keep [n]` float32 and `alias [n]` int32.

    Draw a column c evenly, then take c with probability keep[c] and alias[c] otherwise.
    """
    small = np.flatnonzero(q * len(q) < 1).tolist()
    large = np.flatnonzero(q * len(q) >= 1).tolist()
    keep, alias = (q * len(q)).tolist(), list(range(len(q)))  # lists: quicker one by one
    while small and large:
        poor, rich = small.pop(), large[-1]
        alias[poor] = rich
        keep[rich] -= 1 - keep[poor]  # the rich column pays for the rest of the poor one
        if keep[rich] < 1:
            small.append(large.pop())
    for column in small + large:  # all that is missing from 1 here is rounding
        keep[column] = 1.0
    return np.array(keep, dtype="float32"), np.array(alias, dtype="int32")


@register
class UniformSampler(Sampler):
    """Every item equally often: q = 1 / num_items. Holds no table of the catalogue's size.

    Args:
        num_items: number of items.
        num_sampled: number of negatives a batch.
    """

    draws = True

    @property
    def log_q(self):
        """See `Sampler`."""
        return np.r_[-np.inf, np.full(self.num_items, -np.log(self.num_items))].astype("float32")

    def sample(self, seed_generator, targets=None):
        """Draws negatives; arguments and returned values as in `Sampler.sample`."""
        size = (self.num_sampled,)
        ids = keras.random.randint(size, 1, self.num_items + 1, dtype="int32", seed=seed_generator)
        return ids, ops.full(size, float(np.log(self.num_sampled / self.num_items)), "float32")

    def get_config(self):
        """Returns what the constructor needs."""
        return {"num_items": self.num_items, "num_sampled": self.num_sampled}


@register
class PopularitySampler(Sampler):
    """q proportional to count^alpha: alpha 1 follows popularity, 0.75 (word2vec) flattens it.

    An item that was never a training target is never drawn as a negative either, even at alpha 0.

    Draws use an alias table (Walker 1977; built as in Vose 1991): one uniform integer and one
    uniform number per draw, whatever the size of the catalogue. A float32 cumulative sum would
    round each probability to a multiple of about 1e-7, more than a rare item of a large catalogue
    has; here the rounding is 1e-7 / num_items.

    Args:
        counts: `[num_items + 1]`, how often each id is a training target; entry 0 is padding.
        num_sampled: number of negatives a batch.
        alpha: exponent.

    Raises:
        ValueError: if the counts are not one row of finite, non-negative numbers, if the entry
            for padding is not 0, or if all are 0, or if alpha makes infinities of them.
    """

    draws = True

    def __init__(self, counts, num_sampled, alpha=0.75):
        self.counts, self.alpha = _checked(counts), float(alpha)
        super().__init__(len(self.counts) - 1, num_sampled)
        nothing = np.zeros_like(self.counts)
        weights = np.power(self.counts, self.alpha, where=self.counts > 0, out=nothing)
        if not 0 < weights.sum() < np.inf:
            raise ValueError(f"Expected alpha such that count^alpha is finite. Received {alpha}.")
        self.log_q = _log_q(weights)
        self._keep, self._alias = _alias_table(weights[1:] / weights.sum())

    def sample(self, seed_generator, targets=None):
        """Draws negatives; arguments and returned values as in `Sampler.sample`."""
        size = (self.num_sampled,)
        column = keras.random.randint(size, 0, self.num_items, dtype="int32", seed=seed_generator)
        coin = keras.random.uniform(size, dtype="float32", seed=seed_generator)
        kept = coin < ops.take(ops.convert_to_tensor(self._keep), column)
        ids = ops.where(kept, column, ops.take(ops.convert_to_tensor(self._alias), column)) + 1
        log_q = ops.take(ops.convert_to_tensor(self.log_q), ids)
        return ids, log_q + float(np.log(self.num_sampled))

    def get_config(self):
        """Returns what the constructor needs."""
        own = {"num_sampled": self.num_sampled, "alpha": self.alpha}
        return {"counts": self.counts.tolist(), **own}


@register
class InBatchSampler(Sampler):
    """A row's negatives are the other rows' targets, so q is the frequency of targets.

    No further items have to be encoded, hence its wide use. Popular items are drawn most often,
    hence its need of the log-Q correction (Yi et al. 2019). A target alone in its batch has no
    negatives: its loss is 0, and nothing is learnt of it.

    Args:
        counts: `[num_items + 1]`, how often each id is a training target; entry 0 is padding.
    """

    def __init__(self, counts):
        self.counts = _checked(counts)
        super().__init__(len(self.counts) - 1, None)
        self.log_q = _log_q(self.counts)

    def sample(self, seed_generator, targets=None):
        """Returns the batch's own targets; nothing is drawn at random here.

        Args:
            seed_generator: not used.
            targets: int `[b]`, item ids; rows without a target have 0, which is never drawn.

        Returns:
            `(targets, log_expected_count)`, both `[b]`. For each row the other b - 1 are
            independent draws and its own is masked as a hit, so S = b - 1 in log(S * q).

        Raises:
            ValueError: without targets.
        """
        if targets is None:
            raise ValueError("In-batch negatives are the batch's own targets. Received none.")
        ids = ops.cast(targets, "int32")
        others = ops.maximum(ops.sum(ops.cast(ids > 0, "float32")) - 1, 1)
        return ids, ops.take(ops.convert_to_tensor(self.log_q), ids) + ops.log(others)

    def get_config(self):
        """Returns what the constructor needs."""
        return {"counts": self.counts.tolist()}


def full_softmax_loss(user_vectors, item_vectors, targets, temperature=1.0, left_out=None):
    """Softmax cross-entropy over the whole catalogue, or over what is not left out of it.

    Args:
        user_vectors: float `[b, d]`.
        item_vectors: float `[num_items + 1, d]`; row 0 is padding and left out.
        targets: int `[b]`, item ids; the loss of a row without a target, 0, is 0.
        temperature: logits are dot products divided by this.
        left_out: bool `[b, num_items]`, True where an item has no part in a row's softmax. A row's
            target always has.

    Returns:
        Loss `[b]`, one per row, in nats, float32 at least.

    Raises:
        ValueError: if shapes do not fit or the temperature is not positive.
    """
    _check_vectors(temperature, user_vectors=user_vectors, item_vectors=item_vectors)
    _check_length("targets", targets, user_vectors)
    _check_left_out(left_out, user_vectors, item_vectors[1:])
    user_vectors, item_vectors = at_least_float32(user_vectors), at_least_float32(item_vectors)
    logits = ops.matmul(user_vectors / temperature, ops.transpose(item_vectors[1:]))  # (b, n)
    targets = ops.cast(targets, "int32")
    # A product of its own, d numbers a row: the gradient of a column of the logits would be n.
    positive = ops.sum(user_vectors / temperature * ops.take(item_vectors, targets, axis=0), 1)
    if left_out is not None:
        own = targets[:, None] == ops.arange(1, ops.shape(logits)[1] + 1, dtype="int32")
        logits = _leave_out(ops.logical_and(left_out, ops.logical_not(own)), logits)
    return ops.where(targets > 0, ops.logsumexp(logits, axis=1) - positive, 0.0)


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
        targets: int `[b]`, item ids; the loss of a row without a target, 0, is 0.
        sampled_ids: int `[s]`, item ids; 0, padding, is no negative of anybody.
        log_expected_count: float `[s]`, log(S * q) of each negative, subtracted from its logit.
            None leaves the logits as they are, which is right only if each item other than the
            target is sampled exactly once, and biased otherwise.
        temperature: logits are dot products divided by this, before any correction.
        left_out: bool `[b, s]`, True where a negative is none for a row. What is left then stands
            for the catalogue without these items.

    Returns:
        Loss `[b]`, one per row, in nats, float32 at least.

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
    if log_expected_count is not None:
        _check_length("log_expected_count", log_expected_count, sampled_vectors)
    users, own, sampled = map(at_least_float32, (user_vectors, target_vectors, sampled_vectors))
    users = users / temperature  # before the product: d numbers a row, not s
    targets, ids = ops.cast(targets, "int32"), ops.cast(sampled_ids, "int32")
    return sampled_cross_entropy(users, own, sampled, targets, ids, log_expected_count, left_out)


def sampled_cross_entropy(users, own, sampled, targets, ids, log_expected_count, left_out):
    """The loss of `sampled_softmax_loss`, whose arguments have been checked and cast."""
    positive = ops.sum(users * own, axis=1, keepdims=True)  # (b, 1)
    logits = ops.matmul(users, ops.transpose(sampled))  # (b, s)
    hits = targets[:, None] == ids[None, :]  # (b, s)
    left_out = hits if left_out is None else ops.logical_or(hits, left_out)
    never = ids == 0  # (s,)
    if log_expected_count is not None:
        correction = ops.cast(log_expected_count, logits.dtype)
        never = ops.logical_or(never, correction == -np.inf)
        logits = logits - correction  # exp: each is weighed by 1 / (S q)
    logits = _leave_out(ops.logical_or(left_out, never), logits)
    log_z = ops.logsumexp(ops.concatenate([positive, logits], axis=1), axis=1)
    return ops.where(targets > 0, log_z - positive[:, 0], 0.0)


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
    (rows, steps), size = ops.shape(history), ops.shape(ids)[0]
    in_order, watched = ops.sort(ids), ops.reshape(history, (-1,))
    place = ops.cast(ops.searchsorted(in_order, watched), "int32")  # the first of equals
    place = ops.minimum(place, size - 1)
    found = ops.logical_and(ops.take(in_order, place) == watched, watched != 0)
    # How many steps before the end it was watched; the longest counts, -1 is never.
    ago = ops.tile(ops.arange(steps - 1, -1, -1, dtype="int32"), (rows,))
    cell = ops.repeat(ops.arange(rows, dtype="int32"), steps) * size + place
    longest = ops.segment_max(ops.where(found, ago, -1), cell, rows * size)
    longest = ops.take(ops.reshape(longest, (-1, size)), ops.searchsorted(in_order, ids), axis=1)
    return longest[:, None] >= ops.arange(positions - 1, -1, -1, dtype="int32")[:, None]


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
