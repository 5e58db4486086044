"""Ranks and metrics, against hand-worked numbers, brute force and an independent library."""

import re
import tracemalloc
from types import SimpleNamespace

import ir_measures
import numpy as np
import pandas as pd
import pytest

from recsys_helpers.metrics import (
    bootstrap_interval,
    compare,
    evaluate,
    evaluate_vectors,
    metric_names,
    metrics_from_ranks,
    ranks_from_scores,
    ranks_from_vectors,
    recall,
    recommendation_metrics,
    user_values,
)

NOTHING = pd.DataFrame({"user_id": [], "item_id": []}, dtype=np.int32)


def interactions(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["user_id", "item_id"], dtype=np.int32)


def random_case(seed, num_users=50, num_items=80, levels=None, most_seen=30):
    """Scores, targets and seen items; few `levels` make many ties."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(num_users, num_items))
    if levels:
        scores = generator.integers(0, levels, (num_users, num_items)).astype(float)
    rows, targets = [], []
    for user in range(1, num_users + 1):
        shuffled = generator.permutation(num_items) + 1
        targets.append(shuffled[0])
        rows += [(user, item) for item in shuffled[1 : 1 + generator.integers(0, most_seen)]]
    return scores, np.array(targets), interactions(rows)


def slow_ranks(scores, targets, seen):
    """The definition, one item at a time."""
    pairs = set(zip(seen["user_id"], seen["item_id"], strict=True))
    ranks = []
    for row, target in enumerate(targets):
        ahead = [
            item
            for item in range(1, scores.shape[1] + 1)
            if item != target
            and (row + 1, item) not in pairs
            and scores[row, item - 1] >= scores[row, target - 1]
        ]
        ranks.append(1 + len(ahead))
    return np.array(ranks)


# Ranks


def test_ranks_by_hand():
    scores = np.array([[5.0, 3.0, 9.0, 1.0], [5.0, 5.0, 5.0, 1.0], [0.0, 2.0, 2.0, 4.0]])
    ranks = ranks_from_scores(lambda rows: scores[rows], [2, 1, 3], NOTHING)
    assert list(ranks) == [3, 3, 3]  # user 2: two ties against the model; user 3: 4 and a tie
    seen = interactions([(1, 3), (2, 3), (2, 2), (3, 1)])
    assert list(ranks_from_scores(lambda rows: scores[rows], [2, 1, 3], seen)) == [2, 1, 3]


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("block_size", [1, 7, 50, 1000])
def test_ranks_equal_the_definition(levels, block_size):
    scores, targets, seen = random_case(1, levels=levels)
    before = scores.copy()
    ranks = ranks_from_scores(lambda rows: scores[rows], targets, seen, block_size)
    assert list(ranks) == list(slow_ranks(scores, targets, seen))
    assert (scores == before).all()  # the caller's array is not written to
    infinite = np.where(scores > np.quantile(scores, 0.7), np.inf, scores)
    infinite[infinite < np.quantile(scores, 0.3)] = -np.inf
    ranks = ranks_from_scores(lambda rows: infinite[rows], targets, seen, block_size)
    assert list(ranks) == list(slow_ranks(infinite, targets, seen))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranks_from_vectors_equal_the_definition(dtype):
    _, targets, seen = random_case(2)
    generator = np.random.default_rng(2)
    users = generator.normal(size=(50, 8)).astype(dtype)
    items = generator.normal(size=(80, 8)).astype(dtype)
    expected = slow_ranks(users.astype(float) @ items.astype(float).T, targets, seen)
    for block_size in (None, 1, 7, 1000):
        assert list(ranks_from_vectors(users, items, targets, seen, block_size)) == list(expected)


def test_integer_scores_and_repeated_or_unsorted_seen_items():
    scores, targets, seen = random_case(3, levels=5)
    for twice in (pd.concat([seen, seen]).sort_values("user_id"), pd.concat([seen, seen[::-1]])):
        ranks = ranks_from_scores(lambda rows: scores[rows].astype(int), targets, twice, 16)
        assert list(ranks) == list(slow_ranks(scores, targets, seen))


@pytest.mark.parametrize("num_items", [1349, 3416, 101, 7])
def test_a_constant_scorer_is_last(num_items):
    """Whatever the shape of the matrix product, equal vectors must give equal scores."""
    generator = np.random.default_rng(4)
    targets = generator.integers(1, num_items + 1, 943)
    seen = interactions([(u, t % num_items + 1) for u, t in enumerate(targets, start=1)])
    for dim in (1, 3, 64):
        users = generator.normal(size=(943, dim)).astype(np.float32)
        items = np.repeat(generator.normal(size=(1, dim)).astype(np.float32), num_items, axis=0)
        for block_size in (None, 100):
            ranks = ranks_from_vectors(users, items, targets, seen, block_size)
            assert (ranks == num_items - 1).all()
        assert (ranks_from_vectors(users, 0 * items, targets, seen) == num_items - 1).all()


def test_a_perfect_scorer_is_first_and_small_differences_count():
    items = np.eye(6, dtype=np.float32)
    targets = np.array([2, 5, 1])
    users = 1 + 1e-6 * items[targets - 1]  # float32 can tell these from 1
    assert list(ranks_from_vectors(users, items, targets, NOTHING)) == [1, 1, 1]
    assert list(ranks_from_vectors(-users, items, targets, NOTHING)) == [6, 6, 6]


def test_nan_and_wrong_shapes_are_errors():
    scores, targets, seen = random_case(5)
    scores[33, 4] = np.nan
    with pytest.raises(ValueError, match="user 34 contain NaN"):
        ranks_from_scores(lambda rows: scores[rows], targets, seen, block_size=16)
    for bad in (np.nan, np.inf, 1e200):
        users, items = np.ones((50, 4)), np.ones((80, 4))
        items[2, 1] = bad
        with pytest.raises(ValueError, match="vector of item 3 contains NaN or infinity"):
            ranks_from_vectors(users, items, targets, seen)
        users[33, 1] = bad
        with pytest.raises(ValueError, match="vector of user 34 contains NaN or infinity"):
            ranks_from_vectors(users, np.ones((80, 4)), targets, seen, block_size=16)
    users, items = np.ones((50, 4)), np.ones((80, 4))
    with pytest.raises(ValueError, match=r"received \(50, 4\) and \(80, 3\)"):
        ranks_from_vectors(users, items[:, :3], targets, seen)
    with pytest.raises(ValueError, match="received 49 vectors and 50 targets"):
        ranks_from_vectors(users[:49], items, targets, seen)
    with pytest.raises(ValueError, match=r"users 1 to 16, received \(50, 80\)"):
        ranks_from_scores(lambda rows: np.zeros((50, 80)), targets, seen, block_size=16)
    for size in (0, -1):  # with no block there would be no ranks, and whatever memory held
        with pytest.raises(ValueError, match=f"block_size must be at least 1, received {size}"):
            ranks_from_vectors(users, items, targets, seen, size)
        with pytest.raises(ValueError, match=f"block_size must be at least 1, received {size}"):
            ranks_from_scores(lambda rows: scores[rows], targets, seen, size)


@pytest.mark.parametrize("wrong", [0, -1, 81])
def test_items_outside_the_catalogue_are_named_with_their_user(wrong):
    scores, targets, seen = random_case(5)
    foreign = pd.concat([seen, interactions([(20, wrong)])])
    with pytest.raises(ValueError, match=f"seen items of user 20: .* 1 to 80, received {wrong}"):
        ranks_from_scores(lambda rows: scores[rows], targets, foreign, block_size=16)
    targets[33] = wrong
    with pytest.raises(ValueError, match=f"target of user 34: .* 1 to 80, received {wrong}"):
        ranks_from_scores(lambda rows: scores[rows], targets, seen, block_size=16)


def test_ids_are_integers():
    scores, targets, seen = random_case(5)
    with pytest.raises(ValueError, match="target: expected integer ids, received float64"):
        ranks_from_scores(lambda rows: scores[rows], targets + 0.5, seen)
    with pytest.raises(ValueError, match="seen items: expected integer ids, received float64"):
        ranks_from_scores(lambda rows: scores[rows], targets, seen.astype({"item_id": float}))
    nothing = pd.DataFrame(columns=["user_id", "item_id"])  # has no types
    ranks = ranks_from_scores(lambda rows: scores[rows], targets, nothing)
    assert list(ranks) == list(slow_ranks(scores, targets, nothing))


def test_wrong_seen_items_are_errors():
    scores, targets, seen = random_case(6)
    with_target = pd.concat([seen, interactions([(20, targets[19])])])
    with pytest.raises(ValueError, match=f"user 20's target, item {targets[19]}, is among"):
        ranks_from_scores(lambda rows: scores[rows], targets, with_target, block_size=8)
    with pytest.raises(ValueError, match="number of targets, 50, received int64 from 0 to 0"):
        ranks_from_scores(lambda rows: scores[rows], targets, seen.assign(user_id=0))
    with pytest.raises(ValueError, match="number of targets, 30, received int32 from 1 to 50"):
        ranks_from_scores(lambda rows: scores[rows], targets[:30], seen)
    with pytest.raises(ValueError, match="must be integers .* received float64"):
        ranks_from_scores(lambda rows: scores[rows], targets, seen.astype({"user_id": float}))


def test_memory_is_a_block_not_the_matrix():
    users, items = 20_000, 5_000  # 800 MB of scores
    generator = np.random.default_rng(7)
    user_vectors = generator.normal(size=(users, 4)).astype(np.float32)
    item_vectors = generator.normal(size=(items, 4)).astype(np.float32)
    targets = generator.integers(1, items + 1, users)
    tracemalloc.start()
    ranks_from_vectors(user_vectors, item_vectors, targets, NOTHING)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


def test_evaluate_vectors_leaves_out_what_the_split_says_is_seen():
    seen = {"validation": interactions([(1, 1), (2, 3)])}
    seen["test"] = interactions([(1, 1), (1, 2), (2, 3), (2, 1)])
    targets = {"validation": np.array([2, 1]), "test": np.array([3, 4])}
    split = SimpleNamespace(
        seen=seen.get, targets=targets.get, dataset=SimpleNamespace(num_items=4)
    )
    users, items = np.array([[1.0], [-1.0]]), np.array([[4.0], [3.0], [2.0], [1.0]])
    assert list(evaluate_vectors(split, users, items, "validation")) == [1, 3]
    assert list(evaluate_vectors(split, users, items, "test")) == [1, 1]
    split.seen = {"test": NOTHING}.get  # where people come back, everything competes
    assert list(evaluate_vectors(split, users, items, "test")) == [3, 1]
    with pytest.raises(ValueError, match="4 items, received 5.*padding"):
        evaluate_vectors(split, users, np.ones((5, 1)))


# Metrics


def test_metrics_by_hand():
    ranks = np.array([1, 2, 7, 11])
    metrics = metrics_from_ranks(ranks)
    assert list(metrics) == metric_names() and len(metrics) == 13
    expected = {
        "hit_rate@5": 0.5,
        "hit_rate@10": 0.75,
        "hit_rate@500": 1,
        "ndcg@5": (1 + 1 / np.log2(3)) / 4,
        "ndcg@10": (1 + 1 / np.log2(3) + 1 / 3) / 4,
        "precision@10": 0.075,
        "mrr": (1 + 1 / 2 + 1 / 7 + 1 / 11) / 4,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics_from_ranks(ranks, ks=(1,)) == pytest.approx(
        {"hit_rate@1": 0.25, "ndcg@1": 0.25, "precision@1": 0.25, "mrr": expected["mrr"]}
    )
    assert list(user_values(ranks, "hit_rate@2")) == [1, 1, 0, 0]
    assert list(user_values(ranks, "ndcg@7")) == pytest.approx([1, 1 / np.log2(3), 1 / 3, 0])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint64"])
def test_metrics_are_the_same_whatever_integers_hold_the_ranks(dtype):
    ranks = np.array([1, 3, 100, np.iinfo(dtype).max if dtype != "uint64" else 2**40])
    for metric in metric_names():
        values = user_values(ranks.astype(dtype), metric)
        assert values.dtype == np.float64
        np.testing.assert_array_equal(values, user_values(ranks, metric))


@pytest.mark.parametrize("seed", range(5))
def test_metrics_agree_with_ir_measures(seed):
    """An independent library sees only scores and relevance, and gets every user's values."""
    scores, targets, seen = random_case(seed, num_users=40, num_items=120)
    if seed == 4:  # some targets are not retrieved well by anything
        scores[np.arange(40), targets - 1] -= 3
    ranks = ranks_from_scores(lambda rows: scores[rows], targets, seen)

    pairs = set(zip(seen["user_id"], seen["item_id"], strict=True))
    run = [
        ir_measures.ScoredDoc(f"u{u}", f"i{i}", float(scores[u - 1, i - 1]))
        for u in range(1, 41)
        for i in range(1, 121)
        if (u, i) not in pairs
    ]
    relevant = [ir_measures.Qrel(f"u{u}", f"i{t}", 1) for u, t in enumerate(targets, start=1)]
    theirs = {"mrr": ir_measures.RR}
    for k in (5, 10, 50, 100, 200, 500):
        theirs[f"hit_rate@{k}"] = ir_measures.Success @ k
    for k in (5, 10, 50):
        theirs[f"ndcg@{k}"] = ir_measures.nDCG @ k
        theirs[f"precision@{k}"] = ir_measures.P @ k
    means = ir_measures.calc_aggregate(list(theirs.values()), relevant, run)
    ours = metrics_from_ranks(ranks)
    assert ours.keys() == theirs.keys()
    for name, measure in theirs.items():
        assert ours[name] == pytest.approx(means[measure], abs=1e-9), name
    by_user = {
        (value.query_id, str(value.measure)): value.value
        for value in ir_measures.iter_calc(list(theirs.values()), relevant, run)
    }
    for name, measure in theirs.items():
        expected = [by_user[f"u{u}", str(measure)] for u in range(1, 41)]
        np.testing.assert_allclose(user_values(ranks, name), expected, atol=1e-9)


