"""A version answers as its model; a folder never shows half of one; the service never mixes two."""

import errno
import importlib
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from recsys_helpers import serving, versions
from recsys_helpers.datasets import Dataset
from recsys_helpers.delta import DeltaIndex
from recsys_helpers.index import AnnoyIndex, ExactIndex, recommend
from recsys_helpers.samples import training_samples
from recsys_helpers.served_tower import ExportedTower, NumpyTower, served_tower
from recsys_helpers.serving import Query, Version, make_version
from recsys_helpers.splits import leave_last_out
from recsys_helpers.towers.dssm import DSSMUserTower
from recsys_helpers.towers.self_attention import SelfAttentiveUserTower
from recsys_helpers.towers.youtubednn import ItemEmbeddingTower, YouTubeDNNUserTower
from recsys_helpers.two_tower import TwoTower
from recsys_helpers.versions import load_newest, numbers, publish

ROOT = Path(__file__).resolve().parent.parent
DIM, ITEMS, USERS = 8, 300, 40
FIELDS = ["gender", "age", "likes"]


def make_samples(repeats="first", **options):
    """A log of random choices; ids are not ours, some titles and years are missing."""
    rng = np.random.default_rng(1)
    rows = [
        {"user_id": f"u{user}", "item_id": int(item) * 10 + 1, "position": place}
        for user in range(USERS)
        for place, item in enumerate(rng.permutation(ITEMS)[: 12 + user])
    ]
    rows += [
        {"user_id": f"x{user}", "item_id": item * 10 + 1, "position": item}
        for user in range(3)
        for item in range(ITEMS)
    ]
    users = pd.DataFrame({"user_id": pd.unique(pd.DataFrame(rows)["user_id"])})
    users["gender"] = [["F", "M", None][i % 3] for i in range(len(users))]
    users["age"] = [20 + i for i in range(len(users))]
    users["likes"] = [["tea", "rum"][: i % 3] for i in range(len(users))]
    items = pd.DataFrame({"item_id": np.arange(ITEMS) * 10 + 1})
    items["title"] = [f"Film {i} – é" if i % 7 else None for i in range(ITEMS)]
    items["year"] = [1990 + i % 10 if i % 5 else None for i in range(ITEMS)]
    items["genres"] = [["Drama", "War"][: 1 + (i % 31 == 0)] if i % 3 else [] for i in range(ITEMS)]
    log = pd.DataFrame(rows)
    dataset = Dataset.from_tables(log, users, items, repeats=repeats, verbose=False)
    split = leave_last_out(dataset, 1, verbose=False)
    return training_samples(split, history_length=6, user_fields=FIELDS, **options)


def make_model(samples, tower=YouTubeDNNUserTower, **options):
    items = samples.split.dataset.num_items
    item_tower = ItemEmbeddingTower(items, DIM)
    model = TwoTower(tower(samples.sizes, DIM, **options), item_tower, items)
    model({name: values[:1] for name, values in samples.inputs.items()})
    for variable in model.trainable_variables:  # zeros hide mistakes
        noise = np.random.default_rng(len(variable.shape)).normal(size=variable.shape)
        variable.assign(variable + 0.3 * noise - 0.2)
    return model


@pytest.fixture(scope="module")
def samples():
    return make_samples()


@pytest.fixture(scope="module")
def model(samples):
    return make_model(samples, example_age_scale=2.0)


def make(samples, model, kind=AnnoyIndex, **options):
    index = kind("cosine", **options)
    index.build(model.item_vectors(), np.arange(1, samples.split.dataset.num_items + 1))
    return make_version(model, samples, index)


@pytest.fixture(scope="module")
def version(samples, model):
    return make(samples, model, n_trees=1, search_k=10_000)


@pytest.fixture
def folder(version, tmp_path):
    publish(version, tmp_path / "versions")
    return tmp_path / "versions"


# The tower


@pytest.mark.parametrize(
    ("tower", "options"),
    [
        (YouTubeDNNUserTower, {"example_age_scale": 3.0}),
        (YouTubeDNNUserTower, {"recency": False, "last": 0, "normalize": False}),
        (YouTubeDNNUserTower, {"hidden": (16, 12), "fields": [], "recency": 3}),
        (DSSMUserTower, {}),
        (DSSMUserTower, {"hidden": (), "last": 6}),
    ],
)
def test_numpy_computes_what_keras_does(samples, tower, options):
    model = make_model(samples, tower, **options)
    rows = np.r_[:15, -15:0]  # histories of one item and more, and full ones
    inputs = {name: values[rows] for name, values in samples.inputs.items()}
    inputs["example_age"] = inputs["example_age"] + np.arange(30, dtype="float32")[:, None]
    served = served_tower(model)
    assert isinstance(served, NumpyTower)
    expected = model.user_vectors(inputs)
    np.testing.assert_allclose(served.user_vectors(inputs), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - expected[0]).max() > 0.01


