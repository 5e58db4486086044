"""Examples worked out by hand from a few short sequences."""

import numpy as np
import pandas as pd
import pytest

from recsys_helpers.datasets import Dataset
from recsys_helpers.samples import (
    item_features,
    next_item_samples,
    sequence_samples,
    serving_inputs,
    user_features,
    vocabulary_sizes,
)
from recsys_helpers.splits import LeakageError, Split, leave_last_out

DAY = 86_400
# What each user watched, in order; the last is the test target, the one before it validation.
SEQUENCES = {1: [3, 1, 4, 2, 5], 2: [2, 5, 1], 3: [5, 4, 3, 1]}


def make_dataset(timestamps=True, demographics=True):
    rows = [
        (user, item, position, DAY * (10 * user + position))
        for user, sequence in SEQUENCES.items()
        for position, item in enumerate(sequence)
    ]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "position", "timestamp"])
    interactions = interactions.astype({"user_id": "int32", "item_id": "int32"})
    if not timestamps:
        interactions = interactions.drop(columns="timestamp")
    users = pd.DataFrame({"original_id": [1, 2, 3]}, index=pd.Index([1, 2, 3], name="user_id"))
    if demographics:
        users = users.assign(gender=["M", "F", None], age=[17, 18, 60], occupation=["b", "a", "b"])
    items = pd.DataFrame(
        {
            "original_id": range(1, 6),
            "year": pd.array([1995, 1999, None, 1984, 2000], dtype="Int64"),
            "genres": [("Drama",), ("Comedy", "Drama"), (), ("War",), ("Comedy",)],
        },
        index=pd.Index(range(1, 6), name="item_id"),
    )
    return Dataset("by hand", interactions, users, items)


def make_split(**kwargs):
    return leave_last_out(make_dataset(**kwargs), min_item_interactions=1)


def test_every_training_interaction_after_the_first_is_a_target():
    samples = next_item_samples(make_split(), history_length=3)
    # User 1 trains on 3, 1, 4; user 2 on 2 alone, so nothing precedes it; user 3 on 5, 4.
    np.testing.assert_array_equal(samples.targets, [1, 4, 4])
    np.testing.assert_array_equal(samples.inputs["user_id"], [1, 1, 3])
    np.testing.assert_array_equal(samples.inputs["history"], [[0, 0, 3], [0, 3, 1], [0, 0, 5]])
    assert len(samples) == 3


def test_a_long_history_keeps_its_end():
    samples = next_item_samples(make_split(), history_length=1)
    np.testing.assert_array_equal(samples.inputs["history"], [[3], [1], [5]])


def test_held_out_histories_hold_what_came_later_too():
    samples = next_item_samples(make_split(), history_length=4, context="held_out")
    np.testing.assert_array_equal(samples.targets, [3, 1, 4, 5, 4])
    expected = [[0, 0, 1, 4], [0, 0, 3, 4], [0, 0, 3, 1], [0, 0, 0, 4], [0, 0, 0, 5]]
    np.testing.assert_array_equal(samples.inputs["history"], expected)


def test_example_age_is_days_before_the_end_of_training():
    samples = next_item_samples(make_split())
    # Training ends with user 3's second movie, on day 31; the targets are of days 11, 12 and 31.
    np.testing.assert_allclose(samples.inputs["example_age"], [20, 19, 0])


def test_without_timestamps_all_ages_are_zero():
    assert not next_item_samples(make_split(timestamps=False)).inputs["example_age"].any()


@pytest.mark.parametrize(
    "target, histories",
    [
        ("validation", [[0, 3, 1, 4], [0, 0, 0, 2], [0, 0, 5, 4]]),
        ("test", [[3, 1, 4, 2], [0, 0, 2, 5], [0, 5, 4, 3]]),
    ],
)
def test_serving_shows_everything_before_the_target_and_asks_for_now(target, histories):
    inputs = serving_inputs(make_split(), target, history_length=4)
    np.testing.assert_array_equal(inputs["user_id"], [1, 2, 3])
    np.testing.assert_array_equal(inputs["history"], histories)
    np.testing.assert_array_equal(inputs["example_age"], [0, 0, 0])


def test_search_tokens_are_the_genres_of_the_three_most_recent():
    split = make_split()
    tokens = serving_inputs(split, "test", history_length=4)["search"]
    names = {0: None, 1: "Comedy", 2: "Drama", 3: "War"}
    found = [[names[t] for t in row if t] for row in tokens.tolist()]
    assert found == [
        ["Drama", "War", "Comedy", "Drama"],
        ["Comedy", "Drama", "Comedy"],
        ["Comedy", "War"],
    ]


def test_at_most_so_many_examples_of_each_user():
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(50)[: rng.integers(5, 40)] + 1 for _ in range(30)]
    users = np.repeat(np.arange(1, 31), [len(s) for s in sequences])
    interactions = pd.DataFrame({"user_id": users, "item_id": np.concatenate(sequences)})
    interactions = interactions.astype("int32").assign(
        position=interactions.groupby("user_id").cumcount()
    )
    index = pd.Index(range(1, 31), name="user_id")
    items = pd.DataFrame({"original_id": range(50)}, index=pd.Index(range(1, 51), name="item_id"))
    dataset = Dataset("many", interactions, pd.DataFrame({"original_id": range(30)}, index), items)
    split = leave_last_out(dataset, min_item_interactions=1)
    everything, capped = next_item_samples(split), next_item_samples(split, max_per_user=6, seed=1)

    def pairs(samples):
        return set(zip(samples.inputs["user_id"].tolist(), samples.targets.tolist(), strict=True))

    available = np.bincount(everything.inputs["user_id"])
    np.testing.assert_array_equal(np.bincount(capped.inputs["user_id"]), np.minimum(available, 6))
    assert pairs(capped) < pairs(everything)
    assert len(pairs(capped)) == len(capped)
    assert pairs(capped) == pairs(next_item_samples(split, max_per_user=6, seed=1))
    assert pairs(capped) != pairs(next_item_samples(split, max_per_user=6, seed=2))