@pytest.mark.parametrize(
    "ranks", [np.array([0, 1]), np.array([1.0, 2.0]), np.ones((2, 2), int), np.array([], int)]
)
def test_ranks_that_are_none(ranks):
    with pytest.raises(ValueError, match="ranks must be integers from 1"):
        metrics_from_ranks(ranks)


@pytest.mark.parametrize("name", ["ndcg", "recall@10", "ndcg@0", "hit_rate@ten", "mrr@10"])
def test_unknown_metrics(name):
    with pytest.raises(ValueError, match=f"received '{name}'"):
        user_values(np.array([1]), name)


# Intervals


def test_evaluate_puts_every_mean_into_its_interval():
    ranks = np.random.default_rng(0).geometric(0.05, 2000)
    table = evaluate(ranks)
    assert list(table.columns) == ["mean", "low", "high"] and list(table.index) == metric_names()
    assert table["mean"].to_dict() == metrics_from_ranks(ranks)
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    assert (table["low"] < table["high"])[["ndcg@10", "mrr", "hit_rate@50"]].all()
    assert (table.loc["hit_rate@500"] == 1).all()


def test_differences_are_taken_user_by_user():
    generator = np.random.default_rng(0)
    other = generator.geometric(0.02, 800)
    better = np.maximum(1, other - generator.integers(0, 4, 800))
    received = compare(better, other, "ndcg@10")
    difference = user_values(better, "ndcg@10") - user_values(other, "ndcg@10")
    assert received == (difference.mean(), *bootstrap_interval(difference))
    assert 0 < received.low < received.difference < received.high
    alone = bootstrap_interval(user_values(better, "ndcg@10"))
    assert received.high - received.low < (alone[1] - alone[0]) / 2
    assert compare(better, better, "mrr") == (0, 0, 0)
    back = compare(other, better, "ndcg@10")
    assert back.difference == -received.difference
    # Several runs: their mean user by user, by hand for two users.
    runs = compare([[1, 2], [3, 11]], [[11, 1], [11, 1], [11, 1]], "hit_rate@10")
    assert runs.difference == pytest.approx(((1 + 1) / 2 + (1 + 0) / 2 - 1) / 2)
    assert f"{compare([1, 1], [11, 11], 'hit_rate@10'):+.2f}" == "+1.00 [+1.00, +1.00]"
    with pytest.raises(ValueError, match="same users, received those of 800 and of 799 users"):
        compare(better, other[1:], "mrr")
    with pytest.raises(ValueError, match="same users"):
        compare(better, other[:1], "mrr")


