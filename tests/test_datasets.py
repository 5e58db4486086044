"""Datasets: the formats of known sources, and what a `Dataset` can be asked.

What people bring of their own is in test_own_data.py, where datasets come from in test_fetch.py.
"""

import warnings

import numpy as np
import pandas as pd
import pytest

from recsys_helpers.datasets import Dataset, load_dataset

# Two users; user 7's times are out of order and tied (items 30 and 10, in this order).
RATINGS = [(7, 20, 4, 300), (9, 10, 5, 100), (7, 30, 3, 200), (7, 10, 2, 200)]
RATINGS += [(9, 20, 1, 101), (9, 40, 1, 102)]
USERS = [(7, 24, "M", "technician", "01234"), (9, 53, "F", "other", "T8H1N")]
GENRES = ["unknown", "Action", "Children's"]
ITEMS = [
    (10, "Amélie, (Le Fabuleux) (2001)", ["Action", "Children's"]),
    (20, 'Quote " in a title (1996)', ["Action"]),
    (30, "unknown", ["unknown"]),
    (40, "None (1995) (V)", []),
    (50, "Never seen (1999)", ["Action"]),
]


def lines(rows, separator):
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def files_100k():
    def item(i, title, genres):
        return (i, title, "01-Jan-1995", "", "http://", *(int(g in genres) for g in GENRES))

    return {
        "u.data": lines(RATINGS, "\t").encode(),
        "u.user": lines(USERS, "|").encode("latin-1"),
        "u.item": lines([item(*row) for row in ITEMS], "|").encode("latin-1"),
        "u.genre": lines([(g, i) for i, g in enumerate(GENRES)], "|").encode("latin-1") + b"\n",
    }


def files_1m():
    users = [(user, gender, age, 3, zip_) for user, age, gender, _, zip_ in USERS]
    movies = [(i, title, "|".join(genres)) for i, title, genres in ITEMS]
    return {
        "ratings.dat": lines(RATINGS, "::").encode(),
        "users.dat": lines(users, "::").encode("latin-1"),
        "movies.dat": lines(movies, "::").encode("latin-1"),
    }


def files_csv():
    movies = pd.DataFrame(
        [(i, title, "|".join(g) or "(no genres listed)") for i, title, g in ITEMS],
        columns=["movieId", "title", "genres"],
    )
    header = "userId,movieId,rating,timestamp\n"
    return {
        "ratings.csv": (header + lines(RATINGS, ",")).encode(),
        "movies.csv": movies.to_csv(index=False).encode(),
    }


FILES = {"ml-100k": files_100k, "ml-1m": files_1m, "ml-latest-small": files_csv}


