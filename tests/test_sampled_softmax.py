"""Sampled softmax, judged by arithmetic that does not use it.

The main instrument is enumeration: with 5 items and 4 draws there are 625 possible samples, so
expectations over the sampler are finite sums and "unbiased" can be tested to rounding. Draws from
the real samplers repeat the same statements with standard errors.
"""

import itertools
import json
from functools import partial

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats
from scipy.special import logsumexp, softmax

from recsys_helpers.sampled_softmax import (
    InBatchSampler,
    PopularitySampler,
    Sampler,
    UniformSampler,
    full_softmax_loss,
    sampled_softmax_loss,
    seen_before,
)
from recsys_helpers.streaming import MixedSampler

COUNTS = [0, 7, 0, 1, 40, 12, 3]  # padding, then six items; item 2 is never a target
LOGITS = np.array([0.3, -1.2, 1.5, 0.0, -0.4])  # items 1..5 of the enumeration tests
TARGET = 3
Q = np.array([0.1, 0.15, 0.2, 0.5, 0.05])  # nothing like exp(LOGITS)


def generator(seed=1):
    return keras.random.SeedGenerator(seed)


# Of losses computed from float64 arrays: JAX, and some operations on PyTorch, have float32.
ROUNDING = 1e-12 if keras.backend.backend() == "tensorflow" else 1e-5


def value_and_gradients(function, *arrays):
    """function(*tensors) -> values; returns them and their sum's gradient by each array."""
    tensors = [ops.convert_to_tensor(array) for array in arrays]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        # The gradient of a lookup arrives as tf.IndexedSlices; numpy wants it dense.
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(value, tensors)]
    elif keras.backend.backend() == "torch":
        tensors = [tensor.requires_grad_() for tensor in tensors]
        value = function(*tensors)
        value.sum().backward()
        gradients = [tensor.grad for tensor in tensors]
    else:
        import jax

        value, pullback = jax.vjp(function, *tensors)
        gradients = pullback(ops.ones_like(value))
    return ops.convert_to_numpy(value), [ops.convert_to_numpy(g) for g in gradients]


def per_draw(draws, log_expected_count, logits=LOGITS, target=TARGET):
    """Losses `[D]` and gradients with respect to the logits `[D, n]`, for draws `[D, S]` of ids.

    Item vectors are unit vectors and the user vector is the row of logits, so the gradient of
    the user vector is the gradient of the logits. log_expected_count is `[n]` or None.
    """
    items = ops.convert_to_tensor(np.vstack([np.zeros(len(logits)), np.eye(len(logits))]))
    draws = ops.convert_to_tensor(draws)

    def loss(inputs):
        user, ids = inputs
        expected = None
        if log_expected_count is not None:
            expected = ops.take(ops.convert_to_tensor(log_expected_count), ids - 1)
        return sampled_softmax_loss(
            user[None],
            items[target][None],
            ops.take(items, ids, axis=0),
            np.array([target]),
            ids,
            expected,
        )[0]

    def losses(users):
        return ops.vectorized_map(loss, (users, draws))

    values, (gradients,) = value_and_gradients(losses, np.tile(logits, (len(draws), 1)))
    return values, gradients


def every_draw(q, num_sampled):
    """All samples `[n^S, S]` of ids and their probabilities `[n^S]`."""
    possible = np.flatnonzero(q) + 1
    draws = np.array(list(itertools.product(possible, repeat=num_sampled)), dtype="int32")
    return draws, np.prod(q[draws - 1], axis=1)


def exact_gradient(logits=LOGITS, target=TARGET):
    return softmax(logits) - (np.arange(1, len(logits) + 1) == target)


def proposal_for_negatives(logits=LOGITS, target=TARGET):
    """q proportional to exp(logit) on every item but the target."""
    weights = np.where(np.arange(1, len(logits) + 1) == target, 0, np.exp(logits))
    return weights / weights.sum()


# ------------------------------------------------------------------------------------ the loss