def test_interval_agrees_with_the_plain_bootstrap():
    """Drawing counts of distinct values is drawing users with replacement."""
    generator = np.random.default_rng(1)
    values = user_values(generator.geometric(0.1, 500), "ndcg@10")
    plain = values[generator.integers(0, 500, (20_000, 500))].mean(axis=1)
    expected = np.quantile(plain, [0.025, 0.975])
    width = expected[1] - expected[0]
    received = bootstrap_interval(values, num_samples=20_000)
    np.testing.assert_allclose(received, expected, atol=0.02 * width)
    narrow = bootstrap_interval(values, num_samples=20_000, level=0.5)
    np.testing.assert_allclose(narrow, np.quantile(plain, [0.25, 0.75]), atol=0.02 * width)
    # With noise, all values are distinct and users are drawn; the interval is as good as the same.
    distinct = bootstrap_interval(values + 1e-9 * generator.random(500), num_samples=20_000)
    np.testing.assert_allclose(distinct, expected, atol=0.02 * width)


def test_interval_of_a_proportion_has_its_textbook_width():
    hits = np.repeat([0.0, 1.0], [9000, 1000])
    low, high = bootstrap_interval(hits, num_samples=4000)
    half = 1.96 * np.sqrt(0.1 * 0.9 / 10_000)
    assert low == pytest.approx(0.1 - half, abs=0.05 * half)
    assert high == pytest.approx(0.1 + half, abs=0.05 * half)


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        low, high = bootstrap_interval(generator.random(200), num_samples=400)
        covered += low <= 0.5 <= high
    assert 0.90 < covered / 300 < 0.985


