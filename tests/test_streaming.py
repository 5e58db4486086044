"""Frequencies of a stream, by hand and by the truth of a stream that was made for it."""

import keras
import numpy as np
import pytest
from keras import ops
from test_two_tower import NUM_ITEMS, make, ring

from recsys_helpers.sampled_softmax import InBatchSampler
from recsys_helpers.streaming import MixedSampler, StreamingSampler

COUNTS = [0, 7, 0, 1, 40, 12, 3]  # padding, then six items; item 2 is never a target
numpy = ops.convert_to_numpy


def ids(*values):
    return np.array(values, "int32")


def feed(sampler, batches):
    """Update by every batch of one shape, compiled where that is quicker."""
    update = sampler.update
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        update = tf.function(update)
    for batch in batches.astype("int32"):
        update(ops.convert_to_tensor(batch))


def gaps(sampler, *items):
    return numpy(sampler.gap(ids(*items))).tolist()


# Algorithm 2


@pytest.mark.parametrize("each_target", [False, True])
@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
def test_an_item_that_comes_every_p_steps_has_a_gap_of_exactly_p(rate, each_target):
    sampler = StreamingSampler(20, rate=rate, bits=10, each_target=each_target)
    for step in range(1, 43):
        sampler.update(ids(7 if step % 3 == 0 else 0, 5 if step % 7 == 0 else 0, 2))
    assert gaps(sampler, 7, 5, 2, 11) == [3, 7, 1, 0]  # 11 never came
    assert int(sampler.step) == 42


def test_the_update_by_hand():
    sampler = StreamingSampler(9, rate=0.25, hashes=1, bits=8)
    expected = 2.0  # first seen at step 2
    for step in range(1, 12):
        sampler.update(ids(4 if step in (2, 3, 7, 11) else 1))
        if step in (3, 7, 11):
            gap = {3: 1, 7: 4, 11: 4}[step]
            expected = 0.75 * expected + 0.25 * gap
            assert gaps(sampler, 4) == [expected]
    assert expected == 0.75 * (0.75 * (0.75 * 2 + 0.25) + 1) + 1


def test_an_item_twice_in_a_batch_is_one_sight_or_two():
    seen, counted = (
        StreamingSampler(9, rate=0.5, bits=8, each_target=each_target)
        for each_target in (False, True)
    )
    for sampler in (seen, counted):
        for batch in (ids(3, 0, 0), ids(3, 3, 0), ids(0, 0, 0), ids(3, 3, 3)):
            sampler.update(batch)
    assert gaps(seen, 3) == [1.5]  # 1; then 1; then half of it and half of a gap of two steps
    # 1; three quarters of a gap of 1/2; seven eighths of a gap of 2/3.
    assert gaps(counted, 3) == pytest.approx([(1 / 4 + 3 / 8) / 8 + 7 / 8 * 2 / 3])


def test_padding_is_no_item_and_moves_the_clock():
    sampler = StreamingSampler(9, bits=8)
    sampler.update(ids(0, 0))
    assert not numpy(sampler.gaps).any() and not numpy(sampler.last_seen).any()
    assert int(sampler.step) == 1
    assert numpy(sampler.log_expected(ids(1, 2))).tolist() == [-np.inf, -np.inf]


def test_estimates_are_presence_or_expected_number():
    rng = np.random.default_rng(0)
    q = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
    seen, counted = (
        StreamingSampler(5, rate=0.01, bits=10, each_target=each_target)
        for each_target in (False, True)
    )
    stream = rng.choice(5, (1500, 8), p=q) + 1
    feed(seen, stream)
    feed(counted, stream)
    everyone = ids(1, 2, 3, 4, 5)
    presence, number = (np.exp(numpy(s.log_expected(everyone))) for s in (seen, counted))
    np.testing.assert_allclose(presence, 1 - (1 - q) ** 8, rtol=0.15)
    np.testing.assert_allclose(number, 8 * q, rtol=0.15)
    assert presence[0] < 1.01 and number[0] > 3.5  # what presence can't tell


def test_it_follows_a_stream_that_changes():
    sampler = StreamingSampler(5, rate=0.1, bits=10)
    for step in range(1, 101):
        sampler.update(ids(1 if step % (2 if step <= 40 else 20) == 0 else 2))
        if step in (40, 80):  # the old gap is forgotten by a factor of 0.9 a sight
            assert gaps(sampler, 1)[0] == pytest.approx({40: 2, 80: 20 - 18 * 0.9**2}[step])
    assert gaps(sampler, 1)[0] == pytest.approx(20 - 18 * 0.9**3)


# Algorithm 3


def test_collisions_shorten_gaps_and_more_hash_functions_repair_it():
    rng = np.random.default_rng(1)
    q = 1 / np.arange(1, 301)
    stream = rng.choice(300, (800, 32), p=q / q.sum()) + 1
    everyone = np.arange(1, 301, dtype="int32")
    found = {}
    for hashes, bits in ((1, 20), (1, 7), (4, 7)):
        sampler = StreamingSampler(300, rate=0.05, hashes=hashes, bits=bits)
        feed(sampler, stream)
        found[hashes, bits] = numpy(sampler.gap(everyone))
    alone = found[1, 20]
    shortened = {key: np.mean(value < 0.5 * alone) for key, value in found.items()}
    assert shortened[1, 7] > 0.4 and shortened[4, 7] < 0.5 * shortened[1, 7]
    assert np.mean(found[1, 7] > 1.5 * alone) < 0.02
    assert np.mean(found[4, 7] >= found[1, 7]) == 1  # a maximum of the first and of others