def test_demographics_become_codes_and_what_is_missing_is_zero():
    features = user_features(make_dataset())
    np.testing.assert_array_equal(features["gender"], [0, 2, 1, 0])
    np.testing.assert_array_equal(features["age"], [0, 1, 2, 7])  # MovieLens-1M's seven groups
    np.testing.assert_array_equal(features["occupation"], [0, 2, 1, 2])
    assert vocabulary_sizes(features) == {"gender": 3, "age": 8, "occupation": 3}
    unknown = user_features(make_dataset(demographics=False))
    assert all(not codes.any() and len(codes) == 4 for codes in unknown.values())


def test_years_and_ages_as_movielens_1m_codes_them_fall_into_the_same_groups():
    dataset = make_dataset()
    codes = [1, 25, 56]  # MovieLens-1M writes the lower bound of each group
    dataset = Dataset("1m", dataset.interactions, dataset.users.assign(age=codes), dataset.items)
    np.testing.assert_array_equal(user_features(dataset)["age"], [0, 1, 3, 7])


def test_item_features_have_a_row_for_padding():
    features = item_features(make_dataset())
    expected = [[0, 0], [2, 0], [1, 2], [0, 0], [3, 0], [1, 0]]
    np.testing.assert_array_equal(features["genres"], expected)
    # Five-year buckets counted from 1980: 1995 and 1999 share one, 2000 starts the next.
    np.testing.assert_array_equal(features["year"], [0, 4, 4, 0, 1, 5])


def test_a_leaked_target_is_refused():
    split = make_split()
    train = pd.concat([split.train, split.test]).sort_values(["user_id", "position"])
    leaky = Split(split.dataset, train, split.validation, split.test, split.name)
    with pytest.raises(LeakageError):
        next_item_samples(leaky)


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"context": "future"}, "context must be 'rollback' or 'held_out', received 'future'"),
        ({"history_length": 0}, "must be at least 1, received 0 and None"),
        ({"max_per_user": 0}, "must be at least 1, received 50 and 0"),
    ],
)
def test_bad_choices_are_named(choice, message):
    with pytest.raises(ValueError, match=message):
        next_item_samples(make_split(), **choice)


def test_sequences_hold_the_same_targets_several_to_a_row():
    samples = sequence_samples(make_split(), history_length=2, positions=2)
    # User 1 trains on 3, 1, 4 and user 3 on 5, 4; user 2 has nothing to predict.
    np.testing.assert_array_equal(samples.inputs["user_id"], [1, 3])
    np.testing.assert_array_equal(samples.targets, [[1, 4], [0, 4]])
    np.testing.assert_array_equal(samples.inputs["history"], [[0, 3, 1], [0, 0, 5]])
    np.testing.assert_allclose(samples.inputs["example_age"], [[20, 19], [0, 0]])


@pytest.mark.parametrize("history_length, positions", [(3, 1), (3, 5), (4, 7), (50, 32)])
def test_sequences_and_windows_ask_the_same_questions(history_length, positions):
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(50)[: rng.integers(3, 40)] + 1 for _ in range(20)]
    users = np.repeat(np.arange(1, 21), [len(s) for s in sequences])
    interactions = pd.DataFrame({"user_id": users, "item_id": np.concatenate(sequences)})
    interactions = interactions.astype("int32").assign(
        position=interactions.groupby("user_id").cumcount(),
        timestamp=np.sort(rng.integers(0, 100 * DAY, len(interactions))),
    )
    items = pd.DataFrame(
        {"original_id": range(50), "genres": [("A", "B")[: 1 + i % 2] for i in range(50)]},
        index=pd.Index(range(1, 51), name="item_id"),
    )
    people = pd.DataFrame({"original_id": range(20)}, pd.Index(range(1, 21), name="user_id"))
    split = leave_last_out(Dataset("d", interactions, people, items), min_item_interactions=1)
    rows = sequence_samples(split, history_length, positions)
    windows = next_item_samples(split, history_length)

    unrolled = []
    for i, targets in enumerate(rows.targets):
        for t in np.flatnonzero(targets):
            unrolled.append(
                {
                    "target": targets[t],
                    "user_id": rows.inputs["user_id"][i],
                    "history": rows.inputs["history"][i, t : t + history_length],
                    "example_age": rows.inputs["example_age"][i, t],
                    "search": rows.inputs["search"][i, t],
                }
            )
    assert len(unrolled) == len(windows)
    np.testing.assert_array_equal([u["target"] for u in unrolled], windows.targets)
    for name in ("user_id", "history", "example_age", "search"):
        np.testing.assert_array_equal([u[name] for u in unrolled], windows.inputs[name])