def test_interval_is_seeded_and_of_a_constant_is_a_point():
    values = np.random.default_rng(3).random(1000)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert bootstrap_interval(np.full(100, 0.25)) == (0.25, 0.25)


def test_interval_of_many_distinct_values_is_chunked():
    values = np.random.default_rng(4).random(30_000)
    tracemalloc.start()
    low, high = bootstrap_interval(values, num_samples=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert low < values.mean() < high
    assert peak < 60e6  # 300 x 30,000 counts at once would be 72 MB


@pytest.mark.parametrize("values", [[], [0.1, np.nan], [np.inf]])
def test_interval_needs_finite_values(values):
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval(values)


def test_interval_needs_a_level_and_samples():
    with pytest.raises(ValueError, match="received 95 and"):
        bootstrap_interval([0.0, 1.0], level=95)
    with pytest.raises(ValueError, match=r"received 0.95 and 0"):
        bootstrap_interval([0.0, 1.0], num_samples=0)


# Recommendations


def test_recommendation_metrics_by_hand():
    # Five movies, three users, two places: 1 is shown three times, 2 twice, 4 once.
    shown = np.array([[1, 2], [2, 1], [4, 1]])
    counts = np.array([0, 10, 7, 5, 2, 1])
    found = recommendation_metrics(shown, np.array([2, 2, 3]), counts)
    assert found["hit_rate@2"] == pytest.approx(2 / 3)
    assert found["ndcg@2"] == pytest.approx((1 / np.log2(3) + 1) / 3)
    assert found["coverage@2"] == pytest.approx(3 / 5)
    assert found["popularity@2"] == pytest.approx((3 * 10 + 2 * 7 + 2) / 6)
    # Half the mean absolute difference of all pairs, over the mean.
    often = np.array([3, 2, 0, 1, 0])
    pairs = np.abs(often[:, None] - often).mean()
    assert found["gini@2"] == pytest.approx(pairs / 2 / often.mean())


def test_recommendation_metrics_agree_with_the_ranks():
    scores, targets, seen = random_case(3)
    scores[seen["user_id"] - 1, seen["item_id"] - 1] = -np.inf
    ranks = slow_ranks(scores, targets, seen)
    shown = np.argsort(-scores, axis=1)[:, :10] + 1
    found = recommendation_metrics(shown, targets, np.ones(scores.shape[1] + 1))
    assert found["hit_rate@10"] == pytest.approx(user_values(ranks, "hit_rate@10").mean())
    assert found["ndcg@10"] == pytest.approx(user_values(ranks, "ndcg@10").mean())
    assert found["popularity@10"] == 1


@pytest.mark.parametrize("case", ["evenly", "always the same"])
def test_the_ends_of_the_gini_coefficient(case):
    n = 200
    shown = np.arange(1, n + 1)[:, None] if case == "evenly" else np.full((n, 1), 7)
    gini = recommendation_metrics(shown, np.ones(n, int), np.ones(n + 1))["gini@1"]
    assert gini == pytest.approx(0 if case == "evenly" else 1 - 1 / n)


def test_recommendations_must_fit():
    counts, one = np.ones(6), np.ones(1, int)
    with pytest.raises(ValueError, match=r"received shapes \(3,\) and \(3,\)"):
        recommendation_metrics(np.ones(3, int), np.ones(3, int), counts)
    for wrong in (0, 6, -1):
        with pytest.raises(ValueError, match=rf"user 2: .*from 1 to 5, received {wrong}"):
            recommendation_metrics(np.array([[1, 2], [3, wrong]]), np.ones(2, int), counts)
        with pytest.raises(ValueError, match=rf"target of user 1: .* received {wrong}"):
            recommendation_metrics(np.array([[1, 2]]), wrong * one, counts)
    with pytest.raises(ValueError, match="integer ids, received float64"):
        recommendation_metrics(np.array([[1.5, 2]]), one, counts)
    with pytest.raises(ValueError, match="user 2 is recommended item 4 twice"):
        recommendation_metrics(np.array([[1, 2, 3], [4, 2, 4]]), np.ones(2, int), counts)


def test_recall_by_hand():
    assert recall([[1, 2, 3], [9, 8, 7]], [[3, 2, 1], [7, 5, 6]]) == pytest.approx(4 / 6)
    assert recall([[1, 2, 3, 4], []], [[4, 5], [6, 7]]) == pytest.approx(1 / 4)
    assert recall([[2, 2]], [[1, 2]]) == 0.5
    assert recall([{1, 2}, frozenset({3})], [[1, 2], [4, 3]]) == 0.75
    one = np.array([1, 2])  # as `query` gives it for one vector
    for found, best in (
        ([[1]], [[1], [2]]),
        ([], []),
        (one, one),
        ([1, 2], [[1], [2]]),
        ([[1]], [[]]),
    ):
        shape = np.shape(best)
        with pytest.raises(ValueError, match=re.escape(f"received shape {shape} and {len(found)}")):
            recall(found, best)
