"""Baselines against hand-worked numbers, independent solutions, and what was measured elsewhere."""

import numpy as np
import pandas as pd
import pytest

from recsys_helpers.baselines import (
    ease,
    history_matrix,
    item_knn,
    markov,
    popularity,
    ranks_from_baseline,
    recommend_from_baseline,
)
from recsys_helpers.datasets import load_dataset
from recsys_helpers.metrics import metrics_from_ranks
from recsys_helpers.splits import Split, leave_last_out


def interactions(histories) -> pd.DataFrame:
    rows = [(user, item) for user, items in enumerate(histories, start=1) for item in items]
    return pd.DataFrame(rows, columns=["user_id", "item_id"], dtype=np.int32)


THREE = interactions([[1, 2, 3], [2, 1], [4, 1, 2]])


def test_history_weights_by_hand():
    assert (history_matrix(THREE, 4).toarray() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 1]]).all()
    last = history_matrix(THREE, 4, tau=0).toarray()
    assert (last == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]).all()
    a, b = np.exp(-1 / 3), np.exp(-2 / 3)
    recent = history_matrix(THREE, 4, tau=3).toarray()
    np.testing.assert_allclose(recent, [[b, a, 1, 0], [1, a, 0, 0], [a, 1, 0, b]])
    with pytest.raises(ValueError, match="received -1"):
        history_matrix(THREE, 4, tau=-1)


def test_popularity_by_hand():
    scores = popularity(THREE, 5).scores(history_matrix(THREE, 5))
    assert (scores == [[3, 3, 1, 1, 0]] * 3).all()


def test_item_knn_by_hand():
    # Items 1 and 2 share all 3 users; 3 and 4 have one user each, who has 1 and 2 as well.
    c = 1 / np.sqrt(3)
    cosine = np.array([[0, 1, c, c], [1, 0, c, c], [c, c, 0, 0], [c, c, 0, 0]])
    model = item_knn(THREE, 4)
    np.testing.assert_allclose(model.weights, cosine)
    np.testing.assert_allclose(
        model.scores(history_matrix(THREE, 4)), history_matrix(THREE, 4).toarray() @ cosine
    )
    # One neighbour each: ties stay, so 3 and 4 keep both 1 and 2.
    np.testing.assert_allclose(
        item_knn(THREE, 4, neighbours=1).weights,
        [[0, 1, c, c], [1, 0, c, c], [0, 0, 0, 0], [0, 0, 0, 0]],
    )


def test_an_item_nobody_has_scores_nothing():
    for model in (item_knn(THREE, 6), ease(THREE, 6, l2=1)):
        scores = model.scores(history_matrix(THREE, 6))
        assert np.isfinite(scores).all() and (scores[:, 4:] == 0).all()


def test_markov_by_hand():
    table = interactions([[1, 2, 3], [1, 2], [4, 1, 3], [3, 4], [2, 1]])
    scores = markov(table, 4).scores(history_matrix(table, 4, tau=0))
    # After 3 came 4 once; after 2 came 1 and 3 once; after 4 came 1; after 1 came 2 twice, 3 once.
    expected = np.array([[0, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 2, 1, 0]])
    np.testing.assert_allclose(scores, expected - np.array([0, 0.25, 0.5, 0.75]))
    # The small id wins a tie, and no tie-break outweighs a count.
    assert list(np.argsort(-scores[1])) == [0, 2, 1, 3]


def test_ease_is_the_ridge_regression_of_every_item_on_the_others():
    generator = np.random.default_rng(0)
    histories = [generator.permutation(12)[: generator.integers(2, 9)] + 1 for _ in range(30)]
    table = interactions(histories)
    received = ease(table, 12, l2=3.0).weights
    x = history_matrix(table, 12).toarray()
    for item in range(12):
        others = np.delete(np.arange(12), item)
        rows = np.vstack([x[:, others], np.sqrt(3.0) * np.eye(11)])
        solution = np.linalg.lstsq(rows, np.append(x[:, item], np.zeros(11)), rcond=None)[0]
        np.testing.assert_allclose(received[others, item], solution, atol=1e-10)
        assert received[item, item] == 0