def write(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


# Formats


@pytest.mark.parametrize("name", FILES)
def test_grouplens_formats_by_hand(tmp_path, name, capsys):
    dataset = load_dataset(write(tmp_path / name, FILES[name]()))
    printed = capsys.readouterr().out
    assert "is read from the column" not in printed  # nothing is guessed
    assert "isn't read" not in printed

    assert dataset.name == name
    assert (dataset.num_users, dataset.num_items) == (2, 4)  # item 50 was never rated
    table = dataset.interactions
    assert table["user_id"].tolist() == [1, 1, 1, 2, 2, 2]
    # Users 7 and 9 are 1 and 2, items 10, 20, 30, 40 are 1 to 4; the tie keeps the file's order.
    assert table["item_id"].tolist() == [3, 1, 2, 1, 2, 4]
    assert table["position"].tolist() == [0, 1, 2, 0, 1, 2]
    assert table["timestamp"].tolist() == [200, 200, 300, 100, 101, 102]
    assert table["rating"].tolist() == [3, 2, 4, 5, 1, 1]
    dtypes = {"user_id": "int32", "item_id": "int32", "position": "int32"}
    assert table.dtypes.astype(str).to_dict() == dtypes | {
        "timestamp": "int64",
        "rating": "float32",
    }
    assert isinstance(table.index, pd.RangeIndex)
    assert dataset.has_timestamps

    assert dataset.items.index.tolist() == [1, 2, 3, 4]
    assert dataset.items.index.name == "item_id" and dataset.users.index.name == "user_id"
    assert dataset.items["original_id"].tolist() == [10, 20, 30, 40]
    assert dataset.items["title"].tolist() == [title for _, title, _ in ITEMS[:4]]
    assert dataset.items["year"].tolist() == [2001, 1996, pd.NA, 1995]
    genres = [("Action", "Children's"), ("Action",), (), ()]
    assert dataset.items["genres"].tolist() == genres
    assert dataset.users["original_id"].tolist() == [7, 9]


@pytest.mark.parametrize(
    ("name", "written", "named"),
    [
        ("ml-100k", "utf-8", "utf-8"),
        ("ml-1m", "utf-8", "utf-8"),
        ("ml-1m", "utf-8-sig", "utf-8"),
        ("ml-100k", "cp850", "cp850"),
        ("ml-1m", "cp850", "cp850"),
    ],
)
def test_titles_in_another_encoding_than_grouplens_has(tmp_path, name, written, named):
    files = FILES[name]()
    beside = [file for file in files if file not in ("u.data", "ratings.dat")]
    files |= {file: files[file].decode("latin-1").encode(written) for file in beside}
    dataset = load_dataset(write(tmp_path / name, files), verbose=False, encoding=named)
    assert dataset.items["original_id"].tolist() == [10, 20, 30, 40]
    assert dataset.items["title"].iloc[0] == ITEMS[0][1]


def test_demographics_keep_leading_zeros_and_codes(tmp_path):
    users = load_dataset(write(tmp_path / "a", files_100k()), verbose=False).users
    assert users["zip_code"].tolist() == ["01234", "T8H1N"]
    assert users["age"].tolist() == [24, 53] and users["age"].dtype == np.int64
    assert users["occupation"].tolist() == ["technician", "other"]
    users = load_dataset(write(tmp_path / "b", files_1m()), verbose=False).users
    assert users["zip_code"].tolist() == ["01234", "T8H1N"]
    assert users["occupation"].tolist() == [3, 3] and users["gender"].tolist() == ["M", "F"]


def test_side_files_of_movielens_may_be_absent(tmp_path, capsys):
    files = files_100k()
    del files["u.genre"]  # without it the flags of u.item have no names
    dataset = load_dataset(write(tmp_path / "a", files))
    assert "u.item is read without genres" in capsys.readouterr().out
    assert dataset.items.columns.tolist() == ["original_id", "title", "year"]
    assert dataset.titles([1, 4]).tolist() == [ITEMS[0][1], ITEMS[3][1]]
    assert dataset.users["gender"].tolist() == ["M", "F"]
    files = files_csv()
    del files["movies.csv"]
    dataset = load_dataset(write(tmp_path / "b", files), verbose=False)
    assert dataset.titles([1, 4]).tolist() == ["10", "40"]


# What a dataset can be asked


def small_dataset(**changed):
    table = pd.DataFrame({"user_id": 5, "item_id": [9, 1, 2], "position": [0, 1, 2]})
    return Dataset.from_tables(table.assign(**changed), verbose=False)


def test_fingerprint_reacts_to_content_and_to_nothing_else():
    base = small_dataset()
    assert base.fingerprint == "d7265a6da6168263f245e4d45a1de94b251a0a13495325f94908eec5e3178262"
    assert small_dataset(extra=1, position=[3, 5, 9]).fingerprint == base.fingerprint
    others = [
        small_dataset(item_id=[9, 1, 3]),
        small_dataset(user_id=6),
        small_dataset(position=[0, 2, 1]),
        small_dataset(user_id="5"),
        small_dataset(user_id=np.uint64(2**63)),
        small_dataset(item_id=["9", "1", "2"]),
        small_dataset(item_id=['9", "1', "1", "2"]),
        small_dataset(timestamp=5),
        small_dataset(rating=5),
        Dataset.from_tables(small_dataset().interactions, repeats="keep", verbose=False),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


def test_titles():
    items = pd.DataFrame({"item_id": [1, 2, 9], "title": ["one", None, "nine"]})
    table = pd.DataFrame({"user_id": 5, "item_id": [9, 1, 2], "position": [0, 1, 2]})
    dataset = Dataset.from_tables(table, items=items, verbose=False)
    assert dataset.titles([3, 1]).tolist() == ["nine", "one"]
    assert dataset.titles(np.array([[1], [2]])).tolist() == [["one"], ["2"]]
    assert dataset.titles(dataset.items.index).tolist() == ["one", "2", "nine"]
    assert dataset.titles(3) == "nine" and dataset.titles([]).tolist() == []
    assert "; ".join(dataset.titles(table["item_id"][1:])) == "one; 2"
    assert small_dataset().titles([3, 1]).tolist() == ["9", "1"]
    assert dataset.titles(pd.Series([3, 1], dtype="Int64")).tolist() == ["nine", "one"]
    for unknown in (0, 4, -1):
        with pytest.raises(ValueError, match=f"integers from 1 to 3, received {unknown}"):
            dataset.titles([1, unknown])
    for odd in ([1.9, 2.0], [np.nan], [True] * 3, ["2"], pd.Series([1, None], dtype="Int64")):
        kind = "float64" if isinstance(odd, pd.Series) else np.array(odd).dtype
        with pytest.raises(ValueError, match=f"integers from 1 to 3, received {kind} values"):
            dataset.titles(odd)


def test_original_ids_that_are_unknown():
    assert small_dataset().item_ids([9, 1]).tolist() == [3, 1]
    with pytest.raises(ValueError, match="no item has the original id 7"):
        small_dataset().item_ids([9, 1, 7])
    with pytest.raises(ValueError, match="no user has the original id 'x'"):
        small_dataset(user_id="y").user_ids(["x"])


def test_original_ids_come_in_lists():
    texts = small_dataset(item_id=["1", "2", "12"])
    for several in (["12"], ("12",), np.array(["12"]), pd.Series(["12"]), iter(["12"])):
        assert texts.item_ids(several).tolist() == [2]
    with pytest.raises(ValueError, match=r"list of ids, received '12'; write \['12'\]"):
        texts.item_ids("12")
    with pytest.raises(ValueError, match=r"list of ids, received 5; write \[5\]"):
        small_dataset().user_ids(5)
    with pytest.raises(ValueError, match="expected a list of ids"):
        small_dataset().user_ids(np.array(5))


def test_where_numbers_again_and_leaves_the_original_alone():
    table = pd.DataFrame({"user_id": [4, 4, 6, 6, 6, 6], "item_id": [7, 8, 9, 7, 5, 8]})
    table["timestamp"] = [10, 20, 30, 40, 50, 60]
    items = pd.DataFrame({"item_id": [5, 7, 8, 9], "title": [*"abcd"]})
    dataset = Dataset.from_tables(table, items=items, min_user_interactions=1, verbose=False)
    before = dataset.fingerprint
    less = dataset.where(np.array([0, 0, 1, 0, 1, 1], bool))
    assert less.interactions.to_numpy().tolist() == [[1, 3, 0, 30], [1, 1, 1, 50], [1, 2, 2, 60]]
    assert less.interactions.dtypes.equals(dataset.interactions.dtypes)
    assert less.users["original_id"].tolist() == [6] and less.users.index.name == "user_id"
    assert less.titles([1, 2, 3]).tolist() == ["a", "c", "d"]
    assert less.items.index.tolist() == [1, 2, 3]
    del dataset.__dict__["fingerprint"]
    assert dataset.fingerprint == before
    for kept in (np.array([0, 0, 1, 0, 1, 1]), np.ones(5, bool), np.ones((6, 1), bool)):
        with pytest.raises(ValueError, match=rf"bool \[6\], received {kept.dtype} of "):
            dataset.where(kept)


def test_tables_in_memory_have_no_name_or_path():
    with pytest.raises(TypeError, match="received a DataFrame; see Dataset.from_tables"):
        load_dataset(small_dataset().interactions)


# The real thing


def test_real_ml_100k(capsys):
    with warnings.catch_warnings(action="error"):
        dataset = load_dataset("ml-100k")
    assert "the fingerprint is the one of the book's records" in capsys.readouterr().out
    assert isinstance(dataset, Dataset)
    assert (dataset.num_users, dataset.num_items, len(dataset.interactions)) == (943, 1682, 100_000)
    assert dataset.fingerprint == "d443e728957e7b44e3adde87f2cba5ce10c70939136263d21118f73cd49de2cf"
    assert dataset.items.loc[1, ["title", "year", "genres"]].tolist() == [
        "Toy Story (1995)", 1995, ("Animation", "Children's", "Comedy")
    ]  # fmt: skip
    # u.data says of user 1: first interaction at 874965478, last at 889751736.
    times = dataset.interactions.query("user_id == 1")["timestamp"]
    assert (times.iloc[0], times.iloc[-1]) == (874965478, 889751736)
    assert dataset.users.loc[1].tolist() == [1, "M", 24, "technician", "85711"]
    rating = dataset.interactions["rating"]
    assert (rating.min(), rating.max(), round(float(rating.mean()), 5)) == (1, 5, 3.52986)
    assert set(dataset.items.index[dataset.items["year"].isna()]) == {267}