def test_full_softmax_matches_scipy():
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(6, 4)), rng.normal(size=(10, 4))
    targets = np.array([1, 9, 4, 4, 2, 7])
    logits = users @ items[1:].T / 0.3  # row 0 of items is padding: changing it must not matter
    expected = logsumexp(logits, axis=1) - logits[np.arange(6), targets - 1]
    for padding in (0.0, 1e6):
        items[0] = padding
        loss = np.asarray(full_softmax_loss(users, items, targets, temperature=0.3))
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
    left_out = rng.random((6, 9)) < 0.5
    left_out[:3, targets[:3] - 1] = True  # a target that is left out has its part all the same
    others = left_out & (np.arange(1, 10) != targets[:, None])
    expected = logsumexp(np.where(others, -np.inf, logits), axis=1)
    expected -= logits[np.arange(6), targets - 1]
    loss = full_softmax_loss(users, items, targets, temperature=0.3, left_out=left_out)
    np.testing.assert_allclose(np.asarray(loss), expected, rtol=1e-6)


@pytest.mark.parametrize("share_left_out", [None, 0.5, 1.0])
def test_equals_full_softmax_when_all_items_are_sampled_once(share_left_out):
    rng = np.random.default_rng(1)
    users, items = rng.normal(size=(7, 5)), rng.normal(size=(13, 5))
    targets = np.array([1, 12, 4, 4, 2, 7, 9])
    ids = rng.permutation(np.arange(1, 13))
    weights = rng.uniform(0.5, 2, size=7)  # so that every row has its own gradient
    left_out = None if share_left_out is None else rng.random((7, 13)) < share_left_out

    def full(users, items):
        mask = None if left_out is None else left_out[:, 1:]
        loss = full_softmax_loss(users, items, targets, 0.2, mask)
        return ops.sum(ops.convert_to_tensor(weights, loss.dtype) * loss)

    def sampled(users, items, log_expected_count):
        target_vectors = ops.take(items, targets, axis=0)
        sampled_vectors = ops.take(items, ids, axis=0)
        return ops.sum(
            ops.convert_to_tensor(weights, users.dtype)
            * sampled_softmax_loss(
                users,
                target_vectors,
                sampled_vectors,
                targets,
                ids,
                log_expected_count,
                0.2,
                None if left_out is None else left_out[:, ids],
            )
        )

    value, gradients = value_and_gradients(full, users, items)
    for correction in (None, np.zeros(12)):
        other, others = value_and_gradients(
            lambda users, items, c=correction: sampled(users, items, c), users, items
        )
        np.testing.assert_allclose(
            other, value, rtol=max(ROUNDING, 1e-6), atol=ROUNDING
        )  # a loss may be 0
        for a, b in zip(others, gradients, strict=True):
            np.testing.assert_allclose(a, b, atol=max(ROUNDING, 1e-6) * max(1, np.abs(b).max()))


def hand_worked(log_expected_count, scale=1.0, temperature=1.0, shift=0.0):
    """exp(logit): target 3; sampled 2 and 1, and the target itself once more."""
    return sampled_softmax_loss(
        np.array([[scale]]),
        np.log([[3.0]]) + shift,
        np.log([[2.0], [3.0], [1.0]]) + shift,
        targets=np.array([6]),
        sampled_ids=np.array([5, 6, 7]),
        log_expected_count=log_expected_count,
        temperature=temperature,
    )


def test_hand_worked_loss():
    # Expected counts 1/2 and 4: the negatives weigh 2 / (1/2) = 4 and 1 / 4; the hit is left out
    # and the target is not corrected, so Z_hat = 3 + 4 + 1/4. With the sign of log-Q flipped it
    # would be 3 + 1 + 4 = 8, without the mask 7.25 + 3 / 9, with a corrected target not 3.
    expected_counts = np.log([0.5, 9.0, 4.0])
    np.testing.assert_allclose(hand_worked(expected_counts), [np.log(7.25 / 3)], rtol=1e-6)
    np.testing.assert_allclose(hand_worked(None), [np.log((3 + 2 + 1) / 3)], rtol=1e-6)
    # The temperature divides dot products, not the correction.
    np.testing.assert_allclose(
        hand_worked(expected_counts, scale=0.25, temperature=0.25),
        [np.log(7.25 / 3)],
        rtol=1e-6,
    )

    # Only differences of logits matter, the mask included: one at -30 would beat all of these.
    for shift in (-1000, 1000):
        shifted = hand_worked(expected_counts, shift=shift)
        np.testing.assert_allclose(shifted, [np.log(7.25 / 3)], rtol=5e-4)