def test_recency_changes_the_scores_of_ease_and_not_its_weights():
    table = interactions([[1, 2, 3, 4], [4, 3, 2, 1], [2, 3, 1], [3, 4, 2]])
    plain, recent = ease(table, 4, l2=1), ease(table, 4, l2=1, tau=0)
    np.testing.assert_array_equal(plain.weights, recent.weights)
    scores = recent.scores(history_matrix(table, 4, recent.tau))
    np.testing.assert_allclose(scores, plain.weights[[3, 0, 0, 1]])


@pytest.mark.parametrize("fit", [item_knn, ease, lambda *a: ease(*a, tau=5)])
def test_checkerboard(fit):
    """Users and items are black or white, and each user misses one of the own colour: that one."""
    size = 30
    histories = [
        [item for item in range(1, size + 1) if (item - user) % 2 == 0 and item != user]
        for user in range(1, size + 1)
    ]
    table = interactions(histories)
    model = fit(table, size)
    history = history_matrix(table, size, model.tau)
    scores = model.scores(history)
    scores[history_matrix(table, size).toarray() > 0] = -np.inf
    assert (scores.argmax(axis=1) == np.arange(size)).all()


def test_a_cycle_is_learnt_by_the_markov_chain():
    """Everyone walks the same circle: the next item is known, and popularity says nothing."""
    circle = np.arange(20)
    histories = [(circle[:12] + start) % 20 + 1 for start in range(20)]
    table = interactions(histories)
    model = markov(table, 20)
    scores = model.scores(history_matrix(table, 20, model.tau))
    assert (scores.argmax(axis=1) == (np.arange(20) + 12) % 20).all()
    assert len(set(popularity(table, 20).bias)) == 1


def test_ranks_from_baseline_uses_what_is_known_before_the_target():
    # The circle as a split: at test time the last known item is the validation item.
    whole = interactions([(np.arange(14) + start) % 20 + 1 for start in range(20)])
    place = whole.groupby("user_id").cumcount()
    dataset = type("Circle", (), {"num_items": 20, "num_users": 20})
    split = Split(dataset, whole[place < 12], whole[place == 12], whole[place == 13], "circle")
    model = markov(split.train, 20)
    for target in ("validation", "test"):
        assert (ranks_from_baseline(split, model, target) == 1).all()
        shown = recommend_from_baseline(split, model, target, k=3)
        assert (shown[:, 0] == split.targets(target)).all()
        for user, row in enumerate(shown, start=1):
            known = split.known(target)
            assert not np.isin(row, known["item_id"][known["user_id"] == user]).any()
    # Equal scores: the smallest ids, in their order.
    shown = recommend_from_baseline(split, popularity(split.train, 20), "test", k=3)
    assert (shown[0] == [14, 15, 16]).all() and (shown[7] == [1, 2, 3]).all()
    # All items are equally popular, so the target ties with all that are unseen.
    assert (ranks_from_baseline(split, popularity(split.train, 20), "test") == 20 - 13).all()


@pytest.fixture(scope="module")
def movielens_1m():
    try:
        dataset = load_dataset("ml-1m-order", verbose=False)
    except ValueError as error:
        if "Unknown dataset" not in str(error):
            raise  # it is here, and something is wrong with it
        pytest.skip(f"MovieLens-1M in chronological order is not here: {error}")
    return leave_last_out(dataset)


@pytest.mark.parametrize(
    ("fit", "hit_rate", "ndcg"),
    [
        (popularity, 0.036, 0.018),
        (item_knn, 0.070, 0.037),
        (markov, 0.211, 0.124),
        (ease, 0.110, 0.054),
        (lambda *args: ease(*args, l2=1000, tau=3), 0.233, 0.129),
    ],
    ids=["popularity", "item_knn", "markov", "ease", "ease_recency"],
)
def test_what_was_measured_elsewhere(movielens_1m, fit, hit_rate, ndcg):
    """Fitted on everything but each user's last interaction, by independent code.

    Those numbers were noted with three decimals, some after rounding to four.
    """
    split = movielens_1m
    model = fit(split.known("test"), split.dataset.num_items)
    metrics = metrics_from_ranks(ranks_from_baseline(split, model))
    assert metrics["hit_rate@10"] == pytest.approx(hit_rate, abs=0.00055)
    assert metrics["ndcg@10"] == pytest.approx(ndcg, abs=0.00055)
