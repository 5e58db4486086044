"""New items: what the split holds back, that its alarm rings, and who competes with whom."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_splits import make_dataset, pairs

from recsys_helpers.cold import check_cold, cold_items, cold_split, ranks_apart
from recsys_helpers.samples import training_samples
from recsys_helpers.splits import LeakageError, leave_last_out

# Items 1 to 4 are old; 5 is new, and 6 newer.
HISTORIES = {
    1: [1, 2, 5, 3, 6, 4],  # tested on 6, the last new one; 4 comes after it
    2: [1, 2, 3, 5, 4],  # tested on 5
    3: [2, 3, 4, 1],  # has none: tested on 1
    4: [1, 6, 2, 3, 4],  # one interaction before 6 is too little; tested on 4
}
TIMES = {1: [1, 2, 50, 51, 60, 61], 2: [3, 4, 5, 52, 53], 3: [6, 7, 8, 9], 4: [9, 70, 71, 72, 73]}


def dataset(histories=HISTORIES, times=TIMES):
    made = make_dataset(histories)
    moments = np.concatenate([times[user] for user in histories])
    return replace(made, interactions=made.interactions.assign(timestamp=moments))


def split(share=1 / 3):
    return cold_split(dataset(), share, min_item_interactions=1, verbose=False)


def test_by_hand():
    made = split()
    assert list(made.targets("test")) == [6, 5, 1, 4]
    assert list(made.targets("validation")) == [3, 3, 4, 3]
    assert pairs(made.train) == {(1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (3, 3), (4, 1), (4, 2)}
    assert list(cold_items(made)) == [5, 6] and made.name == "cold items"
    assert list(made.known("test")["item_id"]) == [1, 2, 3, 1, 2, 3, 2, 3, 4, 1, 2, 3]


def test_nothing_of_a_new_item_reaches_the_samples():
    samples = training_samples(split(), history_length=4)
    assert set(samples.targets.ravel()) <= {2, 3}  # of the training interactions, all but the first
    served = samples.serving_inputs("test")["history"]
    assert not np.isin(served, [5, 6]).any()
    assert list(served[0]) == [0, 1, 2, 3]


def test_the_alarm_rings():
    made = split()
    check_cold(made, [5, 6])
    rows = made.dataset.interactions
    with pytest.raises(LeakageError, match="2 of 14 known .* first being user 1 with item 5"):
        check_cold(replace(made, train=rows.loc[sorted([*made.train.index, 2, 9])]), [5, 6])
    late = rows.index[(rows["user_id"] == 2) & (rows["item_id"] == 4)]
    with pytest.raises(LeakageError, match="not before the target.*user 2 with item 4"):
        check_cold(replace(made, train=rows.loc[sorted([*made.train.index, *late])]), [5, 6])
    target = rows.index[(rows["user_id"] == 3) & (rows["item_id"] == 1)]  # an old item
    with pytest.raises(LeakageError, match="1 of 13 .* not before the target.*user 3 with item 1"):
        check_cold(replace(made, train=rows.loc[sorted([*made.train.index, *target])]), [5, 6])
    with pytest.raises(LeakageError, match="user 1 with item 3"):
        check_cold(made, [3])


@pytest.mark.parametrize("share", [0, 1, 0.01])
def test_a_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(ValueError, match=f"received share={share} of 6"):
        split(share)


def test_users_with_too_little_before_the_target_are_left_out(capsys):
    histories = HISTORIES | {5: [6, 5, 1]}  # nothing old but the target
    made = cold_split(dataset(histories, TIMES | {5: [80, 81, 82]}), 1 / 3, 1)
    assert "made-up: left out 1 users" in capsys.readouterr().out
    assert made.dataset.num_users == 4 and list(made.targets("test")) == [6, 5, 1, 4]


def test_without_times_the_new_items_are_drawn_and_the_same_each_time():
    made = [cold_split(make_dataset(HISTORIES), 1 / 3, 1, verbose=False) for _ in range(2)]
    assert list(cold_items(made[0])) == list(cold_items(made[1])) != []


def test_an_item_is_as_old_as_its_first_interaction():
    # Item 3 had its first user at 1 and others late; by the mean of its times it would be newest.
    made = make_dataset({1: [3, 1, 2, 4], 2: [1, 2, 4, 3], 3: [1, 2, 4, 3]})
    times = [1, 2, 3, 50, 4, 5, 51, 900, 6, 7, 52, 901]
    made = replace(made, interactions=made.interactions.assign(timestamp=times))
    assert list(cold_items(cold_split(made, 1 / 4, 1, verbose=False))) == [4]


@pytest.mark.parametrize(
    ("histories", "new"), [({1: [1, 2, 4], 2: [3, 1, 4]}, 2), ({1: [1, 2, 3], 2: [3, 4, 1]}, 0)]
)
def test_ranks_apart_need_new_targets_and_others(histories, new):
    made = leave_last_out(make_dataset(histories), 1, verbose=False)
    with pytest.raises(ValueError, match=f"{new} of 2 users have a new item .* expected some and"):
        ranks_apart(made, np.ones((2, 1)), np.ones((4, 1)))


def test_who_competes_with_whom():
    made = split()
    # One user vector, so an item's only number is its score; item 5 and 6 are the new ones.
    items = np.array([[0.1], [0.9], [0.8], [0.3], [0.2], [0.5]])
    ranks = ranks_apart(made, np.ones((4, 1)), items)
    # User 1 knows 1, 2, 3: item 6 is first of 4, 5, 6. User 2 as well: item 5 is third.
    assert list(ranks["new, among all"]) == [1, 3]
    assert list(ranks["new, among new"]) == [1, 2]
    # User 3 knows 2, 3, 4: item 1 is the last of 1, 5, 6. User 4 knows 1, 2, 3: 4 is behind 6.
    assert list(ranks["other, among all"]) == [3, 2]


def test_ranks_apart_need_some_new_targets():
    made = leave_last_out(dataset(), 1, verbose=False)
    with pytest.raises(ValueError, match="of 4 users have a new item"):
        ranks_apart(made, np.ones((4, 1)), np.ones((6, 1)))


def test_an_item_whose_interactions_were_all_held_back_is_new_as_well():
    histories = {user: [1, 2, 3, 4] for user in (1, 2, 3)} | {4: [1, 2, 5, 6]}
    times = {user: [1, 2, 3, 4] for user in (1, 2, 3)} | {4: [1, 2, 3, 99]}
    made = cold_split(dataset(histories, times), 1 / 6, 1, verbose=False)
    assert list(made.targets("test")) == [4, 4, 4, 6]
    assert list(cold_items(made)) == [4, 6]
    assert isinstance(made.train, pd.DataFrame)