def test_windows_of_a_longer_row_and_shorter_histories():
    samples = make_samples(positions=4)
    model = make_model(samples)
    inputs = samples.serving_inputs("test")
    assert inputs["history"].shape[1] == 9  # the tower reads six of them
    served = served_tower(model)
    np.testing.assert_allclose(served.user_vectors(inputs), model.user_vectors(inputs), atol=2e-6)
    short = inputs | {"history": inputs["history"][:, -3:]}
    np.testing.assert_allclose(served.user_vectors(short), model.user_vectors(short), atol=2e-6)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports are TensorFlow's")
def test_any_other_tower_is_served_as_it_was_exported(samples, tmp_path):
    model = make_model(samples, SelfAttentiveUserTower)
    version = make(samples, model, ExactIndex)
    assert isinstance(version.tower, ExportedTower)
    publish(version, tmp_path)
    del version
    served, inputs = load_newest(tmp_path).tower, samples.serving_inputs("test")
    np.testing.assert_allclose(served.user_vectors(inputs), model.user_vectors(inputs), atol=2e-6)


def test_a_tower_that_is_served_wrongly_is_not_served(samples, model, monkeypatch):
    monkeypatch.setattr(NumpyTower, "user_vectors", lambda self, inputs: np.zeros((43, DIM)))
    with pytest.raises(ValueError, match="vectors differ from the model's by up to"):
        make(samples, model)


# Answers


@pytest.mark.parametrize("kind", [AnnoyIndex, ExactIndex])
def test_known_users_get_what_the_index_recommends(samples, model, tmp_path, kind):
    split = samples.split
    index = kind("cosine").build(model.item_vectors(), np.arange(1, ITEMS + 1))
    version = make_version(model, samples, index, known=split.known("test"))
    publish(version, tmp_path)
    version = load_newest(tmp_path)
    few = [user for user in range(1, USERS + 1)]
    vectors = model.user_vectors(samples.serving_inputs("test"))[:USERS]
    exact = ExactIndex("cosine").build(model.item_vectors(), np.arange(1, ITEMS + 1))
    expected = recommend(exact, vectors, split.seen("test"), 5, few)
    for user, best in zip(few, expected, strict=True):
        answer = version.recommend(Query(user_id=split.dataset.users["original_id"][user], k=5))
        assert answer.source == "history" and answer.version == 1
        np.testing.assert_array_equal(answer.rows + 1, best)
        np.testing.assert_allclose(
            answer.scores, exact.vectors[answer.rows] @ vectors[user - 1], atol=1e-5
        )


def test_a_history_and_a_profile_say_the_same_as_the_user(version, samples):
    user = 2
    dataset = samples.split.dataset
    row = dataset.users.loc[user]
    history = version.known[version.offsets[user - 1] : version.offsets[user]]
    ids = dataset.items["original_id"].loc[history].tolist()
    profile = {name: list(row[name]) if name == "likes" else row[name] for name in FIELDS}
    profile = {name: value for name, value in profile.items() if value is not None}
    tuples = profile | {"likes": row["likes"]}  # as the dataset has them
    one, other = (version.read(Query(profile=p))["profile"] for p in (profile, tuples))
    assert one["likes"].any() and one["likes"].tolist() == other["likes"].tolist()
    told = version.recommend(Query(history=ids, profile=profile))
    known = version.recommend(Query(user_id=row["original_id"]))
    np.testing.assert_array_equal(told.rows, known.rows)
    other = version.recommend(Query(history=ids))
    assert not np.array_equal(other.scores, known.scores)
    assert not set(told.rows) & set(history - 1)


def test_what_a_request_says_comes_before_what_is_known(version):
    known = version.recommend(Query(user_id="u3"))
    told = version.recommend(Query(user_id="u3", history=[11, 21], profile={"age": 60}))
    assert not np.array_equal(told.scores, known.scores)
    user = version.user_ids["u3"]
    history = version.known[version.offsets[user - 1] : version.offsets[user]]
    everything = version.recommend(Query(user_id="u3", history=[11, 21], k=ITEMS)).rows
    assert len(everything) == ITEMS - len(set(history - 1) | {1, 2})


def test_an_empty_history_stands_in_place_of_what_is_known(version):
    told = version.read(Query(user_id="u3", history=[]))
    assert told["user"] and not len(told["history"])
    assert len(version.read(Query(user_id="u3"))["history"])


def test_short_histories_end_where_the_tower_reads_the_latest(version):
    reads = [
        version.read(Query(history=[11, 21])),
        version.read(Query(history=list(range(1, 92, 10)))),
    ]
    short, long = version.inputs(reads)["history"]
    assert short.tolist() == [0, 0, 0, 0, 2, 3] and long.tolist() == [5, 6, 7, 8, 9, 10]


def test_nobody_is_not_the_user_whose_id_is_none(samples, model):
    version = make(samples, model)
    version.user_ids["None"] = version.user_ids.pop("u3")  # as str(None) writes guests
    assert version.recommend(Query()).source == "popularity"
    assert not version.read(Query())["user"]


