"""The split of the book: what goes where, what is dropped, and that the leakage check fires."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import in_a_data_folder

from recsys_helpers.datasets import Dataset, load_dataset
from recsys_helpers.splits import (
    LeakageError,
    Split,
    check_no_leakage,
    check_order,
    five_core_items,
    leave_last_out,
    random_split,
)


def make_dataset(histories: dict[int, list[int]], name="made-up") -> Dataset:
    """A dataset of histories in time order; original ids are 100 times the ids."""
    rows = [(u, i, p) for u, items in histories.items() for p, i in enumerate(items)]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "position"], dtype=np.int32)
    ids = {}
    for key in ("user_id", "item_id"):
        index = pd.RangeIndex(1, table[key].max() + 1, name=key)
        ids[key] = pd.DataFrame({"original_id": 100 * index.to_numpy()}, index=index)
    return Dataset(name, table, ids["user_id"], ids["item_id"])


def random_dataset(seed, num_users=40, num_items=60) -> Dataset:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(12, 30, num_users)
    popularity = 1 / np.arange(1, num_items + 1)
    histories = {
        user: list(
            generator.choice(num_items, length, replace=False, p=popularity / popularity.sum()) + 1
        )
        for user, length in enumerate(lengths, start=1)
    }
    # Every item occurs, so that ids are contiguous; the last user has seen them all.
    histories[num_users] = list(generator.permutation(num_items) + 1)
    return make_dataset(histories)


def pairs(table) -> set:
    return set(zip(table["user_id"], table["item_id"], strict=True))


# Leave-last-out


def test_by_hand():
    split = leave_last_out(make_dataset({1: [3, 1, 2], 2: [1, 2, 3, 4]}), min_item_interactions=1)
    assert split.name == "leave-last-out"
    assert pairs(split.train) == {(1, 3), (2, 1), (2, 2)}
    assert list(split.targets("validation")) == [1, 3]
    assert list(split.targets("test")) == [2, 4]
    assert list(split.known("validation")["item_id"]) == [3, 1, 2]
    assert list(split.known("test")["item_id"]) == [3, 1, 1, 2, 3]  # in time order
    with pytest.raises(ValueError, match="received \"?'train"):
        split.known("train")
    with pytest.raises(ValueError, match="received \"?'train"):
        split.targets("train")


@pytest.mark.parametrize("make", [leave_last_out, lambda d: random_split(d, seed=3)])
def test_every_interaction_is_in_one_part(make):
    split = make(random_dataset(0))
    rows = split.dataset.interactions
    parts = [split.train, split.validation, split.test]
    together = pd.concat(parts).sort_index()
    pd.testing.assert_frame_equal(together, rows)
    for part in parts[1:]:
        assert list(part["user_id"]) == list(range(1, split.dataset.num_users + 1))
    pd.testing.assert_frame_equal(
        split.known("test"), rows[~rows.index.isin(split.test.index)], check_freq=False
    )


def test_nothing_in_training_comes_after_a_target():
    split = leave_last_out(random_dataset(1))
    last = split.train.groupby("user_id")["position"].max().to_numpy()
    validation, test = split.validation["position"].to_numpy(), split.test["position"].to_numpy()
    assert (last < validation).all() and (validation < test).all()
    assert (split.dataset.interactions.groupby("user_id")["position"].max() == test).all()


def test_random_split_lets_the_future_into_training():
    split = random_split(random_dataset(1), seed=1)
    last = split.train.groupby("user_id")["position"].max().to_numpy()
    assert (last > split.test["position"].to_numpy()).mean() > 0.5
    assert (split.validation["position"].to_numpy() > split.test["position"].to_numpy()).any()


def test_random_split_is_uniform_and_seeded():
    dataset = random_dataset(2)
    first, again, other = (random_split(dataset, seed=s) for s in (1, 1, 2))
    assert first.name == "random"
    assert list(first.targets("test")) == list(again.targets("test"))
    assert list(first.targets("test")) != list(other.targets("test"))
    # Every position of a history of five is drawn equally often, by validation and by test.
    histories = {user: [1, 2, 3, 4, 5] for user in range(1, 4001)}
    split = random_split(make_dataset(histories), seed=0)
    for target in ("validation", "test"):
        drawn = np.bincount(split.targets(target), minlength=6)[1:]
        assert np.abs(drawn - 800).max() < 5 * np.sqrt(4000 * 0.2 * 0.8)
    assert (split.targets("validation") != split.targets("test")).all()


# Five-core items


def test_rare_items_are_dropped_and_ids_stay_contiguous():
    # Items 2 and 4 occur twice, the others three times.
    dataset = make_dataset({1: [1, 2, 3, 5, 6], 2: [4, 1, 3, 5, 6], 3: [1, 4, 3, 2, 6, 5]})
    kept = five_core_items(dataset, minimum=3)
    assert list(kept.items["original_id"]) == [100, 300, 500, 600]
    assert list(kept.items.index) == [1, 2, 3, 4] and kept.items.index.name == "item_id"
    assert kept.num_users == 3 and kept.num_items == 4
    expected = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 4, 3]
    assert list(kept.interactions["item_id"]) == expected
    assert list(kept.interactions["position"]) == [0, 1, 2, 3] * 3
    assert kept.interactions["item_id"].dtype == kept.interactions["position"].dtype == np.int32
    assert list(kept.interactions.index) == list(range(12))
    # The original is untouched.
    assert len(dataset.interactions) == 16 and dataset.num_items == 6


def test_the_minimum_itself_is_enough():
    histories = {user: [1, 2, 3] + ([4] if user <= 4 else []) for user in range(1, 6)}
    assert five_core_items(make_dataset(histories)).num_items == 3
    histories[5] = [1, 2, 3, 4]
    dataset = make_dataset(histories)
    assert five_core_items(dataset) is dataset


def test_users_left_with_too_little_go_too_and_are_counted(capsys):
    # Without items 4 to 7 users 6 and 7 have too little; without them items 1 to 3 still occur
    # five times. Item 8 has five, until user 6 goes; then users 8 to 11 have too little as well.
    histories = {user: [1, 2, 3] for user in range(1, 6)}
    histories |= {6: [1, 4, 8, 5], 7: [6, 7, 1]} | {user: [1, 2, 8] for user in range(8, 12)}
    split = leave_last_out(make_dataset(histories))
    assert list(split.dataset.users["original_id"]) == [100, 200, 300, 400, 500]
    assert list(split.dataset.items["original_id"]) == [100, 200, 300]
    assert list(split.targets("test")) == [3] * 5
    assert capsys.readouterr().out == (
        "made-up: left out 6 users, 5 items, 19 interactions (users with fewer than 3 interactions "
        "and items with fewer than 5)\n"
    )
    random_split(make_dataset(histories), seed=0, verbose=False)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="made-up: nothing is left without users"):
        leave_last_out(make_dataset(histories), min_item_interactions=99)


@pytest.mark.parametrize(
    ("name", "users", "items", "interactions"),
    [("ml-100k", 943, 1349, 99_287), ("ml-1m-order", 6_040, 3_416, 999_611)],
)
def test_movielens(name, users, items, interactions):
    if name != "ml-100k" and not in_a_data_folder(name, "ml-1m"):
        pytest.skip(f"{name} is in none of the data folders")
    dataset = load_dataset(name, verbose=False)
    split = leave_last_out(dataset)
    assert split.dataset.num_users == users and split.dataset.num_items == items
    assert len(split.dataset.interactions) == interactions
    assert len(split.train) == interactions - 2 * users
    assert (np.bincount(split.dataset.interactions["item_id"])[1:] >= 5).all()
    if split.dataset.has_timestamps:
        latest = split.dataset.interactions.groupby("user_id")["timestamp"].max()
        assert (split.test["timestamp"].to_numpy() == latest.to_numpy()).all()
        known = split.known("test").groupby("user_id")["timestamp"].is_monotonic_increasing
        assert known.all()


# The leakage check


def check_pairs(split, table):
    check_no_leakage(split, table["user_id"].to_numpy(), table["item_id"].to_numpy())


@pytest.mark.parametrize("make", [leave_last_out, lambda d: random_split(d, seed=5)])
def test_training_passes_the_check(make):
    split = make(random_dataset(3))
    check_pairs(split, split.train)
    counts = np.bincount(split.train["item_id"], minlength=split.dataset.num_items + 1)
    check_no_leakage(split, counts=counts)
    check_no_leakage(split, counts=counts // 2)


@pytest.mark.parametrize("target", ["validation", "test"])
def test_one_leaked_pair_is_found(target):
    split = leave_last_out(random_dataset(4))
    for row in (0, 17, len(split.test) - 1):
        leaked = getattr(split, target).iloc[[row]]
        with pytest.raises(LeakageError, match=f"1 of {len(split.train) + 1} .* {target}") as error:
            check_pairs(split, pd.concat([split.train, leaked]))
        user, item = leaked["user_id"].iloc[0], leaked["item_id"].iloc[0]
        assert f"user {user} with item {item}" in str(error.value)


@pytest.mark.parametrize("target", ["validation", "test"])
def test_one_leaked_count_is_found(target):
    split = leave_last_out(random_dataset(5))
    counts = np.bincount(split.train["item_id"], minlength=split.dataset.num_items + 1)
    for item in split.targets(target)[[0, 11]]:
        leaked = counts.copy()
        leaked[item] += 1
        with pytest.raises(LeakageError, match=f"1 items .* such as item {item}:"):
            check_no_leakage(split, counts=leaked)


def test_counts_over_everything_are_found():
    split = leave_last_out(random_dataset(6))
    everything = np.bincount(split.dataset.interactions["item_id"])
    with pytest.raises(LeakageError, match="counted more often"):
        check_no_leakage(split, counts=everything)
    with pytest.raises(ValueError, match="one for padding"):
        check_no_leakage(split, counts=everything[1:])


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([1, 2], None, "give both or none"),
        (None, [1, 2], "give both or none"),
        ([1, 2], [1], r"one shape \[n\], received \(2,\) and \(1,\)"),
        ([[1], [2]], [[1], [2]], r"one shape \[n\], received \(2, 1\)"),
        ([1.5, 2], [1, 1], "user_ids must be integers, received float64"),
        ([1, 2], [1, 1.0], "item_ids must be integers, received float64"),
        ([1, 0], [1, 1], "user_ids must be 1 to 40, received 0 in row 1"),
        ([1, 41], [1, 1], "user_ids must be 1 to 40, received 41 in row 1"),
        ([1, 2], [-1, 1], "item_ids must be 1 to 60, received -1 in row 0"),
        ([1, 2], [1, 61], "item_ids must be 1 to 60, received 61 in row 1"),
    ],
)
def test_pairs_that_cannot_be_checked_are_refused(users, items, message):
    split = leave_last_out(random_dataset(8), min_item_interactions=1)
    with pytest.raises(ValueError, match=message):
        check_no_leakage(split, users, items)


# Where people come back


def dataset_with_repeats():
    """The first two users' targets are items they have had; the third's validation target is."""
    dataset = make_dataset({1: [1, 2, 3, 2, 1], 2: [3, 3, 3, 3], 3: [1, 2, 2, 3], 4: [1, 2, 3, 3]})
    return replace(dataset, repeats=True)


def test_everything_is_ranked_where_people_come_back():
    split = leave_last_out(dataset_with_repeats(), min_item_interactions=1)
    assert list(split.targets("validation")) == [2, 3, 2, 3]
    assert list(split.targets("test")) == [1, 3, 3, 3]
    assert len(split.known("validation")) == 9 and len(split.known("test")) == 13
    for target in ("validation", "test"):
        assert len(split.seen(target)) == 0
        assert list(split.seen(target)) == list(split.known(target))  # the same columns
    once = leave_last_out(random_dataset(9))
    for target in ("validation", "test"):
        pd.testing.assert_frame_equal(once.seen(target), once.known(target))
    with pytest.raises(ValueError, match="received 'train'"):
        split.seen("train")


def test_a_pair_that_occurs_in_training_is_no_leak():
    split = leave_last_out(dataset_with_repeats(), min_item_interactions=1)
    check_pairs(split, split.train)
    counts = np.bincount(split.train["item_id"], minlength=4)
    check_no_leakage(split, counts=counts)
    check_no_leakage(split, [1, 2, 3], [1, 3, 2])  # targets, that were also learnt
    with pytest.raises(LeakageError, match="1 of 2 .* test inter.* user 3 with item 3"):
        check_no_leakage(split, [1, 3], [1, 3])
    # That user 4's test item is the validation item too does not make it known.
    with pytest.raises(LeakageError, match="user 4 with item 3"):
        check_no_leakage(split, [4], [3])
    with pytest.raises(LeakageError, match="counted more often"):
        check_no_leakage(split, counts=np.bincount(split.known("test")["item_id"]))
    # A training table that holds everything vouches for nothing.
    with pytest.raises(LeakageError):
        check_pairs(replace(split, train=split.dataset.interactions), split.dataset.interactions)


def test_counts_that_are_no_numbers_are_found():
    split = leave_last_out(random_dataset(6))
    counts = np.zeros(split.dataset.num_items + 1)
    counts[3] = np.nan
    with pytest.raises(LeakageError, match="such as item 3: nan times"):
        check_no_leakage(split, counts=counts)


def test_known_is_what_the_parts_say():
    """Of a split made by hand too."""
    dataset = random_dataset(10)
    rows = dataset.interactions
    validation, test = (rows[rows["position"] == p] for p in (3, 5))
    split = Split(dataset, rows[rows["position"] < 3], validation, test, "by hand")
    pd.testing.assert_frame_equal(split.known("test"), rows[rows["position"] <= 3])


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("train", lambda rows: rows.sort_values("position"), "train must hold rows of"),
        ("train", lambda rows: rows[::-1], "row 1, of user"),
        ("train", lambda rows: rows.reset_index(drop=True), "train .* Keep the index"),
        ("train", lambda rows: rows.set_axis(rows.index + 10_000), "row 0, of user 1 with index"),
        ("train", lambda rows: rows.loc[rows.index.repeat(2)], "row 1, of user 1 with index 0"),
        ("validation", lambda rows: rows.sample(frac=1, random_state=1), "validation must hold"),
        ("validation", lambda rows: rows[1:], "each user from 1 to 40, received 39 rows of 39"),
        ("test", lambda rows: rows.reset_index(drop=True), "test must hold rows"),
        ("test", lambda rows: rows.iloc[:0], "received 0 rows of 0 users"),
    ],
)
def test_tables_out_of_place_are_refused(part, change, message):
    """Sequences are read off them by place, so one in another order would mix up the users."""
    split = leave_last_out(random_dataset(8))
    with pytest.raises(ValueError, match=message):
        replace(split, **{part: change(getattr(split, part))})


def test_a_table_with_fewer_rows_or_other_items_is_a_split_too():
    split = leave_last_out(random_dataset(8))
    other = split.train["item_id"].to_numpy()[::-1]
    for train in (split.train[split.train["user_id"] != 3], split.train.assign(item_id=other)):
        assert len(replace(split, train=train).known("test")) == len(train) + 40
    known = replace(split, train=split.known("test"), validation=split.test).known("test")
    pd.testing.assert_frame_equal(known, split.dataset.interactions)


def test_the_order_of_time():
    table = pd.DataFrame({"user_id": [2, 1, 2, 1], "position": [4, 3, 4, 9]})
    check_order(table)
    check_order(table.iloc[:0])
    with pytest.raises(ValueError, match="received position 3 of user 1 after 9"):
        check_order(table[::-1])
    days = pd.to_datetime(["2020-02-01", "2020-01-01", "2020-01-31", None])
    table = table.drop(columns="position").assign(timestamp=days)
    with pytest.raises(ValueError, match="2020-01-31.* of user 2 after 2020-02-01"):
        check_order(table)
    for untold in (table["timestamp"].astype(str), table["timestamp"].astype(object)):
        check_order(table.assign(timestamp=untold))


def test_targets_of_samples_are_checked():
    """A split whose training table holds a test interaction cannot be turned into samples."""
    from recsys_helpers.samples import training_samples

    split = leave_last_out(random_dataset(7))
    assert len(training_samples(split)) == len(split.train) - split.dataset.num_users
    leaky = replace(split, train=split.dataset.interactions)
    with pytest.raises(LeakageError):
        training_samples(leaky)
