"""An index and what is new, searched as one: against one exact index of everything."""

import numpy as np
import pandas as pd
import pytest

from recsys_helpers.delta import DeltaIndex
from recsys_helpers.index import AnnoyIndex, ExactIndex, recommend

RNG = np.random.default_rng(0)
VECTORS, QUERIES = RNG.normal(size=(300, 8)), RNG.normal(size=(20, 8))
IDS = RNG.permutation(1000)[:300]
OLD = 270


def large(kind, metric="dot"):
    if kind == "exact":
        return ExactIndex(metric).build(VECTORS[:OLD], IDS[:OLD])
    return AnnoyIndex(metric, n_trees=20, search_k=10**6).build(VECTORS[:OLD], IDS[:OLD])


@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize("kind", ["exact", "annoy"])
def test_both_together_are_one_index_of_everything(kind, metric):
    index = DeltaIndex(large(kind, metric))
    for first, last in ((OLD, 271), (271, 290), (290, 300)):
        index.add(VECTORS[first:last], IDS[first:last])
    everything = ExactIndex(metric).build(VECTORS, IDS)
    exclude = [IDS[RNG.permutation(300)[: RNG.integers(0, 40)]] for _ in QUERIES]
    for asked in (QUERIES, (10, None)), (QUERIES, (10, exclude)):
        queries, (k, hidden) = asked
        ids, scores = index.query(queries, k, hidden)
        best, expected = everything.query(queries, k, hidden)
        np.testing.assert_array_equal(ids, best)
        np.testing.assert_array_equal(scores, expected)
        assert (ids.dtype, scores.dtype) == (best.dtype, expected.dtype)
    one = index.query(QUERIES[3], 7, exclude[3])
    np.testing.assert_array_equal(one[0], everything.query(QUERIES[3], 7, exclude[3])[0])
    assert one[0].shape == (7,) and len(index) == 300 and set(index.ids) == set(IDS)


@pytest.mark.parametrize("kind", ["exact", "annoy"])
def test_what_was_said_last_of_an_item_holds(kind):
    index = DeltaIndex(large(kind))
    query = QUERIES[0]
    best = index.query(query, 3)[0]
    index.add(np.stack([-query, query * 100]), best[[0, 2]])  # the best leaves, the third leads
    assert list(index.query(query, 2)[0]) == [best[2], best[1]]
    assert best[0] not in index.query(query, 200)[0] and len(index) == OLD
    assert len(set(index.query(query, OLD)[0])) == OLD  # nobody twice
    index.add(query[None] * 200, best[:1])
    assert list(index.query(query, 3)[0]) == list(best[[0, 2, 1]])


def test_the_index_beneath_is_not_changed():
    beneath = large("exact")
    before = beneath.query(QUERIES, 5)[0]
    DeltaIndex(beneath).add(VECTORS[OLD:] * 10, IDS[OLD:])
    np.testing.assert_array_equal(beneath.query(QUERIES, 5)[0], before)


def test_before_anything_is_new_it_is_the_index_itself():
    beneath = large("annoy")
    np.testing.assert_array_equal(DeltaIndex(beneath).query(QUERIES, 5), beneath.query(QUERIES, 5))
    ids, scores = DeltaIndex(beneath).query(np.zeros((0, 8)), 4, [])
    assert ids.shape == scores.shape == (0, 4)


def test_equal_scores_put_the_old_item_first():
    index = DeltaIndex(ExactIndex().build(np.ones((2, 1)), [7, 5])).add(np.ones((2, 1)), [1, 9])
    assert list(index.query(np.ones(1), 4)[0]) == [7, 5, 1, 9]


def test_all_of_one_side_may_be_excluded():
    index = DeltaIndex(ExactIndex().build(VECTORS[:3], [1, 2, 3])).add(VECTORS[3:5], [4, 5])
    assert set(index.query(QUERIES[0], 2, [1, 2, 3])[0]) == {4, 5}
    assert set(index.query(QUERIES[0], 3, [4, 5, 99])[0]) == {1, 2, 3}
    with pytest.raises(ValueError, match="not excluded, 2 of the 5 items, received 3"):
        index.query(QUERIES[0], 3, [1, 2, 3])
    with pytest.raises(ValueError, match="received 0"):
        index.query(QUERIES[0], 0)


def test_it_serves_users_as_any_index_does():
    index = DeltaIndex(large("annoy")).add(VECTORS[OLD:], IDS[OLD:])
    known = pd.DataFrame({"user_id": [1, 2, 2], "item_id": IDS[[3, OLD, 4]]})
    found = recommend(index, QUERIES[:2], known, k=5)
    best = index.query(QUERIES[:2], 5, [IDS[[3]], IDS[[OLD, 4]]])[0]
    np.testing.assert_array_equal(found, best)


def test_errors_say_what_arrived():
    with pytest.raises(ValueError, match="the index is empty"):
        DeltaIndex(ExactIndex())
    index = DeltaIndex(large("exact"))
    with pytest.raises(ValueError, match="expected vectors of length 8.*received length 3"):
        index.add(np.ones((1, 3)), [5])
    with pytest.raises(ValueError, match="distinct"):
        index.add(np.ones((2, 8)), [5, 5])
    with pytest.raises(ValueError, match="expected queries of shape"):
        index.query(np.ones(3), 5)
    for k in (2.5, 3.0, "3", None, 0, OLD + 1):
        with pytest.raises(ValueError, match=f"k must be an integer, 1 to 270 .* received {k!r}"):
            index.query(QUERIES, k)
    with pytest.raises(ValueError, match=r"k must be an integer, 1 to 270 .* received 999"):
        index.query(QUERIES[:0], 999)
    with pytest.raises(ValueError, match=r"of shape \[8\] or \[b, 8\], received shape \(0, 9\)"):
        index.query(np.zeros((0, 9)), 5)
    with pytest.raises(ValueError, match="exclude needs 20 lists of ids"):
        index.query(QUERIES, 5, [[]])


def test_ids_of_any_integers_can_be_added_twice():
    index = DeltaIndex(large("exact"))
    for id in (5000, 5001):  # int64 and uint64 together would be float64
        index.add(np.ones((1, 8)), np.array([id], "uint64"))
    assert list(index.ids[-2:]) == [5000, 5001]
