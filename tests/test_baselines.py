"""Baselines against hand-worked numbers, independent solutions, and what was measured elsewhere."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import in_a_data_folder

from recsys_helpers import baselines
from recsys_helpers.baselines import (
    BLOCK_USERS,
    Baseline,
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


def test_of_repeated_interactions_the_last_one_counts():
    table = interactions([[1, 2, 1], [2, 2, 3]])
    assert (history_matrix(table, 3).toarray() == [[1, 1, 0], [0, 1, 1]]).all()
    a = np.exp(-1 / 3)
    np.testing.assert_allclose(history_matrix(table, 3, 3).toarray(), [[1, a, 0], [0, a, 1]])
    once = interactions([[1, 2], [2, 3]])
    for fit in (item_knn, lambda *args: ease(*args, l2=1)):
        np.testing.assert_array_equal(fit(table, 3).weights, fit(once, 3).weights)
    # Popularity counts all of them, and the chain knows that 2 follows 2.
    assert popularity(table, 3).bias.tolist() == [2, 3, 1]
    assert markov(table, 3).weights.toarray().tolist() == [[0, 1, 0], [1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("fit", [popularity, item_knn, markov, ease, history_matrix])
def test_tables_that_do_not_fit(fit):
    for wrong in (0, -1, 5):
        table = interactions([[1, 2], [3, wrong]])
        with pytest.raises(ValueError, match=f"user 2 has item {wrong}, .*ids from 1 to 4"):
            fit(table, 4)
    with pytest.raises(ValueError, match="received user 1 in row 3, after user 2"):
        fit(THREE.iloc[[0, 1, 4, 2, 5]], 4)
    with pytest.raises(ValueError, match="received user 0 in row 0"):
        fit(THREE.assign(user_id=0), 4)
    for column in ("user_id", "item_id"):
        with pytest.raises(ValueError, match="integers, received float64"):
            fit(THREE.astype({column: float}), 4)
    newest_first = THREE.assign(timestamp=[3.5, 2.0, 1.0, 2.0, 1.0, 3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="received timestamp 2.0 of user 1 after 3.5. Sort by"):
        fit(newest_first, 4)
    fit(newest_first.assign(position=[0, 0, 1, 7, 7, 0, 1, 2]), 4)  # which decides


def test_what_fits_into_no_memory_is_refused_beforehand(monkeypatch):
    for fit in (item_knn, ease):
        with pytest.raises(ValueError, match="200,000 items .* 298.0 GiB .* at most 4.0"):
            fit(THREE, 200_000)
    assert item_knn(THREE, 20_000, neighbours=2).weights.nnz == 10
    monkeypatch.setattr(baselines, "LARGEST", 8 * 5 * 5)
    assert ease(THREE, 5).weights.shape == item_knn(THREE, 5).weights.shape == (5, 5)
    for fit in (item_knn, ease):
        with pytest.raises(ValueError, match="6 items"):
            fit(THREE, 6)


def test_options_are_checked():
    for neighbours in (0, -1):
        with pytest.raises(ValueError, match=f"at least 1.*received {neighbours}"):
            item_knn(THREE, 4, neighbours)
    for l2 in (0, -1):
        with pytest.raises(ValueError, match=f"positive.*received {l2}"):
            ease(THREE, 4, l2)


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
        item_knn(THREE, 4, neighbours=1).weights.toarray(),
        [[0, 1, c, c], [1, 0, c, c], [0, 0, 0, 0], [0, 0, 0, 0]],
    )


@pytest.mark.parametrize("block_bytes", [1, 12 * 25 * 7, 1 << 26])
@pytest.mark.parametrize("neighbours", [None, 3, 24, 25, 100])
def test_item_knn_in_blocks_is_the_definition(monkeypatch, neighbours, block_bytes):
    monkeypatch.setattr(baselines, "BLOCK_BYTES", block_bytes)
    generator = np.random.default_rng(0)
    table = interactions([generator.permutation(25)[: generator.integers(1, 9)] + 1
                          for _ in range(40)])  # fmt: skip
    x = history_matrix(table, 25).toarray()
    length = np.linalg.norm(x, axis=0)
    expected = x.T @ x / np.outer(length, length)
    np.fill_diagonal(expected, 0)
    if neighbours == 3:
        third = np.sort(expected, axis=0)[-3] - 1e-12
        expected = np.where(expected >= third, expected, 0)
    model = item_knn(table, 25, neighbours)
    history = history_matrix(table, 25)
    np.testing.assert_allclose(model.scores(history), x @ expected, atol=1e-12)


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


def test_smoothing_adds_steps_by_popularity():
    table = interactions([[1, 2, 3], [1, 2], [4, 1, 3], [3, 4], [2, 1]])
    scores = markov(table, 4, smoothing=24).scores(history_matrix(table, 4, tau=0))
    # Items 1 to 4 occur 4, 3, 3 and 2 times of 12, so 24 steps are 8, 6, 6 and 4 of them.
    counts = np.array([[0, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 2, 1, 0]])
    np.testing.assert_allclose(scores, counts + [8, 6, 6, 4])
    with pytest.raises(ValueError, match="smoothing must not be negative, received -1"):
        markov(table, 4, smoothing=-1)


def test_shrinkage_mistrusts_what_few_have_said():
    # Items 1 and 2 have 3 users in common; 3 and 4 one user each, who has 1 and 2.
    weights = item_knn(THREE, 4, shrinkage=2).weights
    np.testing.assert_allclose(weights[0], [0, 3 / (3 + 2), *[1 / (3**0.5 + 2)] * 2])
    np.testing.assert_allclose(weights[2], [1 / (3**0.5 + 2)] * 2 + [0, 0])
    with pytest.raises(ValueError, match="shrinkage must not be negative, received -1"):
        item_knn(THREE, 4, shrinkage=-1)


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
    dataset = SimpleNamespace(interactions=whole, num_items=20, num_users=20, repeats=False)
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


def random_split(num_users, num_items, seed=0):
    """Histories of two to eight items; the two that are held out are new ones."""
    generator = np.random.default_rng(seed)
    rows = [generator.permutation(num_items)[: generator.integers(4, 11)] + 1
            for _ in range(num_users)]  # fmt: skip
    whole = interactions(rows)
    left = whole.groupby("user_id").cumcount(ascending=False)
    dataset = SimpleNamespace(
        interactions=whole, num_items=num_items, num_users=num_users, repeats=False
    )
    return Split(dataset, whole[left > 1], whole[left == 1], whole[left == 0], "random")


@pytest.mark.parametrize("fit", [popularity, lambda *a: item_knn(*a, neighbours=4), markov])
def test_more_users_than_fit_into_a_block(fit):
    """One user at a time, and one item at a time."""
    split = random_split(num_users=2 * BLOCK_USERS + 88, num_items=30)
    model = fit(split.train, 30)
    for target in ("validation", "test"):
        ranks = ranks_from_baseline(split, model, target)
        shown = recommend_from_baseline(split, model, target, k=5)
        known = split.known(target)
        history = history_matrix(known, 30, model.tau)
        for user in range(1, split.dataset.num_users + 1):
            scores = model.scores(history[[user - 1]])[0]
            seen = set(known["item_id"][known["user_id"] == user])
            unseen = [item for item in range(1, 31) if item not in seen]
            best = sorted(unseen, key=lambda item: (-scores[item - 1], item))
            assert shown[user - 1].tolist() == best[:5]
            own = scores[split.targets(target)[user - 1] - 1]
            assert ranks[user - 1] == sum(scores[item - 1] >= own for item in unseen)


def test_scores_of_a_large_catalogue_are_computed_for_fewer_users_at_once(monkeypatch):
    split, sizes, scores = random_split(num_users=300, num_items=30), [], Baseline.scores
    model = ease(split.train, 30, tau=3)
    expected = ranks_from_baseline(split, model), recommend_from_baseline(split, model, k=5)
    monkeypatch.setattr(baselines, "BLOCK_BYTES", 8 * 30 * 7 + 1)
    monkeypatch.setattr(
        Baseline, "scores", lambda self, h: sizes.append(h.shape[0]) or scores(self, h)
    )
    found = ranks_from_baseline(split, model), recommend_from_baseline(split, model, k=5)
    assert max(sizes) == 7 and sum(sizes) == 2 * 300
    for values, same in zip(found, expected, strict=True):
        np.testing.assert_array_equal(values, same)
    monkeypatch.setattr(baselines, "BLOCK_BYTES", 100)  # less than a user's scores
    np.testing.assert_array_equal(ranks_from_baseline(split, model), expected[0])


def test_where_people_come_back_everything_competes(monkeypatch):
    split = random_split(num_users=300, num_items=30)
    nothing = split.train.iloc[:0]
    monkeypatch.setattr(Split, "seen", lambda self, target: nothing)
    model = item_knn(split.train, 30)
    scores = model.scores(history_matrix(split.known("test"), 30))
    shown = recommend_from_baseline(split, model, k=30)
    np.testing.assert_array_equal(shown, np.argsort(-scores, kind="stable", axis=1) + 1)
    own = scores[np.arange(300), split.targets("test") - 1]
    expected = (scores >= own[:, None]).sum(axis=1)
    np.testing.assert_array_equal(ranks_from_baseline(split, model), expected)


def test_recommending_never_shows_what_was_seen(monkeypatch):
    monkeypatch.setattr(baselines, "BLOCK_USERS", 7)
    split = random_split(num_users=300, num_items=12)
    seen = split.known("test").groupby("user_id").size()
    fewest = 12 - seen.max()
    model = popularity(split.train, 12)
    shown = recommend_from_baseline(split, model, k=fewest)
    pairs = set(zip(split.known("test")["user_id"], split.known("test")["item_id"], strict=True))
    assert not any((user, item) in pairs for user, row in enumerate(shown, 1) for item in row)
    message = f"user {seen.idxmax()} has {fewest} unseen items of 12, .* k = {fewest + 1}"
    with pytest.raises(ValueError, match=message):
        recommend_from_baseline(split, model, k=fewest + 1)


@pytest.fixture(scope="module")
def movielens_1m():
    if not in_a_data_folder("ml-1m-order", "ml-1m"):
        pytest.skip("MovieLens-1M is in none of the data folders")
    return leave_last_out(load_dataset("ml-1m-order", verbose=False), verbose=False)


@pytest.mark.parametrize(
    ("fit", "hit_rate", "ndcg"),
    [
        (popularity, 0.036, 0.018),
        (markov, 0.211, 0.124),
        (lambda *args: ease(*args, l2=1000, tau=3), 0.233, 0.129),
    ],
    ids=["popularity", "markov", "ease_recency"],
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