@pytest.mark.parametrize("value", [7, 7.0, "7", np.float32(7), np.float64(7), np.int64(7)])
def test_a_number_is_looked_up_however_it_is_written(value):
    assert serving._text(value) == "7"


def test_unknown_ids_are_left_out_and_counted(version):
    asked = Query("nobody", [11, 5, "21", "?"], {"gender": "?", "age": 33}, 3, [7], [11, 31, 41, 9])
    answer = version.recommend(asked)
    assert dict(answer.unknown) == {
        "users": 1,
        "history": 2,
        "profile": 1,
        "allow": 1,
        "exclude": 1,
    }
    assert set(answer.rows) == {3, 4}


def test_an_age_beyond_every_user_s_is_unknown(samples):
    """Towers have vectors up to the oldest group that there is; those asked may be older."""
    dataset = samples.split.dataset
    young = replace(dataset, users=dataset.users.assign(age=dataset.users["age"] % 14 + 20))
    young = training_samples(replace(samples.split, dataset=young), 6, user_fields=FIELDS)
    version = make(young, make_model(young))
    for age, unknown in ((60, 1), (35, 1), (34, 0), (15, 0)):
        answer = version.recommend(Query(history=[11], profile={"age": age}, k=3))
        assert len(answer.rows) == 3 and answer.unknown["profile"] == unknown
    assert version.recommend(Query(profile={"age": 60})).source == "popularity"


def test_nobody_gets_what_is_popular(version, samples):
    counts = np.bincount(samples.split.dataset.interactions["item_id"], minlength=ITEMS + 1)[1:]
    expected = np.lexsort((np.arange(ITEMS), -counts))[:10]
    for query in (Query(), Query(user_id="nobody"), Query(user_id=7, history=["?"])):
        answer = version.recommend(query)
        assert (answer.source, answer.search) == ("popularity", "none")
        np.testing.assert_array_equal(answer.rows, expected)
        np.testing.assert_array_equal(answer.scores, counts[expected])
    for nothing in ({"age": 999}, {"gender": []}, {"likes": []}, {"gender": "?", "age": 999}):
        told = version.recommend(Query(profile=nothing))  # nothing that the tower could read
        assert (told.source, told.rows.tolist()) == ("popularity", expected.tolist())
        assert version.recommend(Query("u3", profile=nothing)).source == "history"
        assert version.recommend(Query(history=[11], profile=nothing)).source == "history"
    assert version.recommend(Query(profile={"age": 20, "gender": "?"})).source == "history"
    war = version.recommend(Query(filters={"genres": ["War"]}))
    assert all("War" in version.items["genres"][row] for row in war.rows) and len(war.rows)


@pytest.mark.parametrize("wanted", [{"year": [1993]}, {"genres": ["War"]}, {"year": ["1991"]}, {}])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_filters_find_the_best_of_what_is_left(version, wanted, k):
    query = Query(history=[101, 211], filters=wanted, exclude=[31, 11], k=k)
    read = version.read(query)
    (vector,) = version.tower.user_vectors(version.inputs([read]))
    answer = version.recommend(query)
    allowed = np.ones(ITEMS, bool)
    allowed[[10, 21, 3, 1]] = False
    items = version.items
    for name, (value,) in wanted.items():
        has = items[name].map(
            lambda v, x=value: x in v if isinstance(v, (tuple, list)) else v == int(x)
        )
        allowed &= has.fillna(False).to_numpy(bool)
    left = np.flatnonzero(allowed)
    assert len(left)
    scores = version.index.vectors[left] @ vector
    np.testing.assert_array_equal(answer.rows, left[np.argsort(-scores)][:k])