def test_buckets_are_spread_and_differ_between_hash_functions():
    sampler = StreamingSampler(5000, hashes=3, bits=12, seed=4)
    buckets = numpy(sampler.buckets(np.arange(1, 5001, dtype="int32")))
    for row, found in enumerate(buckets):
        assert found.min() >= row << 12 and found.max() < (row + 1) << 12
        # As many are in use as when balls are thrown: 1 - exp(-n / buckets) of them.
        assert len(np.unique(found)) == pytest.approx(4096 * (1 - np.exp(-5000 / 4096)), rel=0.05)
    assert (buckets[0] % 4096 == buckets[1] % 4096).mean() < 0.01


# As samplers


def test_as_a_sampler_it_counts_first_and_gives_the_others_expected_number():
    sampler = StreamingSampler(6, rate=0.5, bits=8, each_target=True)
    for _ in range(3):
        found, expected = sampler.sample(None, ids(1, 1, 4, 0))
    assert numpy(found).tolist() == [1, 1, 4, 0]
    # Two and one of three targets; of each row the two others.
    np.testing.assert_allclose(np.exp(numpy(expected)), [4 / 3, 4 / 3, 2 / 3, 0], rtol=1e-6)
    assert int(sampler.step) == 3
    with pytest.raises(ValueError, match="Received none"):
        sampler.sample(None)


def test_on_a_stream_that_holds_still_the_correction_is_that_of_counts():
    rng = np.random.default_rng(3)
    counts = np.array(COUNTS)
    sampler = StreamingSampler(6, rate=0.01, bits=10, each_target=True)
    known = InBatchSampler(COUNTS)
    feed(sampler, rng.choice(7, (1200, 16), p=counts / counts.sum()))
    batch = ids(1, 3, 4, 5, 6)
    _, expected = known.sample(None, batch)
    found = numpy(sampler.log_expected(batch)) - np.log(16)
    np.testing.assert_allclose(found, numpy(expected) - np.log(4), atol=0.2)


def test_training_moves_the_stream_on_and_a_file_keeps_it(tmp_path):
    inputs, targets = ring()
    sampler = StreamingSampler(NUM_ITEMS, bits=8)
    model = make("youtubednn", keras.optimizers.Adam(1e-2), sampler=sampler)
    loss = model.fit(inputs, targets, batch_size=64, epochs=3, verbose=0).history["loss"]
    steps = 3 * -(-len(targets) // 64)
    assert int(sampler.step) == steps and loss[-1] < loss[0] and np.isfinite(loss).all()
    assert not {id(v) for v in sampler.weights} & {id(v) for v in model.trainable_variables}
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.sampler.get_config() == sampler.get_config()
    for mine, theirs in zip(sampler.weights, again.sampler.weights, strict=True):
        np.testing.assert_array_equal(numpy(mine), numpy(theirs))
    sampler.update(ids(3, 4))  # which the loaded one knows nothing of
    assert int(again.sampler.step) == steps == int(sampler.step) - 1


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"rate": 1.5}, {"hashes": 0}, {"bits": 31}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="received rate="):
        StreamingSampler(9, **wrong)


# Mixed


def test_a_mixed_sample_is_the_batch_and_draws_with_one_correction_for_both():
    sampler = MixedSampler(COUNTS, 60)
    found, expected = sampler.sample(keras.random.SeedGenerator(1), ids(4, 5, 4, 0))
    found, expected = numpy(found), np.exp(numpy(expected))
    assert found[:4].tolist() == [4, 5, 4, 0] and found.shape == (64,)
    assert found[4:].min() >= 1 and 2 in found[4:]  # never a target, and yet a negative
    share = np.array(COUNTS) / sum(COUNTS)
    np.testing.assert_allclose(expected, 2 * share[found] + 60 / 6, rtol=1e-5)


def test_a_mixed_sample_estimates_the_partition_function_without_bias():
    """The sum over draws of weight / expected number has the sum of the weights for its mean."""
    rng, counts, weight = np.random.default_rng(2), np.array(COUNTS), np.arange(7.0) ** 2
    sampler, seeds, size = MixedSampler(COUNTS, 5), keras.random.SeedGenerator(1), 4
    estimates = []
    for _ in range(300):
        # The first target is the row's own: given, not drawn, and left out.
        batch = np.r_[4, rng.choice(7, size, p=counts / counts.sum())].astype("int32")
        found, expected = (numpy(a) for a in sampler.sample(seeds, batch))
        estimates.append((weight[found] / np.exp(expected))[1:].sum())
    error = np.std(estimates, ddof=1) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - weight.sum()) < 4 * error
    assert error < 0.03 * weight.sum()


def test_configuration_of_the_mixed_sampler():
    sampler = MixedSampler(COUNTS, 9)
    again = MixedSampler.from_config(sampler.get_config())
    assert again.get_config() == sampler.get_config() and again.num_items == 6