def test_an_accidental_hit_contributes_exactly_nothing():
    rng = np.random.default_rng(2)
    users, target_vectors = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    targets = np.array([8, 8, 8])
    sampled_vectors, ids = rng.normal(size=(5, 4)), np.array([3, 8, 5, 8, 2])
    expected_counts = rng.normal(size=5)
    hits = ids == 8

    def loss(vectors, counts, keep=slice(None)):
        return value_and_gradients(
            lambda u, t, s: ops.sum(sampled_softmax_loss(u, t, s, targets, ids[keep], counts, 0.1)),
            users,
            target_vectors,
            vectors,
        )

    value, (user_gradient, target_gradient, sampled_gradient) = loss(
        sampled_vectors, expected_counts
    )
    assert np.all(sampled_gradient[hits] == 0)  # not small: zero
    assert np.all(sampled_gradient[~hits] != 0)
    # Whatever vector and whatever correction the hit comes with, not one bit changes.
    for scale, count in ((1e4, -50.0), (-3.0, 50.0), (0.0, -np.inf)):
        changed, counts = sampled_vectors.copy(), expected_counts.copy()
        changed[hits] *= scale
        counts[hits] = count
        other, (a, b, c) = loss(changed, counts)
        assert other == value
        assert np.array_equal(a, user_gradient) and np.array_equal(b, target_gradient)
        assert np.array_equal(c[~hits], sampled_gradient[~hits]) and np.all(c[hits] == 0)
    # And it equals the loss of the sample that never had it.
    without, (a, b, c) = loss(sampled_vectors[~hits], expected_counts[~hits], ~hits)
    np.testing.assert_allclose(without, value, rtol=1e-6)
    np.testing.assert_allclose(a, user_gradient, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(c, sampled_gradient[~hits], rtol=1e-5, atol=1e-6)


def test_a_hit_of_one_row_is_a_negative_of_another():
    one = np.ones((2, 1))
    loss = sampled_softmax_loss(one, 0 * one, np.log([[4.0]]), np.array([1, 2]), np.array([1]))
    np.testing.assert_allclose(loss, [0, np.log(5)], atol=1e-7)


def log_sum_by_hand(own, logits, part):
    """-log of the share of `own` [b] beside those `logits` [b, s] that have a part."""
    return logsumexp(np.c_[own, np.where(part, logits, -np.inf)], axis=1) - own


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("leave_out", [False, True])
def test_losses_of_each_precision_and_of_rows_without_a_target_by_numpy(dtype, leave_out):
    if dtype == "float64" and keras.backend.backend() != "tensorflow":
        pytest.skip("JAX, and some operations on PyTorch, have float32 only")
    rng = np.random.default_rng(0)
    users, items = (
        ops.convert_to_tensor(rng.normal(size=shape), dtype) for shape in ((6, 32), (10, 32))
    )
    # What numpy computes with is what the loss is given: numbers already rounded.
    u, v = (ops.convert_to_numpy(ops.cast(x, "float64")) for x in (users, items))
    targets = np.array([1, 9, 0, 4, 0, 7])
    left_out = rng.random((6, 10)) < 0.4 if leave_out else np.zeros((6, 10), bool)
    own = (u * v[targets]).sum(axis=1) / 0.5
    at_least = "float64" if dtype == "float64" else "float32"
    real, tolerance = targets > 0, 1e-10 if dtype == "float64" else 1e-5

    part = ~left_out & (np.arange(10) > 0) & (np.arange(10) != targets[:, None])
    expected = np.where(real, log_sum_by_hand(own, u @ v.T / 0.5, part), 0)
    loss = full_softmax_loss(
        users, items, targets, 0.5, left_out=left_out[:, 1:] if leave_out else None
    )
    assert keras.backend.standardize_dtype(loss.dtype) == at_least
    np.testing.assert_allclose(loss, expected, rtol=tolerance, atol=tolerance)

    ids = np.array([3, 0, 9, 9, 4, 0, 2])  # a padded id is no negative of anybody
    counts = rng.normal(size=7).astype("float32")
    part = ~left_out[:, ids] & (ids > 0) & (ids != targets[:, None])
    for correction in (None, counts):
        logits = u @ v[ids].T / 0.5 - (0 if correction is None else correction)
        expected = np.where(real, log_sum_by_hand(own, logits, part), 0)
        loss = sampled_softmax_loss(
            users,
            ops.take(items, targets, axis=0),
            ops.take(items, ids, axis=0),
            targets,
            ids,
            correction,
            0.5,
            left_out[:, ids] if leave_out else None,
        )
        assert keras.backend.standardize_dtype(loss.dtype) == at_least
        np.testing.assert_allclose(loss, expected, rtol=tolerance, atol=tolerance)


# --------------------------------------------------- expectations, by enumerating every sample


@pytest.mark.parametrize("num_sampled", [1, 2, 4])
def test_estimated_partition_function_is_exactly_unbiased(num_sampled):
    draws, probability = every_draw(Q, num_sampled)
    partition = np.exp(LOGITS).sum()

    def expectation(log_expected_count):
        losses, _ = per_draw(draws, log_expected_count)
        return probability @ np.exp(losses + LOGITS[TARGET - 1])  # loss = log Z_hat - o_t

    log_expected_count = np.log(num_sampled * Q)
    np.testing.assert_allclose(expectation(log_expected_count), partition, rtol=1e-5)
    for wrong in (None, -log_expected_count, np.log((num_sampled + 1) * Q)):
        assert abs(expectation(wrong) / partition - 1) > 0.05


def test_in_batch_estimate_is_exactly_unbiased():
    # The row's own target is given, those of the b - 1 other rows are the draws. S = b instead of
    # b - 1 would be off by a quarter here.
    sampler = InBatchSampler(np.concatenate([[0], 100 * Q]))
    others, probability = every_draw(Q, 3)
    draws = np.concatenate([np.full((len(others), 1), TARGET), others], axis=1).astype("int32")
    for batch in draws[:3]:  # the sampler's own numbers
        ids, log_expected_count = sampler.sample(generator(), targets=batch)
        assert np.array_equal(ids, batch)
        np.testing.assert_allclose(log_expected_count, np.log(3 * Q[batch - 1]), rtol=1e-5)
    losses, _ = per_draw(draws, np.log(3 * Q))
    np.testing.assert_allclose(
        probability @ np.exp(losses + LOGITS[TARGET - 1]),
        np.exp(LOGITS).sum(),
        rtol=1e-5,
    )


def test_gradient_is_unbiased_if_q_follows_the_softmax_of_the_negatives():
    # With q_j = exp(o_j) / (Z - exp(o_t)) each of the S negatives adds (Z - exp(o_t)) / S to
    # Z_hat: every single sample has the exact loss, and the mean gradient is the exact gradient.
    q = proposal_for_negatives()
    draws, probability = every_draw(q, 3)
    with np.errstate(divide="ignore"):
        log_expected_count = np.log(3 * q)
    losses, gradients = per_draw(draws, log_expected_count)
    exact = logsumexp(LOGITS) - LOGITS[TARGET - 1]
    np.testing.assert_allclose(losses, exact, rtol=1e-5)
    np.testing.assert_allclose(probability @ gradients, exact_gradient(), atol=1e-6)
    for wrong in (None, -log_expected_count):
        _, gradients = per_draw(draws, wrong)
        assert np.abs(probability @ gradients - exact_gradient()).max() > 0.02


@pytest.mark.parametrize("num_sampled", [2, 4])
def test_gradient_with_q_the_whole_softmax_has_the_bias_that_theory_says(num_sampled):
    # If the target can be drawn as well (q_j = p_j), H of the S draws are hits, H binomial with
    # probability p_t, and Z_hat = Z (p_t + 1 - H/S). Given H, item j is drawn (S - H) p_j/(1 - p_t)
    # times on average, so the expected gradient of o_j is
    #     p_j / (1 - p_t) * E[(1 - H/S) / (p_t + 1 - H/S)],
    # p_j only up to order 1/S: masking hits keeps Z_hat unbiased, not its logarithm.
    p = softmax(LOGITS)
    p_target = p[TARGET - 1]
    draws, probability = every_draw(p, num_sampled)
    _, gradients = per_draw(draws, np.log(num_sampled * p))
    misses = 1 - np.arange(num_sampled + 1) / num_sampled
    share = stats.binom.pmf(np.arange(num_sampled + 1), num_sampled, p_target)
    expected = p / (1 - p_target) * (share @ (misses / (p_target + misses)))
    expected[TARGET - 1] = -(expected.sum() - expected[TARGET - 1])  # logits only matter relatively
    np.testing.assert_allclose(probability @ gradients, expected, atol=1e-6)
    assert np.abs(expected - exact_gradient()).max() > 0.01  # a bias that can be seen


# --------------------------------------------------------- the same with the samplers' own draws


def many_draws(make, num_draws, num_sampled):
    """Draws `[D, S]` of what `make(S)` makes, in one call, and log(S q) of every item `[n]`."""
    sampler = make(num_draws * num_sampled)
    ids, log_expected_count = map(np.asarray, sampler.sample(generator(3)))
    log_q = sampler.log_q[1:].astype("float64")
    expected = log_q[ids - 1] + np.log(num_draws * num_sampled)
    np.testing.assert_allclose(log_expected_count, expected, rtol=1e-4, atol=1e-5)
    return ids.reshape(num_draws, num_sampled), log_q + np.log(num_sampled)


def z_scores(samples, expected):
    """How many standard errors the mean over axis 0 is from what it should be."""
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    return (samples.mean(axis=0) - expected) / error


CATALOGUE = 40
BIG_COUNTS = np.concatenate([[0], np.random.default_rng(5).permutation(CATALOGUE) ** 2 + 1])
BIG_LOGITS = np.random.default_rng(6).normal(size=CATALOGUE)


@pytest.mark.parametrize(
    "make",
    [partial(UniformSampler, CATALOGUE), partial(PopularitySampler, BIG_COUNTS)],
    ids=["uniform", "popularity"],
)
def test_partition_function_is_unbiased_over_many_draws(make):
    draws, log_expected = many_draws(make, 5000, 16)
    partition = np.exp(BIG_LOGITS).sum()

    def estimates(correction):
        losses, _ = per_draw(draws, correction, BIG_LOGITS)
        return np.exp(losses + BIG_LOGITS[TARGET - 1])

    assert abs(z_scores(estimates(log_expected), partition)) < 4
    assert abs(z_scores(estimates(None), partition)) > 50
    assert abs(z_scores(estimates(-log_expected), partition)) > 50


def test_gradient_is_unbiased_over_many_draws_where_theory_says_so():
    q = proposal_for_negatives(BIG_LOGITS)
    make = partial(PopularitySampler, np.concatenate([[0], q]), alpha=1.0)
    draws, log_expected = many_draws(make, 5000, 16)
    exact = exact_gradient(BIG_LOGITS)
    negatives = np.arange(1, CATALOGUE + 1) != TARGET  # the target's own gradient does not vary
    _, gradients = per_draw(draws, log_expected, BIG_LOGITS)
    z = z_scores(gradients[:, negatives], exact[negatives])
    assert np.abs(z).max() < 4.5  # of 39
    assert 0.6 < z.std() < 1.5  # and spread as standard errors should be
    for wrong in (None, -log_expected):
        _, gradients = per_draw(draws, wrong, BIG_LOGITS)
        assert np.abs(z_scores(gradients[:, negatives], exact[negatives])).max() > 20


def test_only_the_corrected_gradient_approaches_the_exact_one():
    def bias(num_sampled, sign):
        make = partial(PopularitySampler, BIG_COUNTS)
        draws, log_expected = many_draws(make, 250_000 // num_sampled, num_sampled)
        correction = None if sign == 0 else sign * log_expected
        _, gradients = per_draw(draws, correction, BIG_LOGITS)
        return np.abs(gradients.mean(axis=0) - exact_gradient(BIG_LOGITS)).sum()

    corrected = [bias(num_sampled, 1) for num_sampled in (4, 32, 256)]
    assert corrected[1] < corrected[0] / 3 and corrected[2] < corrected[1] / 3
    for sign in (0, -1):
        assert bias(256, sign) > 10 * corrected[2]


# -------------------------------------------------------------------------------- the samplers

MAKERS = [
    partial(UniformSampler, 6),
    partial(PopularitySampler, COUNTS),
    partial(PopularitySampler, COUNTS, alpha=0.0),
]
EACH_SAMPLER = pytest.mark.parametrize("make", MAKERS, ids=["uniform", "popularity", "alpha 0"])


@EACH_SAMPLER
def test_frequencies_match_log_q(make):
    sampler = make(50_000)
    ids, log_expected_count = sampler.sample(generator(4))
    ids = np.asarray(ids)
    seen = np.bincount(ids, minlength=7)
    assert sampler.log_q.dtype == np.float32
    q = np.exp(sampler.log_q.astype("float64"))
    np.testing.assert_allclose(q.sum(), 1, rtol=1e-6)
    assert np.array_equal(seen > 0, q > 0) and seen[0] == 0
    assert stats.chisquare(seen[q > 0], 50_000 * q[q > 0] / q.sum()).pvalue > 1e-3
    np.testing.assert_allclose(np.exp(log_expected_count), 50_000 * q[ids], rtol=1e-4)
    assert keras.backend.standardize_dtype(log_expected_count.dtype) == "float32"


def test_log_q_by_hand():
    np.testing.assert_allclose(np.exp(UniformSampler(4, 1).log_q), [0, 0.25, 0.25, 0.25, 0.25])
    # 1, 16, 81 to the power 3/4, the default, are 1, 8, 27
    popularity = PopularitySampler([0, 1, 0, 81, 16], 1)
    np.testing.assert_allclose(np.exp(popularity.log_q), np.array([0, 1, 0, 27, 8]) / 36, rtol=1e-6)
    flat = PopularitySampler([0, 1, 0, 81, 16], 1, alpha=0)
    np.testing.assert_allclose(np.exp(flat.log_q), np.array([0, 1, 0, 1, 1]) / 3, rtol=1e-6)
    np.testing.assert_allclose(np.exp(InBatchSampler([0, 3, 1]).log_q), [0, 0.75, 0.25], rtol=1e-6)


def test_rare_items_of_a_large_catalogue_keep_their_probability():
    counts = np.concatenate([[0], np.random.default_rng(0).zipf(1.3, 200_000).clip(max=10**9)])
    counts[1 + np.arange(0, 200_000, 7)] = 0
    sampler = PopularitySampler(counts, 1, alpha=1.0)
    drawn = sampler._keep.astype("float64")
    np.add.at(drawn, sampler._alias, 1 - sampler._keep.astype("float64"))
    q = counts[1:] / counts.sum()
    assert np.all(drawn[q == 0] == 0)
    rare = (q > 0) & (q < 1e-8)
    assert rare.sum() > 10_000  # float32 cannot tell these from 0 next to a cumulative sum of 1
    np.testing.assert_allclose(drawn[rare] / 200_000, q[rare], rtol=1e-3)


@EACH_SAMPLER
def test_the_seed_decides_the_draws(make):
    sampler, first, second, other = make(100), generator(7), generator(7), generator(8)
    a, b, c = (np.asarray(sampler.sample(g)[0]) for g in (first, second, other))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert not np.array_equal(a, sampler.sample(first)[0])  # the next step draws anew
    assert a.dtype == np.int32 and a.shape == (100,)


@EACH_SAMPLER
def test_what_one_step_draws_says_nothing_of_the_next(make):
    sampler, seeds = make(20_000), generator(7)
    first, second = (np.asarray(sampler.sample(seeds)[0]) for _ in range(2))
    together = np.zeros((7, 7))
    np.add.at(together, (first, second), 1)
    together = together[together.any(axis=1)][:, together.any(axis=0)]
    assert stats.chi2_contingency(together).pvalue > 1e-3


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tests tf.function")
def test_a_compiled_step_draws_anew_each_time():
    import tensorflow as tf

    sampler, seeds = PopularitySampler(COUNTS, 100), generator(9)
    step = tf.function(lambda: sampler.sample(seeds)[0])
    first, second = step().numpy(), step().numpy()
    assert not np.array_equal(first, second)
    fresh = generator(9)
    assert np.array_equal(first, sampler.sample(fresh)[0])

    in_batch = InBatchSampler(COUNTS)
    signature = [tf.TensorSpec([None], tf.int32)]  # the last batch of an epoch is smaller
    step = tf.function(lambda t: in_batch.sample(seeds, t), input_signature=signature)
    for targets in ([1, 4, 4], [5, 4], [0, 5, 1, 0]):
        ids, log_expected_count = map(np.asarray, step(np.array(targets, "int32")))
        assert np.array_equal(ids, targets)
        # Without a target a row gives the others none either: log 0, never drawn.
        draws = np.count_nonzero(targets) - 1
        q = np.array(COUNTS)[targets] / sum(COUNTS)
        np.testing.assert_allclose(np.exp(log_expected_count), draws * q, rtol=1e-5)


def test_configuration_round_trip():
    for sampler in (*(make(50) for make in MAKERS), InBatchSampler(COUNTS)):
        saved = json.loads(json.dumps(keras.saving.serialize_keras_object(sampler)))
        again = keras.saving.deserialize_keras_object(saved)
        assert type(again) is type(sampler)
        assert (again.num_items, again.num_sampled) == (6, sampler.num_sampled)
        assert np.array_equal(again.log_q, sampler.log_q)
        targets = np.array([1, 4, 5])
        drawn = [np.asarray(s.sample(generator(2), targets)[0]) for s in (sampler, again)]
        assert np.array_equal(*drawn)


def test_items_without_training_count_have_a_defined_behaviour():
    for sampler in (PopularitySampler(COUNTS, 1), InBatchSampler(COUNTS)):
        assert not np.isnan(sampler.log_q).any() and sampler.log_q[2] == -np.inf
    # Item 2 turns up in a batch all the same (validation data, say). It has no defined weight, so
    # it is left out as a negative; as a target it is as good as any other.
    targets, vectors = np.array([2, 4, 5]), np.random.default_rng(0).normal(size=(3, 4))
    ids, log_expected_count = InBatchSampler(COUNTS).sample(generator(), targets)

    def loss(users, items):
        return ops.sum(
            sampled_softmax_loss(
                users,
                items,
                items,
                targets,
                ids,
                ops.cast(log_expected_count, "float64"),
            )
        )

    value, gradients = value_and_gradients(loss, vectors[::-1].copy(), vectors)
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)

    users = vectors[::-1]
    weights = np.exp(users @ vectors.T) / (2 * np.array([1, 40, 12]) / 63)  # 1: any number
    weights[:, 0] = 0
    weights[np.arange(3), np.arange(3)] = np.exp((users * vectors).sum(axis=1))
    np.testing.assert_allclose(
        value, np.log(weights.sum(axis=1) / np.diag(weights)).sum(), rtol=1e-5
    )


def test_a_batch_of_one_has_no_negatives():
    ids, log_expected_count = InBatchSampler(COUNTS).sample(generator(), np.array([4]))
    one = np.ones((1, 3), "float32")
    loss = sampled_softmax_loss(one, one, one, np.array([4]), ids, log_expected_count)
    assert np.asarray(loss) == 0


# ---------------------------------------------------------------------------------- the errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PopularitySampler([[0, 1]], 1), r"\[num_items \+ 1\].*\(1, 2\)"),
        (lambda: PopularitySampler([0], 1), r"Received shape \(1,\)"),
        (lambda: PopularitySampler([0, -1, 2], 1), "from -1.0 to 2.0"),
        (lambda: InBatchSampler([0, np.nan]), "finite"),
        (lambda: InBatchSampler([0, np.inf]), "finite"),
        (lambda: InBatchSampler([0, 0, 0]), "not all zero"),
        (lambda: InBatchSampler([3, 1, 2]), "Entry 0 belongs to padding.*received 3"),
        (lambda: InBatchSampler([0, 1]).sample(generator()), "batch's own targets. Received none"),
        (lambda: UniformSampler(0, 3), "UniformSampler: expected num_items.*positive.*Received 0"),
        (lambda: UniformSampler(None, 3), "expected num_items.*Received None"),
        (lambda: UniformSampler(3, 0), "expected num_sampled to be a positive.*Received 0"),
        (lambda: UniformSampler(3, 2.0), "expected num_sampled.*Received 2.0"),
        (lambda: UniformSampler(3, True), "expected num_sampled.*Received True"),
        (lambda: PopularitySampler([0, 1], -1), "PopularitySampler: expected num_sampled.*-1"),
        (lambda: PopularitySampler([0, 1], None), "expected num_sampled.*Received None"),
        (lambda: UniformSampler(3, None), "expected num_sampled.*Received None"),
        (lambda: MixedSampler([0, 1], None), "expected num_sampled.*Received None"),
        (lambda: PopularitySampler([0, 1, 3], 1, np.nan), "is finite. Received nan"),
        (lambda: PopularitySampler([0, 1, 3], 1, np.inf), "is finite. Received inf"),
    ],
)
def test_samplers_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_sampler_that_cannot_draw_says_so():
    class Half(Sampler):
        pass

    with pytest.raises(NotImplementedError, match="Half has no sample"):
        Half(3, 2).sample(generator())
    assert UniformSampler(np.int64(3), np.int64(2)).get_config() == {
        "num_items": 3,
        "num_sampled": 2,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_vectors": np.ones(4)}, r"user_vectors of shape \(4,\)"),
        ({"sampled_vectors": np.ones((5, 3))}, r"sampled_vectors of shape \(5, 3\)"),
        ({"target_vectors": np.ones((3, 4))}, "target_vectors.*length 2"),
        ({"targets": np.ones(3)}, r"targets.*length 2.*\(3,\)"),
        ({"sampled_ids": np.ones(4)}, r"sampled_ids.*length 5.*\(4,\)"),
        ({"log_expected_count": np.ones(2)}, r"log_expected_count.*length 5.*\(2,\)"),
        ({"temperature": 0.0}, "temperature > 0. Received 0.0"),
        ({"left_out": np.ones((2, 4), bool)}, r"left_out of shape \(2, 5\).*\(2, 4\)"),
        ({"left_out": np.ones(5, bool)}, r"left_out of shape \(2, 5\).*\(5,\)"),
        ({"left_out": np.ones(2, bool)}, r"left_out of shape \(2, 5\).*\(2,\)"),
    ],
)
def test_sampled_softmax_says_what_is_wrong(changes, message):
    arguments = {
        "user_vectors": np.ones((2, 4)),
        "target_vectors": np.ones((2, 4)),
        "sampled_vectors": np.ones((5, 4)),
        "targets": np.array([1, 2]),
        "sampled_ids": np.arange(5),
        "log_expected_count": np.zeros(5),
    }
    sampled_softmax_loss(**arguments)
    with pytest.raises(ValueError, match=message):
        sampled_softmax_loss(**(arguments | changes))


