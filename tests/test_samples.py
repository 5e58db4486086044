"""Examples worked out by hand from a few short sequences."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from recsys_helpers import samples as module
from recsys_helpers.datasets import Dataset
from recsys_helpers.samples import (
    Encoder,
    check_inputs,
    item_features,
    training_samples,
    user_features,
)
from recsys_helpers.splits import LeakageError, Split, leave_last_out

DAY = 86_400
# What each user watched, in order; the last is the test target, the one before it validation.
SEQUENCES = {1: [3, 1, 4, 2, 5], 2: [2, 5, 1], 3: [5, 4, 3, 1]}
same = np.testing.assert_array_equal


def make_dataset(timestamps=True, demographics=True, sequences=SEQUENCES, num_items=5):
    rows = [
        (user, item, position, DAY * (10 * user + position))
        for user, sequence in sequences.items()
        for position, item in enumerate(sequence)
    ]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "position", "timestamp"])
    interactions = interactions.astype({"user_id": "int32", "item_id": "int32"})
    if not timestamps:
        interactions = interactions.drop(columns="timestamp")
    index = pd.RangeIndex(1, len(sequences) + 1, name="user_id")
    users = pd.DataFrame({"original_id": index}, index=index)
    if demographics:
        users = users.assign(
            gender=["M", "F", None],
            age=[17, 18, 60],
            occupation=["b", "a", "b"],
            country=["no", "se", "no"],
            brands=[("x",), ("z", "y"), ()],
        )
    items = pd.DataFrame(
        {
            "year": pd.array([1995, 1999, None, 1984, 2000], dtype="Int64"),
            "genres": [("Drama",), ("Comedy", "Drama"), (), ("War",), ("Comedy",)],
            "brand": ["k", "l", "k", None, "m"],
        },
        index=pd.RangeIndex(1, 6, name="item_id"),
    ).reindex(pd.RangeIndex(1, num_items + 1, name="item_id"))
    return Dataset("by hand", interactions, users, items.assign(original_id=items.index))


def make_split(**kwargs):
    return leave_last_out(make_dataset(**kwargs), min_item_interactions=1)


def random_split(timestamps=True):
    """Twenty users of 3 to 39 items; some of them train on one item, others on many."""
    rng = np.random.default_rng(0)
    lengths = [3, 6, *rng.integers(3, 40, 18)]
    sequences = {user: rng.permutation(50)[:n] + 1 for user, n in enumerate(lengths, start=1)}
    dataset = make_dataset(timestamps, False, sequences, num_items=50)
    genres = [("A", "B")[: 1 + i % 2] for i in range(50)]
    return leave_last_out(replace(dataset, items=dataset.items.assign(genres=genres)), 1)


# ------------------------------------------------------------------------------- one to a row


def test_every_training_interaction_after_the_first_is_a_target():
    samples = training_samples(make_split(), history_length=3)
    # User 1 trains on 3, 1, 4; user 2 on 2 alone, so nothing precedes it; user 3 on 5, 4.
    same(samples.targets, [[1], [4], [4]])
    same(samples.inputs["user_id"], [1, 1, 3])
    same(samples.inputs["history"], [[0, 0, 3], [0, 3, 1], [0, 0, 5]])
    # Training ends with user 3's second movie, on day 31; the targets are of days 11, 12 and 31.
    same(samples.inputs["example_age"], [[20], [19], [0]])
    same(samples.inputs["gender"], [2, 2, 0])
    same(samples.inputs["age"], [1, 1, 7])
    same(samples.inputs["occupation"], [2, 2, 2])
    # Comedy is 1, Drama 2, War 3; item 3 has no genre.
    same(samples.inputs["search"], [[[0] * 6], [[0, 0, 0, 0, 2, 0]], [[0, 0, 0, 0, 1, 0]]])
    assert len(samples) == 3
    types = {name: values.dtype.name for name, values in samples.inputs.items()}
    assert types == {"example_age": "float32", "search": "int8"} | dict.fromkeys(
        ("user_id", "gender", "age", "occupation", "history"), "int32"
    )
    assert samples.targets.dtype == np.int32


def test_ages_are_counted_from_the_latest_of_anybody():
    dataset = make_dataset()
    late = dataset.interactions["timestamp"] + 50 * DAY * (dataset.interactions["user_id"] == 1)
    dataset = replace(dataset, interactions=dataset.interactions.assign(timestamp=late))
    samples = training_samples(leave_last_out(dataset, min_item_interactions=1))
    same(samples.inputs["example_age"], [[1], [0], [31]])


def test_sizes_are_all_that_a_tower_must_know():
    split = make_split()
    assert training_samples(split).sizes == {
        "user_id": 4, "gender": 3, "age": 8, "occupation": 3, "history": 6, "search": 4,
        "history_length": 50,
    }  # fmt: skip
    assert training_samples(split, history_length=7, positions=2).sizes["history_length"] == 7


def test_a_long_history_keeps_its_end():
    same(training_samples(make_split(), history_length=1).inputs["history"], [[3], [1], [5]])


@pytest.mark.parametrize(
    "length, histories",
    [  # half of them before the target, the rest after it, moved to the right
        (1, [[1], [4], [0], [4], [0]]),
        (2, [[0, 1], [3, 4], [0, 1], [0, 4], [0, 5]]),
        (3, [[0, 1, 4], [0, 3, 4], [0, 0, 1], [0, 0, 4], [0, 0, 5]]),
        (4, [[0, 0, 1, 4], [0, 0, 3, 4], [0, 0, 3, 1], [0, 0, 0, 4], [0, 0, 0, 5]]),
    ],
)
def test_held_out_histories_hold_what_came_later_too(length, histories):
    samples = training_samples(make_split(), history_length=length, context="held_out")
    same(samples.targets, [[3], [1], [4], [5], [4]])
    same(samples.inputs["history"], histories)
    same(samples.inputs["user_id"], [1, 1, 1, 3, 3])
    same(samples.inputs["example_age"][:, 0], [21, 20, 19, 1, 0])


def test_at_most_so_many_examples_of_each_user():
    split = random_split()
    everything, capped = training_samples(split), training_samples(split, max_per_user=6, seed=1)

    def pairs(samples):
        return list(
            zip(samples.inputs["user_id"].tolist(), samples.targets[:, 0].tolist(), strict=True)
        )

    available = np.bincount(everything.inputs["user_id"])
    assert (available > 6).any() and ((available > 0) & (available < 6)).any()
    same(np.bincount(capped.inputs["user_id"]), np.minimum(available, 6))
    assert set(pairs(capped)) < set(pairs(everything))
    assert len(set(pairs(capped))) == len(capped)
    # Each keeps the inputs that it has among all.
    kept = [pairs(everything).index(pair) for pair in pairs(capped)]
    for name, values in capped.inputs.items():
        same(values, everything.inputs[name][kept])
    assert pairs(capped) == pairs(training_samples(split, max_per_user=6, seed=1))
    assert pairs(capped) != pairs(training_samples(split, max_per_user=6, seed=2))


# --------------------------------------------------------------------------- several to a row


def test_rows_hold_the_same_targets_several_at_a_time():
    samples = training_samples(make_split(), history_length=2, positions=2)
    # User 1 trains on 3, 1, 4 and user 3 on 5, 4; user 2 has nothing to predict.
    same(samples.inputs["user_id"], [1, 3])
    same(samples.targets, [[1, 4], [0, 4]])
    same(samples.inputs["history"], [[0, 3, 1], [0, 0, 5]])
    same(samples.inputs["example_age"], [[20, 19], [0, 0]])
    # A moment's search is what was watched just before it.
    same(samples.inputs["search"], [[[0] * 6, [0, 0, 0, 0, 2, 0]], [[0] * 6, [0, 0, 0, 0, 1, 0]]])


def test_a_row_may_ask_for_more_moments_than_anybody_has():
    samples = training_samples(make_split(), history_length=2, positions=20)
    same(samples.targets, np.pad([[1, 4], [0, 4]], ((0, 0), (18, 0))))
    same(samples.inputs["history"], np.pad([[3, 1], [0, 5]], ((0, 0), (19, 0))))
    same(samples.inputs["example_age"], np.pad([[20, 19], [0, 0]], ((0, 0), (18, 0))))


def test_a_user_of_several_rows_has_the_short_one_first():
    samples = training_samples(make_split(sequences={1: [5, 3, 1, 4, 2, 6, 7], 2: [1, 2, 3, 4]},
                                          demographics=False, num_items=7), 2, 3)  # fmt: skip
    same(samples.targets, [[0, 0, 3], [1, 4, 2], [0, 0, 2]])
    same(samples.inputs["history"], [[0, 0, 0, 5], [5, 3, 1, 4], [0, 0, 0, 1]])


@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("history_length, positions", [(3, 5), (4, 7), (50, 32)])
def test_rows_and_windows_ask_the_same_questions(
    history_length, positions, timestamps, monkeypatch
):
    split = random_split(timestamps)
    windows = training_samples(split, history_length)
    monkeypatch.setattr(module, "BLOCK_ROWS", 7)  # made block by block, nothing changes
    rows = training_samples(split, history_length, positions)
    assert rows.inputs["history"].shape[1] == rows.encoder.steps == history_length + positions - 1
    row, t = np.nonzero(rows.targets)
    same(rows.targets[row, t], windows.targets[:, 0])
    same(rows.inputs["user_id"][row], windows.inputs["user_id"])
    for name in ("example_age", "search"):
        same(rows.inputs[name][row, t], windows.inputs[name][:, 0])
    histories = rows.inputs["history"][row[:, None], t[:, None] + np.arange(history_length)]
    same(histories, windows.inputs["history"])
    assert windows.inputs["example_age"].any() == timestamps
    assert not rows.inputs["example_age"][rows.targets == 0].any()


# ------------------------------------------------------------------------------------ serving


@pytest.mark.parametrize(
    "target, histories",
    [
        ("validation", [[0, 3, 1, 4], [0, 0, 0, 2], [0, 0, 5, 4]]),
        ("test", [[3, 1, 4, 2], [0, 0, 2, 5], [0, 5, 4, 3]]),
    ],
)
@pytest.mark.parametrize("history_length, positions", [(4, 1), (2, 3)])
def test_serving_shows_all_before_the_target_and_asks_for_now(
    target, histories, history_length, positions
):
    inputs = training_samples(make_split(), history_length, positions).serving_inputs(target)
    same(inputs["user_id"], [1, 2, 3])
    same(inputs["history"], histories)  # as long as a row in training
    same(inputs["example_age"], [[0], [0], [0]])
    assert inputs["search"].shape == (3, 1, 6)
    same(inputs["gender"], [2, 1, 0])


def test_serving_is_for_the_test_and_in_blocks_too(monkeypatch):
    samples = training_samples(make_split())
    expected = samples.serving_inputs("test")
    monkeypatch.setattr(module, "BLOCK_ROWS", 2)
    for name, values in samples.serving_inputs().items():
        same(values, expected[name])
    with pytest.raises(ValueError, match="received 'train'"):
        samples.serving_inputs("train")


def test_a_user_of_whom_nothing_is_known_has_an_empty_history():
    split = make_split()
    kept = split.train[split.train["user_id"] != 2]
    split = Split(split.dataset, kept, split.validation, split.test, split.name)
    inputs = training_samples(split, 3).serving_inputs("validation")
    same(inputs["history"], [[3, 1, 4], [0, 0, 0], [0, 5, 4]])


def test_search_tokens_are_the_genres_of_the_three_most_recent():
    tokens = training_samples(make_split(), history_length=4).serving_inputs("test")["search"]
    names = {0: None, 1: "Comedy", 2: "Drama", 3: "War"}
    found = [[names[t] for t in row if t] for row in tokens[:, 0].tolist()]
    assert found == [
        ["Drama", "War", "Comedy", "Drama"],
        ["Comedy", "Drama", "Comedy"],
        ["Comedy", "War"],
    ]


@pytest.mark.parametrize("tokens, dtype", [(127, "int8"), (128, "int16")])
def test_search_tokens_are_small_numbers_that_hold_the_largest_code(tokens, dtype):
    dataset = make_dataset(sequences={1: range(1, 131)}, demographics=False, num_items=130)
    genres = [(f"{min(i, tokens):03}",) for i in range(1, 131)]
    dataset = replace(dataset, items=dataset.items.assign(genres=genres))
    samples = training_samples(leave_last_out(dataset, 1), 5)
    search = samples.inputs["search"]
    assert samples.sizes["search"] == tokens + 1 and search.dtype == dtype
    assert search.min() == 0 and search.max() == min(tokens, 127)
    same(samples.serving_inputs()["search"], [[[min(127, tokens), tokens, tokens]]])


# ------------------------------------------------------------------------------------- fields


def test_demographics_become_codes_and_what_is_missing_is_zero():
    features = user_features(make_dataset())
    assert list(features) == ["gender", "age", "occupation"]
    same(features["gender"], [0, 2, 1, 0])
    same(features["age"], [0, 1, 2, 7])  # MovieLens-1M's seven groups
    same(features["occupation"], [0, 2, 1, 2])
    unknown = user_features(make_dataset(demographics=False))
    assert all(not codes.any() and codes.shape == (4,) for codes in unknown.values())


def test_years_and_ages_as_movielens_1m_codes_them_fall_into_the_same_groups():
    users = pd.DataFrame(index=pd.RangeIndex(1, 15, name="user_id"))
    # MovieLens-1M writes the lower bound of each group, and 1 for the youngest.
    ages = [1, 17, 18, 24, 25, 34, 35, 44, 45, 49, 50, 55, 56, 99]
    dataset = replace(make_dataset(), users=users.assign(age=ages))
    same(user_features(dataset)["age"], [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7])
    dataset = replace(dataset, users=users.assign(age=["young", None, *["old"] * 12]))
    same(user_features(dataset)["age"][:4], [0, 2, 0, 1])  # in words: categories like any others


def test_item_features_have_a_row_for_padding():
    features = item_features(make_dataset())
    assert list(features) == ["genres", "year"]
    same(features["genres"], [[0, 0], [2, 0], [1, 2], [0, 0], [3, 0], [1, 0]])
    # Five-year buckets counted from 1980: 1995 and 1999 share one, 2000 starts the next.
    same(features["year"], [0, 4, 4, 0, 1, 5])
    assert {codes.dtype.name for codes in features.values()} == {"int32"}
    dataset = make_dataset()
    nothing = item_features(replace(dataset, items=dataset.items[["original_id"]]))
    same(nothing["genres"], np.zeros((6, 1)))
    same(nothing["year"], np.zeros(6))
    unknown = pd.array([None] * 5, dtype="Int64")
    same(item_features(replace(dataset, items=dataset.items.assign(year=unknown)))["year"], [0] * 6)


def test_fields_of_other_names_are_read_if_they_are_named():
    dataset, split = make_dataset(), make_split()
    same(item_features(dataset, ("brand",))["brand"], [0, 1, 2, 1, 0, 3])
    same(user_features(dataset, ["brands"])["brands"], [[0, 0], [1, 0], [3, 2], [0, 0]])
    some = replace(dataset, users=dataset.users.assign(brands=[["x"], None, ("z", "y")]))
    same(user_features(some, ["brands"])["brands"], [[0, 0], [1, 0], [0, 0], [3, 2]])
    samples = training_samples(split, 3, 2, user_fields=("country", "brands"), search_field="brand")
    assert samples.sizes == {
        "user_id": 4, "country": 3, "brands": 4, "history": 6, "search": 4, "history_length": 3,
    }  # fmt: skip
    same(samples.inputs["country"], [1, 1])
    same(samples.inputs["brands"], [[1, 0], [0, 0]])
    same(samples.inputs["search"], [[[0, 0, 1], [0, 1, 1]], [[0, 0, 0], [0, 0, 3]]])
    same(samples.serving_inputs()["search"], [[[1, 0, 2]], [[0, 2, 3]], [[3, 0, 1]]])
    none = training_samples(split, user_fields=())
    assert set(none.inputs) == {"user_id", "history", "search", "example_age"}
    with pytest.raises(
        ValueError, match="users have no column 'planet', 'sex'; they have 'orig.*'c"
    ):
        training_samples(split, user_fields=("planet", "country", "sex"))
    with pytest.raises(ValueError, match="items have no column 'colour'; they have 'year'"):
        training_samples(split, search_field="colour")
    with pytest.raises(ValueError, match=r"items have no column \['year'\]; they have 'year'"):
        training_samples(split, search_field=["year"])


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", ["history", "history_length", "search", "example_age"])
def test_no_field_of_the_users_is_called_like_an_input_of_ours(name):
    split = make_split()
    users = split.dataset.users.rename(columns={"country": name})
    split = replace(split, dataset=replace(split.dataset, users=users))
    training_samples(split, 3, user_fields=["brands"])  # it may be there
    with pytest.raises(ValueError, match=f"user_fields names '{name}', but history, .*Rename"):
        training_samples(split, 3, user_fields=["brands", name])


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"context": "future"}, "context must be 'rollback' or 'held_out', received 'future'"),
        ({"history_length": 0}, "must be at least 1, received 0 and 1"),
        ({"positions": 0}, "must be at least 1, received 50 and 0"),
        ({"max_per_user": 0}, "max_per_user must be at least 1, received 0"),
        ({"context": "held_out", "positions": 2}, "need positions=1, received 2"),
        ({"max_per_user": 3, "positions": 2}, "need positions=1, received 2"),
    ],
)
def test_bad_choices_are_named(choice, message):
    with pytest.raises(ValueError, match=message):
        training_samples(make_split(), **choice)


def test_a_leaked_target_is_refused():
    split = make_split()
    train = pd.concat([split.train, split.test]).sort_values(["user_id", "position"])
    leaky = Split(split.dataset, train, split.validation, split.test, split.name)
    with pytest.raises(LeakageError):
        training_samples(leaky)


@pytest.mark.parametrize("context", ["rollback", "held_out"])
def test_users_of_one_training_interaction_teach_nothing(context):
    split = make_split(sequences={1: [1, 2, 3], 2: [5, 1, 2]}, demographics=False)
    with pytest.raises(ValueError, match="no user has two training interactions"):
        training_samples(split, context=context)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"history": [[0, 5], [6, 1]]}, "history must .* from 0 .* to 5, received 6 in row 1"),
        ({"history": [[0, -1], [5, 6]]}, "history must .* to 5, received -1 in row 0"),
        ({"history": [[0, 5], [-1, 1]]}, "history must .* to 5, received -1 in row 1"),
        ({"gender": [2, 3]}, "gender must hold .* to 2, received 3 in row 1"),
        ({"gender": [0.0, 1.0]}, "gender must hold integer codes, received float64"),
        ({"gender": [2]}, "equally many rows in all arrays, received .*'gender': 1"),
        ({"other": [2]}, "equally many rows in all arrays, received .*'other': 1"),
        ({"history": [0, 5]}, r"history must be \[n, length\], received shape \(2,\)"),
        ({"example_age": [0.5, 1]}, r"example_age must be \[n, T\], received shape \(2,\)"),
        ({"example_age": [[0.5], [np.nan]]}, "example_age must be finite, received nan"),
    ],
)
def test_inputs_of_another_numbering_never_reach_a_tower(change, message):
    sizes = {"history": 6, "gender": 3, "history_length": 2}
    right = {
        "history": np.array([[0, 5], [4, 1]]),
        "gender": np.array([0, 2], "uint8"),
        "example_age": np.array([[0.5], [-1]]),  # no code
        "other": np.array([-7, 9]),  # not read
    }
    names = ["gender", "history", "example_age"]
    check_inputs(right, sizes, names)
    check_inputs({name: values[:0] for name, values in right.items()}, sizes, names)
    with pytest.raises(ValueError, match=message):
        check_inputs(right | {k: np.array(v) for k, v in change.items()}, sizes, names)


def test_inputs_that_are_missing_are_named():
    with pytest.raises(ValueError, match="reads a, b, c; missing are a, c, received b, d. "):
        check_inputs({"b": 0, "d": 0}, {}, ["a", "b", "c"])
    with pytest.raises(ValueError, match="missing are a, received nothing"):
        check_inputs({}, {}, ["a"])


def test_an_encoder_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    encoder = training_samples(make_split(), history_length=4).encoder
    for name in ("encoder.npz", "encoder"):
        encoder.save(tmp_path / name)
        loaded = Encoder.load(str(tmp_path / name))
        assert loaded.sizes == encoder.sizes and loaded.steps == 4
        same(loaded.tokens, encoder.tokens)

    def interrupted(file, **arrays):
        file.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encoder.save(tmp_path / "encoder")
    assert Encoder.load(tmp_path / "encoder").sizes == encoder.sizes
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_no_encoder_is_not_loaded(tmp_path):
    whole, other = tmp_path / "whole.npz", tmp_path / "other.npz"
    training_samples(make_split()).encoder.save(whole)
    np.savez(other, a=1)
    cut = tmp_path / "cut.npz"
    for content in (whole.read_bytes()[:300], b"PK\x03\x04", b"words", b"", other.read_bytes()):
        cut.write_bytes(content)
        with pytest.raises(ValueError, match="cut.npz is damaged"):
            Encoder.load(cut)
