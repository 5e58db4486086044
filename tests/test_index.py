"""Exact and approximate search against brute force, answers known by construction, and files."""

import copy
import json
import os
import pickle
import subprocess
import sys
import threading
from fractions import Fraction

import annoy
import numpy as np
import pandas as pd
import pytest

from recsys_helpers import index as index_module
from recsys_helpers.delta import DeltaIndex
from recsys_helpers.index import AnnoyIndex, ExactIndex, recommend
from recsys_helpers.metrics import recall

BOTH = pytest.mark.parametrize("kind", [ExactIndex, AnnoyIndex])


def catalogue(n=400, d=8, seed=0, spread=1.0):
    """Vectors whose lengths have a log-normal distribution; ids that are not 0..n-1."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(n, d)) * np.exp(spread * generator.normal(size=(n, 1)))
    ids = generator.permutation(10 * n)[:n] - n  # negative ones too
    return vectors.astype(np.float32), ids


def queries(b=20, d=8, seed=1):
    return np.random.default_rng(seed).normal(size=(b, d)).astype(np.float32)


def brute_force(vectors, ids, query, k, metric="dot", exclude=()):
    """Sort everything, one item at a time, in float64; the order of ids breaks ties."""
    scored = []
    for position, (vector, id) in enumerate(zip(vectors, ids, strict=True)):
        score = sum(float(a) * float(b) for a, b in zip(vector, query, strict=True))
        if metric == "cosine":
            score /= np.linalg.norm(vector.astype(float)) * np.linalg.norm(query.astype(float))
        if id not in exclude:
            scored.append((-score, position, id))
    best = sorted(scored)[:k]
    return [id for _, _, id in best], [-score for score, _, _ in best]


# Exact search


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_exact_search_is_brute_force(metric):
    vectors, ids = catalogue()
    index = ExactIndex(metric).build(vectors, ids)
    found, scores = index.query(queries(), 7)
    for row, query in enumerate(queries()):
        expected, expected_scores = brute_force(vectors, ids, query, 7, metric)
        assert found[row].tolist() == expected
        np.testing.assert_allclose(scores[row], expected_scores, rtol=1e-6)


def test_a_hand_worked_example():
    vectors, ids = [[10, 0], [0, 10], [11, 0], [1, 1]], [7, 8, 9, 10]
    found, scores = ExactIndex("dot").build(vectors, ids).query([2.0, 1.0], 4)
    assert found.tolist() == [9, 7, 8, 10] and scores.tolist() == [22, 20, 10, 3]
    found, scores = ExactIndex("cosine").build(vectors, ids).query([2.0, 1.0], 4)
    assert found.tolist() == [10, 7, 9, 8]
    np.testing.assert_allclose(scores, np.array([3 / 2**0.5, 2, 2, 1]) / 5**0.5, rtol=1e-6)


@BOTH
def test_equal_scores_come_in_the_order_of_build(kind):
    """A few hundred copies of three vectors: rounding must not decide among the copies."""
    generator = np.random.default_rng(0)
    which = generator.integers(0, 3, 300)
    vectors = generator.normal(size=(3, 33))[which]
    ids = generator.permutation(300)
    index = kind().build(vectors, ids)
    if kind is AnnoyIndex:
        index.search_k = 10**6  # everything is inspected
    for query in generator.normal(size=(5, 33)):
        best = int(np.argmax(vectors @ query))
        copies = ids[which == which[best]]
        k = len(copies) if kind is AnnoyIndex else 12
        found, scores = index.query(query, k)
        assert found.tolist() == copies[:k].tolist() and len(set(scores.tolist())) == 1
        scores = (vectors @ query).astype(np.float32)
        assert (
            index.query(query, 300)[0].tolist() == ids[np.argsort(-scores, kind="stable")].tolist()
        )
        in_batch, _ = index.query(np.tile(query, (70, 1)), k)  # another kernel of the product
        assert (in_batch == copies[:k]).all()


@BOTH
def test_scores_that_only_rounding_tells_apart_are_equal(kind):
    """The same numbers in another order have the same sum, but not in float32."""
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=33)
    vectors = np.array([generator.permutation(numbers) for _ in range(200)])
    ids = generator.permutation(200)
    index = kind().build(vectors, ids)
    found, scores = index.query(np.ones(33), 200)
    assert found.tolist() == ids.tolist() and len(set(scores.tolist())) == 1
    if kind is ExactIndex:
        assert index.query(np.ones(33), 9)[0].tolist() == ids[:9].tolist()


def test_exact_search_does_not_trust_float32_products():
    """The best item wins by less than a float32 product over 512 terms can tell apart."""
    generator = np.random.default_rng(3)
    query = generator.normal(size=512)
    items = np.repeat(generator.normal(size=(1, 512)), 150, axis=0).astype(np.float32)
    rows = np.arange(150)
    items[rows, rows] = np.nextafter(items[rows, rows], np.float32(np.inf))
    truth = [
        sum(Fraction(float(a)) * Fraction(b) for a, b in zip(items[row], query, strict=True))
        for row in rows
    ]
    rounded = np.array([np.float32(float(score)) for score in truth])
    expected = np.lexsort((rows, -rounded))
    found, scores = ExactIndex().build(items, rows).query(query, 20)
    assert found.tolist() == expected[:20].tolist()
    np.testing.assert_array_equal(scores, rounded[expected[:20]])


def test_blocks_change_nothing(monkeypatch):
    vectors, ids = catalogue()
    whole = ExactIndex().build(vectors, ids).query(queries(), 9)
    monkeypatch.setattr("recsys_helpers.index.BLOCK_BYTES", 4 * len(ids) * 3)
    for one, other in zip(whole, ExactIndex().build(vectors, ids).query(queries(), 9), strict=True):
        np.testing.assert_array_equal(one, other)


# Annoy


@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
def test_annoy_that_inspects_everything_is_exact(metric, spread):
    """The reduction of inner product to angle preserves the order, whatever the lengths."""
    vectors, ids = catalogue(n=1000, d=16, spread=spread)
    exact = ExactIndex(metric).build(vectors, ids).query(queries(d=16), 10)
    annoy_index = AnnoyIndex(metric, n_trees=5, search_k=10**6).build(vectors, ids)
    approximate = annoy_index.query(queries(d=16), 10)
    np.testing.assert_array_equal(approximate[0], exact[0])
    np.testing.assert_array_equal(approximate[1], exact[1])


def test_angles_after_lifting_have_the_order_of_the_inner_products():
    """Checked on what Annoy is given, in float64, with lengths over eight orders of magnitude."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(500, 6)) * 10.0 ** generator.uniform(-4, 4, size=(500, 1))
    index = AnnoyIndex("dot", n_trees=1).build(vectors, np.arange(500))
    lifted = index._lifted(0, 500)
    np.testing.assert_allclose(np.linalg.norm(lifted, axis=1), 1, rtol=1e-12)
    for query in generator.normal(size=(10, 6)):
        cosines = lifted @ np.append(query, 0) / np.linalg.norm(query)
        products = index.vectors.astype(np.float64) @ query
        longest = np.linalg.norm(index.vectors.astype(np.float64), axis=1).max()
        expected = products / (np.linalg.norm(query) * longest)
        np.testing.assert_allclose(cosines, expected, rtol=1e-12, atol=1e-30)