def test_full_softmax_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"item_vectors of shape \(9, 5\)"):
        full_softmax_loss(np.ones((2, 4)), np.ones((9, 5)), np.array([1, 2]))
    users, items = np.ones((2, 4)), np.ones((9, 4))
    with pytest.raises(ValueError, match="temperature > 0"):
        full_softmax_loss(users, items, np.array([1, 2]), temperature=-1)
    with pytest.raises(ValueError, match=r"targets.*length 2.*\(3,\)"):
        full_softmax_loss(users, items, np.array([1, 2, 3]))
    with pytest.raises(ValueError, match=r"left_out of shape \(2, 8\).*\(2, 9\)"):
        full_softmax_loss(users, items, np.array([1, 2]), left_out=np.ones((2, 9), bool))


@pytest.mark.parametrize("largest", [14, 7])  # an id that nobody watched, or not the largest
@pytest.mark.parametrize("positions", [1, 3, 6])
def test_seen_before_is_what_a_search_through_each_history_finds(positions, largest):
    rng = np.random.default_rng(0)
    history = rng.integers(1, 12, (40, 8))  # watched again and again
    for row, padding in zip(history, rng.integers(0, 9, 40), strict=True):
        row[:padding] = 0
    ids = rng.integers(
        0, largest + 1, 20
    )  # repeated, the padding and items nobody watched among them
    found = np.asarray(seen_before(history.astype("int32"), ids.astype("int32"), positions))
    assert found.shape == (40, positions, 20) and found.any() and not found.all()
    for t in range(positions):
        watched = history[:, : 8 - (positions - 1 - t)]
        expected = [[i != 0 and i in row for i in ids] for row in watched]
        np.testing.assert_array_equal(found[:, t], expected)