def test_equal_scores_and_scores_are_those_of_the_index(samples):
    """Vectors that aren't of length one, in groups of equal ones, and cosines asked for."""
    model = make_model(samples, normalize=False)
    model.item_tower.normalize = False
    rows = model.item_tower.items.embeddings
    table = keras.ops.convert_to_numpy(rows).copy()
    table[1:] = 3 * table[1 + np.arange(ITEMS) // 50]
    rows.assign(table)
    version = make(samples, model, ExactIndex)
    read = version.read(Query(history=[101, 211], allow=version.original_ids))
    (vector,) = version.tower.user_vectors(version.inputs([read]))
    answer = version.recommend(Query(history=[101, 211], k=70))
    ids, scores = version.index.query(vector, 70, exclude=read["history"])
    assert answer.search == "exact"
    np.testing.assert_array_equal(answer.rows, ids - 1)
    np.testing.assert_allclose(answer.scores, scores, rtol=1e-6)


def test_the_index_is_asked_when_much_is_left_and_not_when_little_is(samples, model):
    version = make(samples, model, n_trees=1)
    assert version.recommend(Query(history=[11], k=3)).search == "index"
    assert version.recommend(Query(history=[11], k=100)).search == "exact"
    few = version.original_ids[5:9]
    answer = version.recommend(Query(history=[11], allow=few, k=3))
    assert answer.search == "exact" and set(answer.rows) < {5, 6, 7, 8}


def test_over_fetching_grows_until_enough_fit(samples, model, monkeypatch):
    version, asked = make(samples, model, n_trees=1, search_k=10_000), []
    query = AnnoyIndex.query
    monkeypatch.setattr(serving, "ROWS_PER_CANDIDATE", 0)  # never exact search

    def noted(self, vector, k, exclude=None):
        asked.append(k)
        return query(self, vector, k, exclude)

    monkeypatch.setattr(AnnoyIndex, "query", noted)
    best = version.recommend(Query(history=[11], k=100))
    asked.clear()
    again = version.recommend(
        Query(history=[11], k=2, exclude=[version.original_ids[row] for row in best.rows])
    )
    assert asked == [14, 28, 56, 112]  # 102 are needed
    assert not set(again.rows) & set(best.rows) and len(again.rows) == 2


def test_fewer_than_k_are_returned_when_fewer_are_left(version):
    assert len(version.recommend(Query(history=[11], allow=[31], k=9)).rows) == 1
    assert len(version.recommend(Query(history=[11], allow=[], k=9)).rows) == 0
    assert len(version.recommend(Query(allow=[], k=9)).rows) == 0


def test_where_people_come_back_nothing_is_left_out():
    samples = make_samples(repeats="keep")
    version = make(samples, make_model(samples))
    history = version.original_ids[:5]
    answer = version.recommend(Query(history=history, k=ITEMS))
    assert len(answer.rows) == ITEMS
    assert len(version.recommend(Query(user_id="u1", exclude=history, k=ITEMS)).rows) == ITEMS - 5


def test_many_queries_are_answered_as_one_by_one(version):
    queries = [Query("u1"), Query(), Query(history=[11, 21]), Query("?", ["?"], {"age": 20})]
    together = version.answer([version.read(query) for query in queries])
    for query, answer in zip(queries, together, strict=True):
        alone = version.recommend(query)
        np.testing.assert_array_equal(answer.rows, alone.rows)
        np.testing.assert_allclose(answer.scores, alone.scores, atol=1e-6)


def test_what_cannot_be_meant_is_refused(version, samples, model):
    for query, message in (
        (
            Query(filters={"colour": ["red"]}),
            "no field 'colour' to filter by; there are genres, year",
        ),
        (Query(filters={"genres": ["Noir"]}), "no item's genres is 'Noir'; there are Drama, War"),
        (Query(profile={"zip": 1}), "no field 'zip'; its fields are gender, age, likes"),
        (Query(profile={"gender": ["F", "M"]}), "gender takes 1 values at most"),
        (Query(k=0), "k must be 1 or more items, received 0"),
        (Query(k=-1), "received -1"),
        (Query(k=2.5), "k must be 1 or more items, received 2.5"),
        (Query(filters={"genres": "War"}), r"filters\['genres'\] must be a list of val.* 'War'"),
        (Query(filters={"year": 1993}), r"filters\['year'\] must be a list of values, rec.* 1993"),
        (Query(exclude="12"), "exclude must be a list of item ids, received '12'"),
        (Query(history="12"), "history must be a list"),
        (Query(allow=7), "allow must be a list of item ids, received 7"),
        (Query(filters=["Drama"]), r"filters must be a dict of fields and .* received \['Drama'\]"),
        (Query(profile=["F"]), r"profile must be a dict of fields and values, received \['F'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            version.recommend(query)
    part = ExactIndex("cosine").build(model.item_vectors()[1:], np.arange(2, ITEMS + 1))
    most = ExactIndex("cosine").build(model.item_vectors()[:-1], np.arange(1, ITEMS))
    whole = DeltaIndex(most).add(model.item_vectors()[-1:], np.array([ITEMS]))
    for index in (part, whole, None):
        with pytest.raises(ValueError, match="ExactIndex of the ids 1 to 300, in this order, rec"):
            make_version(model, samples, index)
    whole = ExactIndex("cosine").build(model.item_vectors(), np.arange(1, ITEMS + 1))
    for known in (pd.DataFrame({"user": [1], "item": [1]}), [1, 2]):
        with pytest.raises(ValueError, match="known must be a table with user_id and item_id, rec"):
            make_version(model, samples, whole, known=known)
    assert version.recommend(Query("u4", filters=None)).rows.size == 10  # none, said otherwise
    for fields in (["popularity"], ["title"], ["nope"], "genres", ["year", "year"]):
        with pytest.raises(ValueError, match=r"fields must be of \['genres', .* once, received"):
            make_version(model, samples, whole, fields=fields)


@pytest.mark.parametrize(
    ("ids", "received"),
    [([1, 0], "int64 from 0 to 1"), ([ITEMS + 1, 3], "int64 from 3 to 301"),
     ([-1, 2], "int64 from -1 to 2"), ([1.0, 2.5], "float64 from 1.0 to 2.5")],
)  # fmt: skip
def test_only_items_there_are_can_be_known(samples, model, ids, received):
    index = ExactIndex("cosine").build(model.item_vectors(), np.arange(1, ITEMS + 1))
    known = pd.DataFrame({"user_id": [1, 1], "item_id": ids})
    with pytest.raises(ValueError, match=f"known: item ids .* from 1 to 300, received {received}"):
        make_version(model, samples, index, known=known)
    nobody = make_version(model, samples, index, known=known.iloc[:0].astype(int))
    assert not nobody.popularity.any()


@pytest.mark.parametrize("odd", [[1, "n/a"], [(1, "a"), (2, "b")]])
def test_a_field_that_could_not_be_saved_is_no_field(samples, model, odd):
    mixed = samples.split.dataset.items.assign(odd=pd.Series(odd, index=[1, 2], dtype=object))
    split = replace(samples.split, dataset=replace(samples.split.dataset, items=mixed))
    index = ExactIndex("cosine").build(model.item_vectors(), np.arange(1, ITEMS + 1))
    with pytest.raises(ValueError, match="values of one kind each, received .*column odd.*astype"):
        make_version(model, replace(samples, split=split), index, fields=["odd"])


def test_an_index_of_another_training_is_refused(samples, model):
    ids = np.arange(1, ITEMS + 1)
    others = model.item_vectors()[::-1]
    for vectors in (others, others[:, :-1]):
        for metric in ("cosine", "dot"):
            with pytest.raises(ValueError, match="that aren't this model's item vectors"):
                make_version(model, samples, ExactIndex(metric).build(vectors, ids))
    make_version(model, samples, ExactIndex("dot").build(model.item_vectors(), ids))


def test_what_is_known_may_come_in_any_order_of_users(samples, model):
    index = ExactIndex("cosine").build(model.item_vectors(), np.arange(1, ITEMS + 1))
    known = samples.split.dataset.interactions
    mixed = known.iloc[np.argsort(known.groupby("user_id").cumcount(), kind="stable")]
    assert not mixed["user_id"].is_monotonic_increasing
    one, other = (make_version(model, samples, index, known=table) for table in (known, mixed))
    np.testing.assert_array_equal(one.known, other.known)
    np.testing.assert_array_equal(one.offsets, other.offsets)
    for table in (known[::-1], mixed.sort_values("item_id"), mixed[::-1]):
        with pytest.raises(ValueError, match="in the order of time, received position .* of user"):
            make_version(model, samples, index, known=table)
    told = known.drop(columns="position")[::-1]  # by whoever knows its order
    last = known.loc[known["user_id"] == 1, "item_id"].iloc[-1]
    assert make_version(model, samples, index, known=told).known[0] == last


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_tower_of_half_precision_is_served(samples, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = make_model(samples)
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(make(samples, model).tower, NumpyTower)


# Versions


def test_versions_are_numbered_the_newest_wins_and_old_ones_go(version, tmp_path):
    for expected in range(1, 5):
        assert publish(version, tmp_path, keep=2) == expected
    assert numbers(tmp_path) == [4, 3]
    assert load_newest(tmp_path).number == 4 and load_newest(tmp_path, current=4) is None
    assert {path.name for path in tmp_path.iterdir()} == {"3", "4", ".last"}
    (tmp_path / "4").rename(tmp_path / "withdrawn")  # rollback
    assert load_newest(tmp_path, current=4).number == 3
    assert publish(version, tmp_path) == 5  # the number of what was withdrawn isn't used again
    for keep in (0, 2.5):
        with pytest.raises(ValueError, match=f"keep must be at least 1, .* received {keep}"):
            publish(version, tmp_path, keep=keep)
    assert numbers(tmp_path)[0] == 5
    (tmp_path / ".new-note.txt").write_text("somebody's own")
    assert publish(version, tmp_path) == 6 and (tmp_path / ".new-note.txt").is_file()


def test_what_is_said_about_a_version_is_checked_before_anything_is_written(version, tmp_path):
    with pytest.raises(TypeError, match="JSON has no PosixPath"):
        version.save(tmp_path / "new", note=tmp_path)
    assert not (tmp_path / "new").exists()
    version.save(tmp_path / "new", note=np.int64(3))
    assert Version.load(tmp_path / "new").about["note"] == 3


@pytest.mark.parametrize("file", ["user_tower", "known", "encoder", "items", "users", "version"])
@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 40, b"PK\3\4 and no more"])
def test_a_damaged_file_is_a_damaged_version_by_name(version, tmp_path, file, content):
    version.save(tmp_path / "7")
    (path,) = (tmp_path / "7").glob(f"{file}.*")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"/7 is damaged \(\w+: .*\). Restore it, or remove it"):
        Version.load(tmp_path / "7")


def test_a_version_is_the_same_after_a_journey(version, folder):
    loaded = load_newest(folder)
    assert loaded.about.pop("created") and loaded.about.pop("index") == "AnnoyIndex"
    assert loaded.about == version.about
    for query in (Query("u5"), Query(history=[11], profile={"likes": ["rum"]}, k=50), Query()):
        one, other = version.recommend(query), loaded.recommend(query)
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.scores, other.scores)
    assert loaded.titles == version.titles and loaded.original_ids == version.original_ids
    assert loaded.rows_with.keys() == version.rows_with.keys() == {"genres", "year"}


