"""Beyond one machine: parts of a folder on workers that may die, and vectors in an engine."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_helpers.datasets import Dataset
from recsys_helpers.index import ExactIndex
from recsys_helpers.scale.parts import (
    EncodeItems,
    EncodeUsers,
    Search,
    _model,
    lists,
    matrix,
    over_parts,
)
from recsys_helpers.splits import leave_last_out

# Parts


class Double:
    """Work that says which process did which part, and may be slow or fail."""

    def __init__(self, log=None, seconds=0.0, fails_on=None):
        self.log, self.seconds, self.fails_on = log, seconds, fails_on

    def __call__(self, table):
        first = table["x"][0].as_py()
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()} {first}\n")
        time.sleep(self.seconds)
        if first == self.fails_on:
            raise ValueError(f"part {first} is broken")
        return pa.table({"x": table["x"], "twice": pa.array(2 * table["x"].to_numpy())})


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for part in range(6):
        rows = pa.array(np.arange(10 * part, 10 * part + 10))
        pq.write_table(pa.table({"x": rows}), folder / f"part-{part}.parquet")
    return folder


def rows(folder):
    return sorted(pq.read_table(folder)["twice"].to_pylist())


def test_every_part_is_done_once_and_only_what_is_missing(source, tmp_path):
    report = over_parts(Double(), source, tmp_path / "out")
    assert report.done == [f"part-{i}.parquet" for i in range(6)] and report.there == []
    assert rows(tmp_path / "out") == list(range(0, 120, 2))
    (tmp_path / "out" / "part-3.parquet").unlink()
    again = over_parts(Double(tmp_path / "log"), source, tmp_path / "out")
    assert again.done == ["part-3.parquet"] and len(again.there) == 5
    assert (tmp_path / "log").read_text().split()[1] == "30"
    assert rows(tmp_path / "out") == list(range(0, 120, 2))


def test_a_part_that_fails_leaves_nothing_behind(source, tmp_path):
    with pytest.raises(ValueError, match="part 20 is broken") as error:
        over_parts(Double(fails_on=20), source, tmp_path / "out")
    assert error.value.__notes__ == [f"in {source / 'part-2.parquet'}"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "part-0.parquet", "part-1.parquet"]  # fmt: skip
    over_parts(Double(), source, tmp_path / "out")
    assert rows(tmp_path / "out") == list(range(0, 120, 2))


def test_a_part_half_written_is_none(source, tmp_path, monkeypatch):
    def no_space(table, path):
        Path(path).write_bytes(b"PAR1")
        raise OSError("no space left")

    monkeypatch.setattr(pq, "write_table", no_space)
    with pytest.raises(OSError, match="no space left"):
        over_parts(Double(), source, tmp_path / "out")
    assert not [*(tmp_path / "out").iterdir()]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected \*.parquet files in .*, found none"):
        over_parts(Double(), tmp_path, tmp_path / "out")


def test_results_of_parts_that_are_gone_are_refused(source, tmp_path):
    over_parts(Double(), source, tmp_path / "out")
    (source / "part-3.parquet").unlink()
    with pytest.raises(
        ValueError, match=r"results of parts of .*source only, .* part-3.parquet. R"
    ):
        over_parts(Double(), source, tmp_path / "out")
    (tmp_path / "out" / "part-3.parquet").unlink()
    assert len(over_parts(Double(), source, tmp_path / "out").there) == 5


def test_parts_in_folders_within_are_refused(source, tmp_path):
    for name in ("_delta_log", ".trash"):  # which nobody reads
        (source / name).mkdir()
        pq.write_table(pa.table({"x": [1]}), source / name / "0.parquet")
    assert over_parts(Double(), source, source / "out").done == [
        f"part-{n}.parquet" for n in range(6)
    ]
    assert over_parts(Double(), source, source / "out").done == []
    (source / "date=2" / "a").mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), source / "date=2" / "a" / "part-0.parquet")
    with pytest.raises(ValueError, match=r"all parts in .*source itself, received date=2.a.part-0"):
        over_parts(Double(), source, tmp_path / "out")


def test_the_results_of_a_folder_have_another_folder(source, tmp_path):
    (tmp_path / "same").symlink_to(source)
    for same in (source, tmp_path / "same"):
        with pytest.raises(ValueError, match="another folder than the source.*source"):
            over_parts(Double(), source, same)


def test_lists_of_a_column_become_a_matrix_and_back():
    numbers = np.arange(6, dtype=np.float32).reshape(3, 2)
    table = pa.table({"v": lists(numbers)})
    assert np.array_equal(matrix(table["v"]), numbers)
    part = pa.chunked_array([lists(numbers), lists(numbers[:1] + 9)]).slice(1)
    assert matrix(part).tolist() == [[2, 3], [4, 5], [9, 10]]
    assert matrix(pa.chunked_array([pa.array([[1, 2], [3, 4]])])).tolist() == [[1, 2], [3, 4]]
    tokens = np.arange(24, dtype=np.int8).reshape(2, 4, 3)  # several numbers at each moment
    assert np.array_equal(matrix(lists(tokens)), tokens)
    assert matrix(lists(np.arange(3))).tolist() == [0, 1, 2]
    with pytest.raises(
        ValueError, match=r"equally long in every row, received lengths \[1, 2\] and"
    ):
        matrix(pa.chunked_array([pa.array([[1, 2], [3]])]))
    large = pa.array([[1, 2], [3, 4]], pa.large_list(pa.int64()))
    assert matrix(large).tolist() == [[1, 2], [3, 4]]
    assert matrix(lists(numbers[:0])).shape == (0, 2)


@pytest.mark.parametrize(
    ("column", "missing"),
    [
        (pa.array([1, None, None]), "no missing values, received 2"),
        (pa.array([[1, 2], [3, None]]), "no missing values, received 1"),
        (pa.array([[1, 2], [3, None]], pa.list_(pa.float32(), 2)), "no missing values, received 1"),
        (pa.array([[[1], [None]], [[3], [4]]]), "no missing values, received 1"),
        (pa.array([[1, 2], None]), "and 1 missing"),
        (pa.array([None, None], pa.list_(pa.int8())), r"lengths \[\] and 2 missing"),
        (pa.array([[1, 2], None], pa.list_(pa.int8(), 2)), "and 1 missing"),
    ],
)
def test_a_matrix_has_no_holes(column, missing):
    with pytest.raises(ValueError, match=missing):
        matrix(pa.chunked_array([column]))


def test_searching_in_parts_is_searching_at_once(tmp_path):
    rng = np.random.default_rng(1)
    items, users = rng.normal(size=(30, 4)), rng.normal(size=(8, 4)).astype(np.float32)
    exclude = [[int(u) + 1, 7] for u in range(8)]
    index = ExactIndex().build(items, np.arange(1, 31))
    index.save(tmp_path / "index")
    (tmp_path / "users").mkdir()
    for part in range(2):
        chosen = slice(4 * part, 4 * part + 4)
        table = pa.table({"user_id": np.arange(8)[chosen], "vector": lists(users[chosen]),
                          "exclude": exclude[chosen]})  # fmt: skip
        pq.write_table(table, tmp_path / "users" / f"{part}.parquet")
    over_parts(Search(str(tmp_path / "index"), ExactIndex, 3), tmp_path / "users", tmp_path / "top")
    found = pq.read_table(tmp_path / "top")
    ids, scores = index.query(users, 3, exclude)
    assert np.array_equal(matrix(found["item_ids"]), ids)
    assert np.array_equal(matrix(found["scores"]), scores)
    empty = table.slice(0, 0).set_column(1, "vector", pa.array([], pa.list_(pa.float32())))
    none = Search(str(tmp_path / "index"), ExactIndex, 3)(empty)  # as pandas and Spark write it
    assert matrix(none["item_ids"]).shape == (0, 3)
    # The same process answers from an index that was saved again.
    ExactIndex().build(items[::-1], np.arange(1, 31)).save(tmp_path / "index")
    again = Search(str(tmp_path / "index"), ExactIndex, 3)(table)
    assert np.array_equal(matrix(again["item_ids"]), 31 - index.query(users[4:], 3, [
        [31 - int(i) for i in hidden] for hidden in exclude[4:]])[0])  # fmt: skip


@pytest.mark.parametrize("kind", ["dssm", "youtubednn"])  # with the user's id, and without
def test_encoding_in_parts_is_the_models_own(kind, tmp_path):
    from test_two_tower import NUM_ITEMS, first_rows, make, ring

    model, inputs = make(kind), first_rows(ring(positions=1)[0], 9)
    users = model.user_vectors(inputs)
    model.save(tmp_path / "model.keras")
    for name in ("users", "items"):
        (tmp_path / name).mkdir()
    ids = np.arange(1, NUM_ITEMS + 1)
    for part in range(3):
        some = {name: lists(array[part::3]) for name, array in inputs.items()}
        some = {"user_id": np.arange(9)[part::3], "country": ["x"] * 3} | some
        pq.write_table(pa.table(some), tmp_path / "users" / f"{part}.parquet")
        pq.write_table(pa.table({"item_id": ids[part::3]}), tmp_path / "items" / f"{part}.parquet")
    work = {"users": EncodeUsers(str(tmp_path / "model.keras"), 2),
            "items": EncodeItems(str(tmp_path / "model.keras"), 5)}  # fmt: skip
    before = _model.cache_info()
    for name, encode in work.items():
        over_parts(encode, tmp_path / name, tmp_path / f"{name} encoded")
    for part in range(3):
        for name, own in (("users", users), ("items", model.item_vectors())):
            found = pq.read_table(tmp_path / f"{name} encoded" / f"{part}.parquet")
            np.testing.assert_allclose(matrix(found["vector"]), own[part::3], atol=1e-6)
    assert found["item_id"].to_pylist() == ids[2::3].tolist()
    np.testing.assert_allclose(model.item_vectors([3, 1]), model.item_vectors()[[2, 0]], atol=1e-6)
    assert _model.cache_info().misses - before.misses == 1  # once, for all six parts
    bad = pa.table({"item_id": [1, NUM_ITEMS + 1]})
    with pytest.raises(ValueError, match=f"from 1 to {NUM_ITEMS}, received 1 to {NUM_ITEMS + 1}"):
        work["items"](bad)
    with pytest.raises(ValueError, match=f"from 1 to {NUM_ITEMS}, received float64"):
        work["items"](pa.table({"item_id": [1, None]}))
    nobody = pq.read_table(tmp_path / "users" / "0.parquet").slice(0, 0)
    plain = pa.Table.from_pylist([], pa.schema(
        [(f.name, pa.list_(f.type.value_type) if hasattr(f.type, "list_size") else f.type)
         for f in nobody.schema]
    ))  # fmt: skip
    for none in (nobody, plain):  # the second as pandas and Spark write it
        assert matrix(work["users"](none)["vector"]).shape == (0, users.shape[1])
    with pytest.raises(ValueError, match="missing are .*history"):
        work["users"](pa.table({"user_id": [1]}))


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed", reason="dask.distributed isn't installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster, distributed.Client(cluster) as client:  # fmt: skip
        yield client


@pytest.mark.filterwarnings("ignore")
def test_workers_do_what_a_loop_does(client, source, tmp_path):
    report = over_parts(Double(tmp_path / "log", 0.05), source, tmp_path / "out", client)
    assert len(report.done) == 6 and rows(tmp_path / "out") == list(range(0, 120, 2))
    pids = {line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert len(pids) == 2 and str(os.getpid()) not in pids
    assert over_parts(Double(), source, tmp_path / "out", client).done == []


@pytest.mark.filterwarnings("ignore")
def test_a_failing_part_is_named_and_the_others_are_kept(client, source, tmp_path):
    with pytest.raises(ValueError, match="part 20 is broken"):
        over_parts(Double(fails_on=20), source, tmp_path / "out", client)
    assert sorted(int(p.stem[-1]) for p in (tmp_path / "out").iterdir()) == [0, 1, 3, 4, 5]


@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_loses_nothing_and_does_nothing_twice(client, source, tmp_path):
    import threading

    log = tmp_path / "log"

    def kill():
        while not log.is_file() or len(log.read_text().splitlines()) < 3:
            time.sleep(0.01)
        os.kill(int(log.read_text().split()[-2]), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    report = over_parts(Double(log, 0.3), source, tmp_path / "out", client)
    thread.join()
    assert len(log.read_text().splitlines()) > 6  # a part was begun again
    assert len(report.done) == 6 and rows(tmp_path / "out") == list(range(0, 120, 2))
    assert len(list((tmp_path / "out").iterdir())) == 6 + len(
        list((tmp_path / "out").glob(".*.unfinished"))
    )


# Vectors in an engine


@pytest.fixture
def milvus(tmp_path):
    pytest.importorskip("pymilvus", reason="pymilvus isn't installed")
    pytest.importorskip("milvus_lite", reason="milvus-lite isn't installed")
    from recsys_helpers.scale.milvus import MilvusIndex

    made = []

    def make(**settings):
        made.append(MilvusIndex(tmp_path / "vectors.db", **settings))
        return made[-1]

    yield make
    for index in made:
        index.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_the_engine_answers_as_exact_search(milvus, metric):
    rng = np.random.default_rng(1)
    items, users = rng.normal(size=(200, 8)), rng.normal(size=(5, 8))
    ids = rng.permutation(1000)[:200]
    exclude = [ids[:3], [], [int(ids[9])], (), np.array([5])]
    engine, exact = milvus(metric=metric), ExactIndex(metric).build(items, ids)
    engine.build(items, ids)
    for asked in ((users, 10, exclude), (users, 10), (users[0], 4, ids[:50])):
        (found, scores), (best, true) = engine.query(*asked), exact.query(*asked)
        assert np.array_equal(found, best) and np.allclose(scores, true, rtol=1e-5)
    assert len(engine) == 200
    assert np.array_equal(engine.query(users, np.int64(3))[0], exact.query(users, 3)[0])
    assert [found.shape for found in engine.query(users[:0], 3)] == [(0, 3), (0, 3)]
    for k in (0, -1, 2.0, "2", 16_385):
        with pytest.raises(
            ValueError, match="k must be an integer from 1 to 16,384 .*, 0, received"
        ):
            engine.query(users, k)
    with pytest.raises(ValueError, match="less the longest exclusion, 3, received 16382"):
        engine.query(users, 16_382, exclude)
    odd = {"price": 0.5, "sold": True, "genre": None, "id": 1, "vector": 1, "genres": ("a", "b")}
    for name, values in (odd | {"tags": (1, 2), "years": [1]}).items():
        with pytest.raises(ValueError, match=f"fields of integers or texts, .* received '{name}'"):
            engine.build(items, ids, {name: [values] * 200})
    with pytest.raises(ValueError, match="one an item, .* received 'tags': object .*'a', 'b'"):
        engine.build(items, ids, {"tags": [("a", "b")] * 199 + [()]})
    for queries, exclude in ((users, [[1]]), (users, [1] * 5), (users[0], 5)):
        with pytest.raises(ValueError, match="lists of ids, one a row; received"):
            engine.query(queries, 1, exclude)


@pytest.mark.filterwarnings("ignore")
def test_a_new_build_replaces_the_old_one_at_once_and_is_found_again(milvus, monkeypatch):
    first, second = np.eye(4), -np.eye(4)
    engine = milvus()
    with pytest.raises(ValueError, match="there is no collection 'items': build the index first"):
        engine.query(first[0], 1)
    assert len(engine) == 0
    engine.build(first, np.arange(4))
    engine.build(second, np.arange(10, 14), {"genre": ["a", "b", "a", "b"], "year": [1, 2, 3, 4]})
    assert engine.query(-first[1], 1)[0].tolist() == [11]
    with pytest.raises(ValueError, match=r"expected queries of length 4, received shape \(1, 3\)"):
        engine.query(first[0, :3], 1)
    assert len(engine.client.list_collections()) == 1
    assert engine.query(-first[1], 2, where='genre == "a"')[0].tolist() == [10, 12]
    assert engine.query(-first[1], 1, where="year > 3")[0].tolist() == [13]
    with pytest.raises(ValueError, match="asked for k = 3 items, the engine has 2 left"):
        engine.query(-first[1], 3, where='genre == "a"')
    for broken in (np.nan, 1e39):  # the second isn't finite as float32; the old build is left
        with pytest.raises(ValueError, match="NaN or infinite"):
            engine.build(np.full((2, 4), broken), np.arange(2))
    with monkeypatch.context() as patch:
        patch.setattr(engine.client, "insert", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.build(first, np.arange(4))
    assert len(engine) == 4 and len(engine.client.list_collections()) == 1
    engine.close()
    assert len(milvus()) == 4  # opened again
    assert Path("vectors.db").exists() is False  # nothing beside the address asked for


# The split, by an engine


def ordered(frame):
    return frame[["user_id", "item_id", "timestamp"]].astype("int64").to_numpy().tolist()


def test_the_engine_splits_as_the_package_does(tmp_path):
    pytest.importorskip("duckdb", reason="duckdb isn't installed")
    from recsys_helpers.scale.splitting import leave_last_out as by_engine

    rng = np.random.default_rng(2)
    events = pd.DataFrame(
        {
            "user_id": rng.integers(0, 60, 900) * 7 - 100,  # gaps, and negative ones
            "item_id": (rng.zipf(1.4, 900) % 50).astype("int64"),  # some of them rare; repeats
            "timestamp": rng.integers(0, 40, 900) * 1_000_000,  # many at the same time
        }
    )
    (tmp_path / "log").mkdir()
    events.iloc[:400].to_parquet(tmp_path / "log" / "a.parquet")
    events.iloc[400:].to_parquet(tmp_path / "log" / "b.parquet")
    dataset = Dataset.from_tables(events, time_unit="s", verbose=False)
    expected = leave_last_out(dataset, 5, verbose=False)
    counts = by_engine(tmp_path / "log", tmp_path / "split", memory="200MB")
    for name in ("train", "validation", "test"):
        found = pd.read_parquet(tmp_path / "split" / f"{name}.parquet")
        assert ordered(found) == ordered(getattr(expected, name)), name
        assert counts[name] == len(found)
    items = pd.read_parquet(tmp_path / "split" / "items.parquet").set_index("item_id")
    assert items["original_id"].equals(expected.dataset.items["original_id"].astype("int64"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "split"]
    with pytest.raises(FileExistsError, match="is there already"):
        by_engine(tmp_path / "log", tmp_path / "split")
    with pytest.raises(ValueError, match="no event is left of users with three and items with 999"):
        by_engine(tmp_path / "log", tmp_path / "other", 999)
    events["timestamp"] = events["timestamp"].where(events.index > 0)
    events.to_parquet(tmp_path / "log" / "a.parquet")
    with pytest.raises(ValueError, match="1 events have no user_id, item_id or timestamp"):
        by_engine(tmp_path / "log", tmp_path / "other")
    assert not (tmp_path / "other").exists() and len(list(tmp_path.iterdir())) == 2


GOOD = {"user_id": [1, 1, 1, 1], "item_id": [1, 2, 3, 4], "timestamp": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"timestamp": [1, np.nan, 3, 4]}, r"timestamp must hold numbers or times, received nan"),
        ({"timestamp": [1, 2, 3, np.inf]}, r"numbers or times, received inf \(DOUBLE\)"),
        ({"timestamp": ["9", "10", "11", "12"]}, r"received '9' \(VARCHAR\). Convert it"),
        ({"timestamp": [True, False, True, True]}, r"received True \(BOOLEAN\)"),
        ({"user_id": [1.5] * 4}, r"user_id must hold whole numbers below 2\*\*53 or text.* 1.5"),
        ({"user_id": [np.nan] * 4}, "user_id must hold whole numbers.* received nan"),
        ({"user_id": [2.0**53] * 4}, "user_id must hold whole numbers.* received 9007"),
        ({"item_id": ["a", "", "b", "c"]}, "item_id must hold whole numbers.* received ''"),
        ({"item_id": ["1", "\\N", "2", "3"]}, r"item_id must hold whole .* or text, .* '\\\\N'"),
        ({"item_id": [True, False, True, True]}, "item_id must hold whole numbers.* received True"),
        ({"file_row_number": [1] * 4}, "none named file_row_number, received .*file_row_number"),
        ({"item_id": None, "item": [1] * 4}, "the columns user_id, item_id and .* received .*item"),
    ],
)
def test_the_engine_takes_what_a_dataset_takes(odd, said, tmp_path):
    pytest.importorskip("duckdb", reason="duckdb isn't installed")
    from recsys_helpers.scale.splitting import leave_last_out as by_engine

    (tmp_path / "log").mkdir()
    table = {name: column for name, column in (GOOD | odd).items() if column}
    pq.write_table(pa.table(table), tmp_path / "log" / "0.parquet")
    with pytest.raises(ValueError, match=said):
        by_engine(tmp_path / "log", tmp_path / "out", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_the_engine_reads_any_folder_and_no_part_is_rounded(tmp_path):
    pytest.importorskip("duckdb", reason="duckdb isn't installed")
    from recsys_helpers.scale.splitting import leave_last_out as by_engine

    log = tmp_path / "it's run[1]"
    log.mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected \*.parquet files in .*found none"):
        by_engine(log, tmp_path / "out")
    pq.write_table(pa.table(GOOD | {"filename": ["x"] * 4}), log / "0.parquet")
    with pytest.raises(ValueError, match="memory must be such as .2GB., received 'lots'"):
        by_engine(log, tmp_path / "out", 1, memory="lots")
    with pytest.raises(FileNotFoundError, match="found none"):
        by_engine(log / "0.parquet", tmp_path / "out")
    with pytest.raises(ValueError, match="no event is left of users with three and items with 1.5"):
        by_engine(log, tmp_path / "out", 1.5)
    for odd in (None, float("nan"), float("inf")):
        told = f"min_item_.* a number, 0 to drop no item, received {odd}"
        with pytest.raises(ValueError, match=told):
            by_engine(log, tmp_path / "out", odd)
    (log / "more").mkdir()
    pq.write_table(pa.table(GOOD), log / "more" / "0.parquet")
    with pytest.raises(ValueError, match=r"all parts in .* itself, received more.0.parquet, too"):
        by_engine(log, tmp_path / "out", 1)
    (log / "more").rename(tmp_path / "more")
    assert by_engine(log, tmp_path / "out", 1) == {"train": 2, "validation": 1, "test": 1}
    part = {"user_id": [1, 1], "item_id": [7, 8], "timestamp": [4.5, 4.25]}
    pq.write_table(pa.table(part), log / "1.parquet")
    assert by_engine(log, tmp_path / "again", 1)["train"] == 4
    last = pd.read_parquet(tmp_path / "again" / "test.parquet")
    assert last["timestamp"].tolist() == [4.5]
    pq.write_table(pa.table(part | {"user_id": [1.4, 1.4]}), log / "1.parquet")
    with pytest.raises(ValueError, match="user_id must hold whole numbers.* received 1.4"):
        by_engine(log, tmp_path / "third", 1)
    words = {"user_id": [1] * 4, "item_id": ["a", "null", "b", "c"], "timestamp": [1, 2, 3, 4]}
    pq.write_table(pa.table(words), log / "1.parquet")
    assert by_engine(log, tmp_path / "third", 1)["train"] == 6
    part["timestamp"] = pa.array([4, 5], pa.timestamp("s"))
    pq.write_table(pa.table(part), log / "1.parquet")
    with pytest.raises(ValueError, match="columns of one type each, received: .*BIGINT.*TIMESTAMP"):
        by_engine(log, tmp_path / "fourth", 1)
    (log / "1.parquet").write_bytes(b"damaged, and longer")
    with pytest.raises(ValueError, match="must hold Parquet files .*received: .*1.parquet"):
        by_engine(log, tmp_path / "fourth", 1)


@pytest.mark.parametrize(
    ("users", "kind"),
    [((-1, 2**60 + 1), "int64"), ((2**60 + 1, 2**60 + 2), "int64"), ((5, 2**63 + 1), "uint64")],
)
def test_the_engine_keeps_ids_of_parts_with_a_sign_and_without(users, kind, tmp_path):
    pytest.importorskip("duckdb", reason="duckdb isn't installed")
    from recsys_helpers.scale.splitting import leave_last_out as by_engine

    (tmp_path / "log").mkdir()
    for part, (user, of) in enumerate(zip(users, ("int64", "uint64"), strict=True)):
        table = GOOD | {"user_id": pa.array([user] * 4, of), "item_id": pa.array([1, 2, 3, 4], of)}
        pq.write_table(pa.table(table), tmp_path / "log" / f"{part}.parquet")
    assert by_engine(tmp_path / "log", tmp_path / "out", 1)["train"] == 4
    written = pd.read_parquet(tmp_path / "out" / "users.parquet")["original_id"]
    assert written.tolist() == sorted(users) and written.dtype == kind
    assert pd.read_parquet(tmp_path / "out" / "items.parquet")["original_id"].dtype == "int64"


def test_the_engine_refuses_ids_that_no_type_of_64_bits_holds(tmp_path):
    pytest.importorskip("duckdb", reason="duckdb isn't installed")
    from recsys_helpers.scale.splitting import leave_last_out as by_engine

    (tmp_path / "log").mkdir()
    for part, (user, of) in enumerate(((-1, "int64"), (2**63 + 1, "uint64"))):
        table = GOOD | {"user_id": pa.array([user] * 4, of)}
        pq.write_table(pa.table(table), tmp_path / "log" / f"{part}.parquet")
    with pytest.raises(
        ValueError, match="user_id must hold whole numbers of 64 bits.* -1 and 9223"
    ):
        by_engine(tmp_path / "log", tmp_path / "out", 1)