def clustered(n=5000, d=32, kinds=40, spread=0.4, seed=0):
    """What trained vectors look like: directions in bunches, lengths that differ."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(kinds, d))
    vectors = centres[generator.integers(0, kinds, n)] + 0.5 * generator.normal(size=(n, d))
    vectors *= np.exp(spread * generator.normal(size=(n, 1)))
    asked = centres[generator.integers(0, kinds, 100)] + 0.5 * generator.normal(size=(100, d))
    return vectors.astype(np.float32), asked.astype(np.float32)


def test_recall_grows_with_the_effort():
    """Directions without any structure: the hardest case, so that there is room to grow."""
    vectors, ids = catalogue(n=5000, d=32, spread=0.3)
    asked = queries(b=100, d=32)
    best, _ = ExactIndex().build(vectors, ids).query(asked, 10)
    index = AnnoyIndex(n_trees=20, seed=1).build(vectors, ids)
    reached = []
    for index.search_k in (50, 400, 2000, 20_000):
        reached.append(recall(index.query(asked, 10)[0], best))
    assert (np.diff(reached) > 0.02).all() and reached[-1] > 0.97
    few, many = (AnnoyIndex(n_trees=trees, seed=1).build(vectors, ids) for trees in (2, 50))
    assert recall(few.query(asked, 10)[0], best) < recall(many.query(asked, 10)[0], best) - 0.3


def test_annoys_own_dot_is_still_broken():
    """Why this package lifts the vectors itself (spotify/annoy#619; corrected in #628).

    If the last line fails after an update of Annoy, its `dot` was repaired: tell the chapters.
    """
    vectors, asked = clustered(kinds=10)
    best, _ = ExactIndex().build(vectors, np.arange(len(vectors))).query(asked, 10)
    ours = AnnoyIndex(n_trees=10, search_k=200, seed=1).build(vectors, np.arange(len(vectors)))
    theirs = annoy.AnnoyIndex(vectors.shape[1], "dot")
    theirs.set_seed(1)
    for row, vector in enumerate(vectors):
        theirs.add_item(row, vector)
    theirs.build(10, n_jobs=1)
    found = [theirs.get_nns_by_vector(query, 10, search_k=200) for query in asked]
    assert recall(ours.query(asked, 10)[0], best) > 0.97
    assert recall(found, best) < 0.6


def test_plain_angles_answer_another_question():
    vectors, asked = clustered(spread=1.0)
    ids = np.arange(len(vectors))
    best, _ = ExactIndex("dot").build(vectors, ids).query(asked, 10)
    assert recall(ExactIndex("cosine").build(vectors, ids).query(asked, 10)[0], best) < 0.5


@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1.0, 1e6, 1e18])
def test_neither_scale_matters(scale):
    """Annoy squares in float32, where 1e-24 squared is nothing and 1e24 squared is infinite."""
    vectors, ids = catalogue(d=16)
    annoy_index = AnnoyIndex(n_trees=10, search_k=10**5).build(vectors * np.float32(scale), ids)
    asked = queries(d=16)
    expected = ExactIndex().build(vectors, ids).query(asked, 10)[0]
    np.testing.assert_array_equal(annoy_index.query(asked, 10)[0], expected)
    unscaled = AnnoyIndex(n_trees=10, search_k=10**5).build(vectors, ids)
    asked = asked.astype(np.float64) * scale**2
    np.testing.assert_array_equal(unscaled.query(asked, 10)[0], expected)


def test_zero_vectors_have_score_zero():
    vectors = np.zeros((5, 3))
    for kind in (ExactIndex, AnnoyIndex):
        for metric in ("dot", "cosine"):
            found, scores = kind(metric).build(vectors, np.arange(5)).query(np.ones(3), 5)
            assert found.tolist() == [0, 1, 2, 3, 4] and (scores == 0).all()
            index = kind(metric).build(np.eye(3), [1, 2, 3])
            found, scores = index.query(np.zeros(3), 3)
            assert sorted(found) == [1, 2, 3] and (scores == 0).all()


def test_builds_are_repeatable_and_seeds_matter(tmp_path):
    vectors, ids = catalogue(n=2000, d=16)

    def forest(name, seed):
        AnnoyIndex(n_trees=5, seed=seed).build(vectors, ids).save(tmp_path / name)
        (file,) = (tmp_path / name).glob("forest-*.ann")
        return file.read_bytes()

    assert forest("one", 1) == forest("two", 1)
    assert forest("one", 1) != forest("three", 2)


def test_the_same_bytes_in_another_process(tmp_path):
    vectors, ids = catalogue(n=500, d=4)
    np.save(tmp_path / "v.npy", vectors)
    np.save(tmp_path / "i.npy", ids)
    code = (
        "import sys, numpy as np\nfrom recsys_helpers.index import AnnoyIndex\n"
        "v, i, out = sys.argv[1:]\n"
        "AnnoyIndex(n_trees=3, seed=5).build(np.load(v), np.load(i)).save(out)\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
    )
    files = [str(tmp_path / name) for name in ("v.npy", "i.npy", "there")]
    subprocess.run([sys.executable, "-c", code, *files], check=True)
    AnnoyIndex(n_trees=3, seed=5).build(vectors, ids).save(tmp_path / "here")
    (here,), (there,) = ((tmp_path / name).glob("forest-*.ann") for name in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()


# One query, a batch, and what is excluded


@BOTH
def test_a_batch_is_its_rows(kind):
    vectors, ids = catalogue()
    index = kind().build(vectors, ids)
    found, scores = index.query(queries(), 6)
    assert found.shape == scores.shape == (20, 6)
    assert found.dtype == np.int64 and scores.dtype == np.float32
    for row, query in enumerate(queries()):
        single = index.query(query, 6)
        np.testing.assert_array_equal(single[0], found[row])
        np.testing.assert_array_equal(single[1], scores[row])
    assert index.query(np.empty((0, 8)), 6)[0].shape == (0, 6)


@BOTH
def test_excluded_items_are_replaced_by_the_next_best(kind):
    vectors, ids = catalogue()
    index = kind().build(vectors, ids)
    if kind is AnnoyIndex:
        index.search_k = 10**6
    asked = queries()
    best = [brute_force(vectors, ids, query, 30)[0] for query in asked]
    exclude = [row[: 2 + i % 3] + row[6:8] + [10**9, 10**9] for i, row in enumerate(best)]
    found, scores = index.query(asked, 10, exclude=exclude)
    for row, query in enumerate(asked):
        expected, expected_scores = brute_force(vectors, ids, query, 10, exclude=exclude[row])
        assert found[row].tolist() == expected
        np.testing.assert_allclose(scores[row], expected_scores, rtol=1e-6)
        for collection in (exclude[row], set(exclude[row]), np.array(exclude[row])):
            assert index.query(query, 10, exclude=collection)[0].tolist() == expected
    mixed = index.query(asked[:2], 3, exclude=[[], set(best[1][:1])])[0]
    assert mixed.tolist() == [best[0][:3], best[1][1:4]]


@BOTH
def test_everything_but_k_items_may_be_excluded(kind):
    vectors, ids = catalogue(n=300)
    index = kind().build(vectors, ids)
    keep, others = ids[:4], [*ids[4:], -(10**9), 10**9]
    found, _ = index.query(queries()[0], 4, exclude=others)
    assert sorted(found) == sorted(keep)
    with pytest.raises(ValueError, match="only 4 of the 300 items are left"):
        index.query(queries()[0], 5, exclude=others)
    with pytest.raises(ValueError, match="only 4 of the 300 items are left"):
        index.query(queries()[:1], 5, exclude=[others])


@BOTH
def test_recommending_leaves_out_what_each_user_knows(kind):
    vectors, _ = catalogue(n=60)
    index = kind().build(vectors, np.arange(1, 61))
    asked = queries(b=4)
    best = index.query(asked, 6)[0]
    # Users 1 and 3 know their best two, user 2 nothing, user 4 the second.
    rows = [(u + 1, i) for u, known in enumerate([best[0, :2], [], best[2, :2], best[3, 1:2]])
            for i in known]  # fmt: skip
    known = pd.DataFrame(rows, columns=["user_id", "item_id"])
    expected = np.array([best[0, 2:], best[1, :4], best[2, 2:], best[3, [0, 2, 3, 4]]])
    np.testing.assert_array_equal(recommend(index, asked, known, k=4), expected)
    mixed = pd.concat([known.iloc[::-1], known])  # in any order, and twice
    np.testing.assert_array_equal(recommend(index, asked, mixed, k=4), expected)
    some = [4, 1, 4, 2]
    shown = recommend(index, asked[[3, 0, 3, 1]], mixed, k=4, users=some)
    np.testing.assert_array_equal(shown, expected[[3, 0, 3, 1]])
    shown = recommend(index, asked, known.iloc[:0], k=6)  # nobody knows anything
    np.testing.assert_array_equal(shown, best)
    np.testing.assert_array_equal(recommend(index, asked, known, k=6, users=[7, 8, 9, 10]), best)
    assert recommend(index, asked[:0], known, users=[]).shape == (0, 10)


@BOTH
def test_recommending_names_the_user_who_does_not_fit(kind):
    index = kind().build(np.eye(6), np.arange(1, 7))
    asked = np.ones((3, 6))
    known = pd.DataFrame({"user_id": [1, 2, 2, 2, 2, 3], "item_id": [1, 3, 4, 5, 5, 6]})
    assert recommend(index, asked, known, k=3).shape == (3, 3)
    with pytest.raises(ValueError, match=r"user 2: .*k = 4 items.*only 3 of the 6"):
        recommend(index, asked, known, k=4)
    assert recommend(index, asked[:2], known, k=4, users=[3, 1]).shape == (2, 4)
    with pytest.raises(ValueError, match="user 2: .*NaN or infinity"):
        recommend(index, asked * [[1], [np.nan], [1]], known, k=3)
    for wrong in (asked[:2], np.ones((4, 6))):
        with pytest.raises(ValueError, match=rf"{len(wrong)} vectors, and in known users 1 to 3"):
            recommend(index, wrong, known, k=3)
    with pytest.raises(ValueError, match="users 0 to 3"):
        recommend(index, asked, known.replace({"user_id": {1: 0}}), k=3)
    for users in ([1, 2], [0, 1, 2], [1.0, 2.0, 3.0], [[1, 2, 3]]):
        with pytest.raises(ValueError, match="users must be 3 ids from 1"):
            recommend(index, asked, known, k=3, users=users)
    with pytest.raises(ValueError, match="integers, received .*float64"):
        recommend(index, asked, known.astype({"item_id": float}), k=3)


def test_a_small_search_k_still_gives_k_items():
    vectors, ids = catalogue(n=3000)
    index = AnnoyIndex(n_trees=2, search_k=1).build(vectors, ids)
    found, scores = index.query(queries()[0], 900)
    assert len(set(found.tolist())) == 900 and (np.diff(scores) <= 0).all()
    best = ExactIndex().build(vectors, ids).query(queries()[0], 100)[0]
    found, _ = index.query(queries()[0], 10, exclude=best)
    assert len(set(found.tolist())) == 10 and not set(found.tolist()) & set(best.tolist())
    assert len(set(index.query(queries()[0], 3000)[0].tolist())) == 3000


@BOTH
def test_later_changes_of_the_arrays_do_not_reach_the_index(kind):
    vectors, ids = catalogue()
    index = kind().build(vectors, ids)
    before = index.query(queries(), 5)
    vectors *= -1
    ids += 1
    after = index.query(queries(), 5)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])


# Errors


@BOTH
@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        (np.empty((0, 4)), np.empty(0, int), r"at least one item.*received shape \(0, 4\)"),
        (np.ones((3, 0)), np.arange(3), r"one dimension.*received shape \(3, 0\)"),
        (np.ones(3), np.arange(3), r"received shape \(3,\)"),
        (np.ones((3, 2)), np.arange(4), r"integer ids.*shape \(3, 2\) and int64 ids of \(4,\)"),
        (np.ones((3, 2)), np.arange(3.0), "received .* float64 ids"),
        (np.ones((3, 2)), ["a", "b", "c"], "integer ids"),
        (np.ones((3, 2)), [5, 6, 5], "distinct, but 5 occurs 2 times"),
        ([[0, 1], [2, np.nan], [3, 4]], [7, 8, 9], r"NaN.*row 1 \(id 8\)"),
        ([[0, 1], [2, 3], [-np.inf, 4]], [7, 8, 9], r"infinite.*row 2 \(id 9\)"),
        ([[0, 1e39], [2, 3], [3, 4]], [7, 8, 9], r"too large.*row 0 \(id 7\)"),
        (np.ones((2, 2)), np.array([1, 2**63 + 5], "uint64"), f"fit into int64.*{2**63 + 5}"),
    ],
)
def test_build_says_what_is_wrong(kind, vectors, ids, message):
    with pytest.raises(ValueError, match=message):
        kind().build(np.array(vectors), np.array(ids))


@BOTH
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_query_says_what_is_wrong(kind, metric):
    index = kind(metric).build(np.eye(4), np.arange(4))
    with pytest.raises(ValueError, match=r"shape \[4\] or \[b, 4\], received shape \(5,\)"):
        index.query(np.ones(5), 1)
    with pytest.raises(ValueError, match=r"received shape \(2, 3\)"):
        index.query(np.ones((2, 3)), 1)
    with pytest.raises(ValueError, match="received shape"):
        index.query(np.ones((1, 1, 4)), 1)
    for k in (0, 5, -1, 2.0, "2", None):
        with pytest.raises(ValueError, match=rf"integer, 1 to 4 \(all items\), received {k!r}"):
            index.query(np.ones(4), k)
    for bad in (np.nan, np.inf, -np.inf):
        for query in ([1, bad, 0, 0], [bad, 1, 1, -bad]):
            with pytest.raises(ValueError, match="NaN or infinity"):
                index.query(np.array(query), 1)
            with pytest.raises(ValueError, match="NaN or infinity"):
                index.query(np.array([[1, 0, 0, 0], query]), 1)
    for query, exclude, message in (
        (np.ones((2, 4)), [[1], [2], [3]], r"2 lists of ids, one a row; received 3: \[\[1\], \[2"),
        (np.ones((2, 4)), [1, 2], r"2 lists of ids, one a row; received 2: \[1, 2\]"),
        (np.ones((2, 4)), 5, r"2 lists of ids, one a row; received 1: \[5\]"),
        (np.ones(4), 5, r"1 lists of ids, one a row; received 1: \[5\]"),
        (np.ones(4), [2.0], "exclude must hold integer ids: .*float"),
        (np.ones((1, 4)), [np.array([2.7])], "exclude must hold integer ids: .*float"),
        (np.ones(4), ["1"], "exclude must hold integer ids: .*str"),
    ):
        with pytest.raises(ValueError, match=message):
            index.query(query, 1, exclude)
        with pytest.raises(ValueError, match=message):
            DeltaIndex(index).query(query, 1, exclude)


@BOTH
def test_excluding_what_no_index_could_hold_does_no_harm(kind):
    index = kind().build(np.eye(3), np.array([4, 5, 6], "uint64"))
    unknown = [2**70, -(2**70), 2**63, 5]
    for asked in (index, DeltaIndex(index), DeltaIndex(index).add(np.ones((1, 3)), [-(2**63)])):
        assert asked.query([0, 2, 1], 1, unknown)[0].tolist() == asked.query([0, 2, 1], 1, [5])[0]
        assert 5 not in asked.query([0, 2, 1], 2, np.array([5, 2**63], "uint64"))[0]
        (nothing, some), _ = asked.query([[0, 2, 1]] * 2, 2, [None, unknown])
        np.testing.assert_array_equal(nothing, asked.query([0, 2, 1], 2)[0])
        np.testing.assert_array_equal(some, asked.query([0, 2, 1], 2, [5])[0])
    with pytest.raises(ValueError, match="only 2 of the 3 items are left"):
        index.query([0, 2, 1], 3, unknown)


@BOTH
def test_an_index_must_be_built_first(kind, tmp_path):
    with pytest.raises(ValueError, match="build"):
        kind().query(np.ones(3), 1)
    with pytest.raises(ValueError, match="build"):
        kind().save(tmp_path / "index")
    assert len(kind()) == 0


def test_options_are_checked():
    for kind in (ExactIndex, AnnoyIndex):
        with pytest.raises(ValueError, match="'angular'"):
            kind("angular")
    for options in ({"n_trees": 0}, {"n_trees": -1}, {"search_k": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="at least 1"):
            AnnoyIndex(**options)
    with pytest.raises(ValueError, match=rf"the seed from 0 to 2\*\*31 - 1.* and {2**31}\."):
        AnnoyIndex(seed=2**31)
    AnnoyIndex(n_trees=1, seed=2**31 - 1).build(np.eye(2), [1, 2])


def test_numpys_numbers_are_saved_as_others(tmp_path):
    one, other, seed = map(np.int64, (3, 60, 5))
    AnnoyIndex("dot", one, other, seed).build(np.eye(4), np.arange(4)).save(tmp_path)
    index = AnnoyIndex.load(tmp_path)
    assert [type(n) for n in (index.n_trees, index.search_k, index.seed)] == [int] * 3
    assert (index.n_trees, index.search_k, index.seed) == (3, 60, 5)


# Files


@BOTH
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_round_trip(kind, metric, tmp_path):
    vectors, ids = catalogue()
    options = {"n_trees": 7, "search_k": 60, "seed": 3} if kind is AnnoyIndex else {}
    index = kind(metric, **options).build(vectors, ids)
    before = index.query(queries(), 8, exclude=[ids[:5]] * 20)
    index.save(tmp_path / "a" / "folder")
    loaded = kind.load(tmp_path / "a" / "folder")
    for one in (index, loaded):  # saving does not disturb the index that was saved
        after = one.query(queries(), 8, exclude=[ids[:5]] * 20)
        np.testing.assert_array_equal(before[0], after[0])
        np.testing.assert_array_equal(before[1], after[1])
    assert len(loaded) == 400 and loaded.dimension == 8 and loaded.metric == metric
    assert isinstance(loaded.vectors.base, np.memmap)  # processes share it
    for name, value in options.items():
        assert getattr(loaded, name) == value
    loaded.save(tmp_path / "again")
    again = kind.load(tmp_path / "again").query(queries(), 8, exclude=[ids[:5]] * 20)
    np.testing.assert_array_equal(before[0], again[0])


@BOTH
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_pickles_and_copies_give_equal_answers(kind, metric, tmp_path):
    vectors, ids = catalogue(n=2000)
    options = {"n_trees": 3, "search_k": 60, "seed": 3} if kind is AnnoyIndex else {}
    index = kind(metric, **options).build(vectors, ids)
    index.save(tmp_path)
    for original in (index, kind.load(tmp_path)):
        for twin in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original)):
            for one, other in zip(index.query(queries(), 8), twin.query(queries(), 8), strict=True):
                np.testing.assert_array_equal(one, other)
            assert vars(twin).keys() == vars(index).keys()
            twin.build(vectors[:5], ids[:5])
            assert len(twin) == 5 and len(original) == 2000
    with pytest.raises(ValueError, match="build"):
        copy.deepcopy(kind(metric)).query(np.ones(8), 1)


@pytest.fixture
def saved(tmp_path):
    vectors, ids = catalogue()
    AnnoyIndex(n_trees=3, seed=1).build(vectors, ids).save(tmp_path / "index")
    return tmp_path / "index"


@pytest.mark.parametrize("n", [1, 2, 9, 10, 11, 12, 25])
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_catalogues_as_small_as_a_leaf(n, metric, tmp_path):
    """Annoy's leaves hold two items more than there are dimensions; then a tree is one leaf."""
    vectors, ids = catalogue(n=n, d=8)
    AnnoyIndex(metric, n_trees=4).build(vectors, ids).save(tmp_path)
    index = AnnoyIndex.load(tmp_path)
    for query in queries():
        assert index.query(query, n)[0].tolist() == brute_force(vectors, ids, query, n, metric)[0]


def test_metadata_says_what_is_saved(saved):
    metadata = json.loads((saved / "metadata.json").read_text())
    expected = {"index": "AnnoyIndex", "metric": "dot", "n_trees": 3, "seed": 1, "search_k": None}
    assert {name: metadata[name] for name in expected} == expected
    assert {path.name for path in saved.iterdir()} == {"metadata.json"} | {
        file["name"] for file in metadata["files"].values()
    }


@pytest.mark.parametrize("file", ["forest", "vectors", "ids"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "missing"])
def test_damaged_files_are_refused(saved, tmp_path, file, damage):
    (path,) = saved.glob(f"{file}-*")
    content = path.read_bytes()
    error, message = ValueError, f"{path.name} is not what was saved: .* build the index anew"
    if damage == "truncated":
        path.write_bytes(content[: -len(content) // 3])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":  # of the same size, from an index of other items
        vectors, ids = catalogue(seed=9)
        AnnoyIndex(n_trees=3, seed=1).build(vectors, ids).save(tmp_path / "other")
        (other,) = (tmp_path / "other").glob(f"{file}-*")
        path.write_bytes(other.read_bytes()[: len(content)])
    else:
        path.unlink()
        error, message = FileNotFoundError, file
    with pytest.raises(error, match=message):
        AnnoyIndex.load(saved)


def test_both_ends_of_large_files_are_looked_at(tmp_path):
    generator = np.random.default_rng(0)
    ExactIndex().build(generator.normal(size=(5000, 16)), np.arange(5000)).save(tmp_path)
    (path,) = tmp_path.glob("vectors-*")
    content = path.read_bytes()
    middle = slice(len(content) // 2, len(content) // 2 + 640)
    for damaged in (
        content[:200] + b"!" + content[201:],
        content[:-200] + b"!" + content[-199:],
        content[: middle.start] + content[middle.stop :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not what was saved"):
            ExactIndex.load(tmp_path)


def test_metadata_that_does_not_fit_is_refused(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no saved index"):
        AnnoyIndex.load(tmp_path)
    with pytest.raises(ValueError, match="holds an AnnoyIndex, expected ExactIndex"):
        ExactIndex.load(saved)
    for text in ("", "{", "[]", '"index"', "{}"):
        (saved / "metadata.json").write_text(text)
        with pytest.raises(ValueError, match="metadata.json"):
            AnnoyIndex.load(saved)


def test_metadata_of_somebody_elses_stays(tmp_path):
    (tmp_path / "metadata.json").write_text('{"files": ["holiday.jpg"]}')
    with pytest.raises(ValueError, match="metadata.json is not of an index: .* in another folder"):
        ExactIndex().build(np.eye(2), [1, 2]).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metadata.json"]
    assert "holiday" in (tmp_path / "metadata.json").read_text()


@pytest.mark.parametrize("lacking", ["seed", "longest", "vectors.npy", "forest.ann"])
def test_metadata_that_does_not_say_all_is_refused(saved, lacking):
    metadata = json.loads((saved / "metadata.json").read_text())
    (metadata["files"] if "." in lacking else metadata).pop(lacking)
    (saved / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=rf"metadata.json lacks \['{lacking}'\]\. Build the index"):
        AnnoyIndex.load(saved)


def save_in_turn(folder, times):
    vectors, ids = catalogue(n=50, d=4)
    one, other = (AnnoyIndex(n_trees=2, seed=seed).build(vectors, ids) for seed in (1, 2))
    for _ in range(times):
        one.save(folder)
        other.save(folder)


def test_loading_never_fails_while_somebody_saves(tmp_path):
    vectors, ids = catalogue(n=50, d=4)
    save_in_turn(tmp_path, 1)
    expected = ExactIndex().build(vectors, ids).query(vectors[0], 50)[0]
    saver = threading.Thread(target=save_in_turn, args=(tmp_path, 60))
    saver.start()
    while saver.is_alive():
        found, _ = AnnoyIndex.load(tmp_path).query(vectors[0], 50)
        assert found.tolist() == expected.tolist()


def test_a_load_whose_files_are_replaced_starts_again(saved, monkeypatch):
    """The saver comes between the metadata and the files that it names."""
    vectors, ids = catalogue(seed=5)
    new = AnnoyIndex(n_trees=3).build(vectors, ids)
    seal = index_module._seal

    def replaced_meanwhile(path):
        monkeypatch.setattr(index_module, "_seal", seal)
        new.save(saved)
        return seal(path)

    monkeypatch.setattr(index_module, "_seal", replaced_meanwhile)
    found = AnnoyIndex.load(saved).query(queries(), 5)[0]
    np.testing.assert_array_equal(found, new.query(queries(), 5)[0])


def test_saving_replaces_the_old_index_and_nothing_else(saved):
    others = {saved / "notes-2024.npy": b"mine", saved / "other-forest.ann": b"mine too"}
    for path, content in others.items():
        path.write_bytes(content)
    reader = AnnoyIndex.load(saved)
    before = reader.query(queries(), 5)
    vectors, ids = catalogue(seed=5)
    AnnoyIndex(n_trees=3).build(vectors, ids).save(saved)
    assert {path: path.read_bytes() for path in others} == others
    assert len(list(saved.iterdir())) == 4 + len(others)
    np.testing.assert_array_equal(reader.query(queries(), 5)[0], before[0])  # it keeps the old one
    new = AnnoyIndex.load(saved).query(queries(), 5)
    assert (new[0] != before[0]).any()


@pytest.mark.parametrize("fails_at", ["ids", "vectors", "forest", "metadata"])
def test_a_save_that_fails_leaves_the_old_index(saved, monkeypatch, fails_at):
    before = AnnoyIndex.load(saved).query(queries(), 5)
    files = sorted(path.name for path in saved.iterdir())
    vectors, ids = catalogue(seed=5)
    index = AnnoyIndex(n_trees=3).build(vectors, ids)
    seal = index_module._seal

    def full_disk(path, *_):
        if path.name.startswith(fails_at):
            raise OSError("No space left on device")
        return seal(path)

    monkeypatch.setattr(index_module, "_seal", full_disk)
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        index.save(saved)
    monkeypatch.undo()
    assert sorted(path.name for path in saved.iterdir()) == files
    np.testing.assert_array_equal(AnnoyIndex.load(saved).query(queries(), 5)[0], before[0])
    index.save(saved)
    assert len(list(saved.iterdir())) == len(files)
    found = AnnoyIndex.load(saved).query(queries(), 5)[0]
    np.testing.assert_array_equal(found, index.query(queries(), 5)[0])