def test_what_is_not_complete_is_not_visible(version, folder, monkeypatch):
    save = AnnoyIndex.save

    def interrupted(self, path):
        save(self, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(AnnoyIndex, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(version, folder)
    assert list(folder.glob(".new-*")) and numbers(folder) == [1]
    monkeypatch.undo()
    assert publish(version, folder) == 2 and not list(folder.glob(".new-*"))


def test_an_old_version_is_invisible_before_the_first_of_its_files_goes(
    version, folder, monkeypatch
):
    def killed(path, *args, **kwargs):  # when half of it is gone
        (next(Path(path).glob("*.json"))).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(versions.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(version, folder, keep=1)
    assert numbers(folder) == [2] and list(folder.glob(".new-*"))
    monkeypatch.undo()
    assert publish(version, folder, keep=1) == 3
    assert {path.name for path in folder.iterdir()} == {"3", ".last"}


@pytest.mark.parametrize("file", ["user_tower.npz", "version.json", "items.parquet", "index"])
def test_a_damaged_version_gives_way_to_the_one_before(version, folder, caplog, file):
    publish(version, folder)
    path = folder / "2" / file
    path = next(path.glob("forest-*")) if path.is_dir() else path
    path.write_bytes(path.read_bytes()[:-30])
    damaged = set()
    assert load_newest(folder, damaged=damaged).number == 1
    assert damaged == {2} and "version 2" in caplog.text and "can't be loaded" in caplog.text
    assert load_newest(folder, current=1, damaged=damaged) is None


def test_a_version_that_cannot_answer_gives_way_to_the_one_before(version, folder, caplog):
    narrow = ExactIndex("cosine").build(version.index.vectors[:, :-1], version.index.ids)
    publish(replace(version, index=narrow), folder)  # with its own checks passed by
    damaged = set()
    assert load_newest(folder, damaged=damaged).number == 1
    assert damaged == {2} and "version 2" in caplog.text


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_a_machine_in_trouble_is_no_damage(version, folder, monkeypatch, caplog, error):
    publish(version, folder)
    load, errors = Version.load.__func__, [error]

    def once(cls, path, number):
        if errors:
            raise errors.pop()
        return load(cls, path, number)

    monkeypatch.setattr(Version, "load", classmethod(once))
    damaged = set()
    assert load_newest(folder, damaged=damaged).number == 1 and "can't be loaded" in caplog.text
    assert not damaged and load_newest(folder, current=1, damaged=damaged).number == 2


def test_folders_of_other_names_are_no_versions(version, folder):
    for name in ("007", "1a", "-3"):
        (folder / name).mkdir()
    assert publish(version, folder, keep=1) == 2 and numbers(folder) == [2]
    assert (folder / "007").is_dir()


def test_a_version_that_vanishes_while_it_is_loaded(version, folder, monkeypatch, caplog):
    load, happened = Version.load.__func__, []

    def slow(cls, path, number):
        if not happened:  # as soon as somebody wants version 1, it is replaced by 2
            happened.append(number)
            publish(version, folder, keep=1)
        return load(cls, path, number)

    monkeypatch.setattr(Version, "load", classmethod(slow))
    assert load_newest(folder).number == 2 and happened == [1] and not caplog.text


def test_a_loaded_version_answers_when_it_has_been_removed(version, folder):
    first = load_newest(folder)
    publish(version, folder, keep=1)
    assert numbers(folder) == [2]
    np.testing.assert_array_equal(
        first.recommend(Query("u1")).rows, version.recommend(Query("u1")).rows
    )


def test_a_file_with_a_number_for_its_name_is_no_version(version, tmp_path):
    (tmp_path / "7").write_text("not ours")
    assert [publish(version, tmp_path, keep=1) for _ in range(2)] == [8, 9]
    assert numbers(tmp_path) == [9] and (tmp_path / "7").read_text() == "not ours"


def test_publishers_take_turns(version, tmp_path):
    with versions._turn(tmp_path):
        code = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        run = subprocess.run(
            [sys.executable, "-c", code, tmp_path / ".last"], capture_output=True, text=True
        )
    assert "BlockingIOError" in run.stderr


# The service


@pytest.mark.parametrize("missing", ["fastapi", "prometheus_client"])
def test_without_the_extra_the_service_says_what_to_install(missing, monkeypatch):
    monkeypatch.delitem(sys.modules, "recsys_helpers.service", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"needs more .* `pip install 'recsys-helpers\[serve\]'`"):
        importlib.import_module("recsys_helpers.service")


@pytest.fixture
def service():
    return pytest.importorskip(
        "recsys_helpers.service", reason="the extra isn't installed: pip install -e '.[serve]'"
    )


@pytest.fixture
def client(service, folder):
    testclient = pytest.importorskip("fastapi.testclient", reason="httpx2 isn't installed")
    app = service.create_app(folder, poll_seconds=0.02)
    with testclient.TestClient(app, raise_server_exceptions=False) as client:
        client.folder = folder
        yield client


def metric(client, name):
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.rsplit(" ", 1)[1])


def test_every_example_of_the_schema_works(client, service):
    schema = client.get("/openapi.json").json()
    body = schema["paths"]["/recommend"]["post"]["requestBody"]["content"]["application/json"]
    assert {"known user", "history", "history and profile", "filter"} <= body["examples"].keys()
    for name, example in body["examples"].items():
        answer = client.post("/recommend", json=example["value"])
        assert answer.status_code == 200, (name, answer.text)
        service.RecommendResponse.model_validate_json(answer.text)
        assert len(answer.json()["items"]) == example["value"]["k"], name
        assert not answer.json()["unknown"]
    assert client.get("/docs").status_code == 200


def test_an_answer_over_http_is_the_version_s(client, version):
    answer = client.post("/recommend", json={"user_id": "u4", "k": 4}).json()
    right = version.recommend(Query("u4", k=4))
    assert [item["item_id"] for item in answer["items"]] == [row * 10 + 1 for row in right.rows]
    assert [item["title"] for item in answer["items"]] == [
        f"Film {row} – é" if row % 7 else str(row * 10 + 1) for row in right.rows
    ]
    assert np.float32([item["score"] for item in answer["items"]]).tolist() == right.scores.tolist()
    assert answer["version"] == 1 and answer["source"] == "history"


BAD = [
    b"",
    b"[",
    b"null",
    b"[1]",
    b"\xff\xfe",
    b'{"k": 0}',
    b'{"k": 101}',
    b'{"k": 1e400}',
    b'{"k": NaN}',
    b'{"k": true}',
    b'{"k": "5"}',
    b'{"user_id": 1.5}',
    b'{"user_id": 1' + b"0" * 5000 + b"}",
    b'{"history": 7}',
    b'{"history": [null]}',
    b'{"history": ["\\ud800"]}',
    b'{"history": [' + b"1," * 1000 + b"1]}",
    b'{"\\ud800": 1}',
    b'{"colour": 1}',
    b"[" * 100_000,
    b'{"filters": {"colour": ["red"]}}',
    b'{"filters": {"genres": ["\\u0000"]}}',
    b'{"filters": {"genres": []}}',
    b'{"profile": {"gender": ["F", "M"]}}',
    b'{"profile": {"zip": "1"}}',
]


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
def test_a_bad_body_is_refused_with_a_reason(client, body):
    answer = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"] and all(reason["msg"] for reason in answer.json()["detail"])


def test_a_body_without_its_header_is_told_which(client):
    for sent in ("application/x-www-form-urlencoded", "text/plain"):  # the first is curl's
        answer = client.post("/recommend", content=b'{"k": 2}', headers={"content-type": sent})
        (reason,) = answer.json()["detail"]
        assert answer.status_code == 422 and reason["loc"] == ["header", "content-type"]
        assert reason["msg"].endswith(f"content-type: application/json, received {sent}")
    (reason,) = client.post("/recommend", content=b'{"k": 2}').json()["detail"]
    assert reason["msg"].endswith("received none")
    assert client.post("/recommend").json()["detail"][0]["msg"] == "Field required"


def test_whatever_is_sent_the_service_goes_on(client):
    draw = random.Random(1)
    values = [None, True, 0, -1, 2**70, 1.5, 1e308, "", "u1", "\ud800", "é" * 300, [], {}, [[]]]
    values += [[11, "21"], {"genres": ["War"]}, {"age": 30}, {"age": []}, {"likes": ["tea", 1]}]
    names = ["user_id", "history", "profile", "k", "exclude", "allow", "filters", "?"]
    seen = set()
    for _ in range(400):
        body = {draw.choice(names): draw.choice(values) for _ in range(draw.randint(0, 3))}
        text = bytearray(json.dumps(body).encode())
        if draw.random() < 0.2:
            text[draw.randrange(len(text))] = draw.randrange(256)
        answer = client.post(
            "/recommend", content=bytes(text), headers={"content-type": "application/json"}
        )
        assert answer.status_code in (200, 422), (text, answer.text)
        seen.add(answer.status_code)
    assert seen == {200, 422}


def test_a_body_that_is_too_large_is_not_read(client, service):
    def much():
        for _ in range(10_000):
            read.append(1)
            yield b" " * 10_000

    read = []
    text = b'{"k": 5}' + b" " * service.MOST_BYTES
    for body in (text, much()):
        answer = client.post("/recommend", content=body)
        assert answer.status_code == 413 and "more than 262,144 bytes" in answer.text
    assert client.post("/recommend", json={"k": 5}).status_code == 200
    assert metric(client, 'recommend_refused_total{status="413"}') == 2


def test_paths_and_methods_that_are_not_there(client):
    assert client.get("/nothing").status_code == 404
    assert client.get("/recommend").status_code == 405


def test_a_newer_version_takes_over_and_says_so(client, version):
    assert client.get("/health").json() == {"status": "ok", "version": 1}
    about = client.get("/version").json()
    assert (about["version"], about["items"], about["index"]) == (1, ITEMS, "AnnoyIndex")
    publish(version, client.folder)
    for _ in range(500):
        if client.get("/health").json()["version"] == 2:
            break
    assert client.post("/recommend", json={"k": 1}).json()["version"] == 2
    assert metric(client, "recommend_version") == 2
    (client.folder / "2").rename(client.folder / "withdrawn")
    for _ in range(500):
        if client.get("/health").json()["version"] == 1:
            break
    assert client.post("/recommend", json={"k": 1}).json()["version"] == 1


def test_a_damaged_version_is_counted_once_and_not_served(client, version):
    publish(version, client.folder)
    os.rename(client.folder / "2", client.folder / "away")
    (client.folder / "away" / "version.json").write_text("{")
    os.rename(client.folder / "away", client.folder / "9")
    for _ in range(200):
        assert client.post("/recommend", json={"k": 1}).json()["version"] < 9
    assert metric(client, "recommend_reload_failures_total") == 1


def test_metrics_count_what_was_asked_and_shown(client):
    client.post("/recommend", json={"history": [11, 5, 6], "user_id": "?", "k": 7})
    client.post("/recommend", json={"k": 7})
    client.post("/recommend", json={"k": 0})
    assert metric(client, "recommend_history_items_total") == 3
    assert metric(client, 'recommend_unknown_total{kind="history"}') == 2
    assert metric(client, 'recommend_unknown_total{kind="users"}') == 1
    assert metric(client, "recommend_items_shown_total") == 14
    assert 7 / ITEMS <= metric(client, "recommend_coverage") <= 14 / ITEMS
    assert 6.5 < metric(client, "recommend_shown_popularity_total") < 14  # seven are the top
    assert metric(client, 'recommend_answers_total{search="none",source="popularity"}') == 1
    assert metric(client, 'recommend_refused_total{status="422"}') == 1
    assert metric(client, 'recommend_seconds_count{stage="total"}') == 3
    for stage in ("parsing", "read", "filter", "tower", "index", "answer"):
        assert metric(client, f'recommend_seconds_count{{stage="{stage}"}}') in (1, 2)


def test_an_answer_that_fails_is_counted(client):
    def fail(read):
        raise RuntimeError("broken")

    client.app.state.service.version.answer = fail
    assert client.post("/recommend", json={"k": 2}).status_code == 500
    assert metric(client, 'recommend_refused_total{status="500"}') == 1
    assert metric(client, 'recommend_seconds_count{stage="total"}') == 1


def test_a_field_of_truths_is_filtered_by(service):
    body = service.RecommendRequest.model_validate_json('{"filters": {"adult": [true]}}')
    assert body.filters == {"adult": [True]}
    with pytest.raises(ValueError, match="validation errors"):  # but an id is none
        service.RecommendRequest.model_validate_json('{"history": [true]}')


def test_without_a_version_it_does_not_start(service, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="has no complete version"):
        service.create_app(tmp_path)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(SystemExit):
            service.main([str(folder)])
        assert f"{folder} has no complete version" in capsys.readouterr().err


def test_it_is_reached_from_this_machine_only_unless_told_otherwise(service, folder, monkeypatch):
    uvicorn, given = pytest.importorskip("uvicorn"), []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: given.append(options["host"]))
    service.main([str(folder)])
    service.main([str(folder), "--host", "0.0.0.0"])
    assert given == ["127.0.0.1", "0.0.0.0"]


# Short forms of benchmarks/serving_faults.py


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, flock and SIGKILL")
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            "publish_under_load(folder, versions=3, rate=100, pause=0.2)",
            {"failed": 0, "mixed": 0, "newest_seen": True},
        ),
        (
            "kill_publishers(folder, times=4)",
            {"failed": 0, "broken": 0, "still_answers": True, "newest_found": True},
        ),
    ],
)
def test_versions_come_and_publishers_go_while_it_answers(service, folder, call, expected):
    pytest.importorskip("httpx2", reason="httpx2 isn't installed")
    code = (
        "import sys, json; from pathlib import Path; import serving_faults\n"
        f"if __name__ == '__main__':\n    folder = Path(sys.argv[1])\n"
        f"    print(json.dumps(serving_faults.{call}))"
    )
    script = folder.parent / "call.py"
    script.write_text(code)
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), *filter(None, sys.path)])
    run = subprocess.run(
        [sys.executable, script, folder.parent],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    (found,) = json.loads(run.stdout.splitlines()[-1])
    assert found.items() >= expected.items(), found
    assert found["requests"] > 50
