"""Datasets: formats, sources in their order, and every error a reader can run into.

Archives are built here in GroupLens's formats and served from 127.0.0.1, so nothing but the one
test of the real wheel needs a network.
"""

import hashlib
import io
import socket
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
import pytest

from recsys_helpers import datasets
from recsys_helpers.datasets import NAMED, Dataset, load_dataset

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


def zipped(name, files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            # A fixed time, so that the same files give the same checksum.
            archive.writestr(zipfile.ZipInfo(f"{name}/{file}"), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Let this module's small files pass for the named datasets, and hide the real ones."""
    for name, files in FILES.items():
        md5 = NAMED[name].md5 and hashlib.md5(zipped(name, files())).hexdigest()
        monkeypatch.setitem(NAMED, name, NAMED[name]._replace(md5=md5, interactions=len(RATINGS)))
    monkeypatch.setattr(datasets, "FILE_SHA256", {})
    monkeypatch.setattr(datasets, "_unreachable", {})
    monkeypatch.delenv("RECSYS_DATA", raising=False)
    monkeypatch.setattr(datasets, "__file__", str(tmp_path / "site" / "x" / "datasets.py"))
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache")
    return tmp_path


@pytest.fixture
def grouplens(small, monkeypatch):
    """A folder served over HTTP on 127.0.0.1 in GroupLens's place; `.requests` counts paths."""
    folder = small / "served"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(datasets, "GROUPLENS", f"http://127.0.0.1:{server.server_port}/")
    yield folder, requests
    server.shutdown()
    server.server_close()


@pytest.fixture
def offline(small, monkeypatch):
    """Neither GroupLens nor a package index answers."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(datasets, "GROUPLENS", f"http://127.0.0.1:{unused.getsockname()[1]}/")
    monkeypatch.setattr(datasets, "RECBOLE_VERSION", "0.0.0.no.such.version")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    return small


def everything_under(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.exists() else []


# Formats


@pytest.mark.parametrize("name", FILES)
def test_grouplens_formats_by_hand(small, name):
    dataset = load_dataset(write(small / name, FILES[name]()), verbose=False)

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


def test_demographics_keep_leading_zeros_and_codes(small):
    users = load_dataset(write(small / "a", files_100k()), verbose=False).users
    assert users["zip_code"].tolist() == ["01234", "T8H1N"]
    assert users["age"].tolist() == [24, 53] and users["age"].dtype == np.int64
    assert users["occupation"].tolist() == ["technician", "other"]
    users = load_dataset(write(small / "b", files_1m()), verbose=False).users
    assert users["zip_code"].tolist() == ["01234", "T8H1N"]
    assert users["occupation"].tolist() == [3, 3] and users["gender"].tolist() == ["M", "F"]


def own_folder(folder, text="user_id,item_id,position\n5,2,2\n5,1,1\n5,9,0\n", **more):
    return write(folder, {"interactions.csv": text.encode(), **more})


def test_own_interactions_with_positions_only(small):
    dataset = load_dataset(own_folder(small / "mine"), verbose=False)
    assert not dataset.has_timestamps and "rating" not in dataset.interactions
    assert dataset.interactions["item_id"].tolist() == [3, 1, 2]  # originals 9, 1, 2
    assert dataset.users.columns.tolist() == dataset.items.columns.tolist() == ["original_id"]


def test_own_parquet_equals_csv_and_position_decides(small):
    text = "user_id,item_id,timestamp,position\n5,2,10,2\n5,1,10,1\n5,9,10,0\n"
    from_csv = load_dataset(own_folder(small / "csv", text), verbose=False)
    folder = small / "parquet"
    folder.mkdir()
    pd.read_csv(io.StringIO(text)).to_parquet(folder / "interactions.parquet")
    from_parquet = load_dataset(folder, verbose=False)
    assert from_csv.interactions["item_id"].tolist() == [3, 1, 2]
    assert from_csv.fingerprint == from_parquet.fingerprint


def test_own_users_and_items_may_be_incomplete(small):
    own = own_folder(
        small / "mine",
        **{
            "users.csv": b"user_id,age,shoe_size\n1,30,44\n",
            "items.csv": b"item_id,title,genres,year\n9,NA,Drama|War,1950\n1,,,\n",
        },
    )
    dataset = load_dataset(own, verbose=False)
    assert dataset.users.columns.tolist() == ["original_id", "age"]
    assert dataset.users["age"].isna().tolist() == [True]
    assert dataset.items["title"].fillna("-").tolist() == ["-", "-", "NA"]
    assert dataset.items["genres"].tolist() == [(), (), ("Drama", "War")]
    assert dataset.items["year"].tolist() == [pd.NA, pd.NA, 1950]


def test_fingerprint_reacts_to_content_and_to_nothing_else(small):
    base = load_dataset(own_folder(small / "a"), verbose=False)
    text = "item_id,extra,position,user_id\n9,x,0,5\n1,x,1,5\n2,x,7,5\n"
    same = load_dataset(own_folder(small / "b", text), verbose=False)
    assert base.fingerprint == same.fingerprint and len(base.fingerprint) == 64
    for i, changed in enumerate(
        ["5,3,2\n5,1,1\n5,9,0", "6,2,2\n6,1,1\n6,9,0", "5,2,1\n5,1,2\n5,9,0"]
    ):
        text = f"user_id,item_id,position\n{changed}\n"
        other = load_dataset(own_folder(small / f"c{i}", text), verbose=False)
        assert other.fingerprint != base.fingerprint


# Where datasets come from


def test_order_of_data_folders(small, monkeypatch, capsys):
    first, second = small / "first", small / "second"
    monkeypatch.setenv("RECSYS_DATA", str(second))
    write(small / "cache" / "ml-100k", files_100k())
    load_dataset("ml-100k")
    assert "read from " in capsys.readouterr().out.splitlines()[-1]
    write(second / "ml-100k", files_100k())
    load_dataset("ml-100k")
    assert "read from $RECSYS_DATA/ml-100k" in capsys.readouterr().out
    write(first / "ml-100k", files_100k())
    load_dataset("ml-100k", data_folder=first)
    assert f"read from {first}/ml-100k" in capsys.readouterr().out


def test_checkout_is_found_from_the_package(small, monkeypatch):
    assert "data" not in datasets._data_folders(None)
    checkout = small / "checkout"
    (checkout / "data").mkdir(parents=True)
    (checkout / "_config.yml").touch()
    monkeypatch.setattr(datasets, "__file__", str(checkout / "recsys_helpers" / "datasets.py"))
    assert datasets._data_folders(None)["data"] == (checkout / "data").resolve()


def test_name_of_a_folder_inside_a_data_folder(small, monkeypatch, capsys):
    own_folder(small / "mine")
    monkeypatch.setenv("RECSYS_DATA", str(small))
    assert load_dataset("mine").num_items == 3
    assert "read from $RECSYS_DATA/mine" in capsys.readouterr().out


@pytest.mark.parametrize("name", FILES)
def test_download_is_kept_and_not_repeated(grouplens, tmp_path, capsys, name):
    served, requests = grouplens
    (served / f"{name}.zip").write_bytes(zipped(name, FILES[name]()))
    dataset = load_dataset(name)
    assert dataset.num_items == 4
    printed = capsys.readouterr().out
    assert f"{name}: fetching http://127.0.0.1" in printed and "checked, and kept in" in printed
    assert everything_under(tmp_path / "cache") == sorted(
        [name, *(f"{name}/{f}" for f in FILES[name]())]
    )
    before = len(requests)
    assert load_dataset(name, verbose=False).fingerprint == dataset.fingerprint
    assert len(requests) == before
    assert "fetching" not in capsys.readouterr().out


def test_archive_put_there_by_hand(offline, tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "ml-1m.zip").write_bytes(zipped("ml-1m", files_1m()))
    assert load_dataset("ml-1m").num_users == 2
    assert "unpacking" in capsys.readouterr().out


def test_read_only_data_folder_falls_back_to_the_cache(grouplens, tmp_path, monkeypatch):
    (grouplens[0] / "ml-1m.zip").write_bytes(zipped("ml-1m", files_1m()))
    not_a_folder = tmp_path / "file"  # cannot be written by anybody, the superuser included
    not_a_folder.touch()
    monkeypatch.setenv("RECSYS_DATA", str(not_a_folder))
    load_dataset("ml-1m", verbose=False)
    assert (tmp_path / "cache" / "ml-1m" / "ratings.dat").is_file()


def test_corrupt_download_leaves_nothing(grouplens, tmp_path):
    whole = zipped("ml-1m", files_1m())
    (grouplens[0] / "ml-1m.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"from no source.\n.*checksum mismatch") as e:
        load_dataset("ml-1m", verbose=False)
    assert "put it, as it is, into one of these folders" in str(e.value).replace("\n", " ")
    assert everything_under(tmp_path / "cache") == []
    (grouplens[0] / "ml-1m.zip").write_bytes(whole)
    assert load_dataset("ml-1m", verbose=False).num_users == 2


def test_truncated_archive_without_a_published_checksum(grouplens, tmp_path):
    whole = zipped("ml-latest-small", files_csv())
    (grouplens[0] / "ml-latest-small.zip").write_bytes(whole[:-30])
    with pytest.raises(OSError, match="ml-latest-small.zip is truncated or corrupt"):
        load_dataset("ml-latest-small", verbose=False)
    assert everything_under(tmp_path / "cache") == []


def test_archive_damaged_inside(grouplens, tmp_path):
    whole = bytearray(zipped("ml-latest-small", files_csv()))
    whole[60] ^= 0xFF  # in the compressed bytes of the first member
    (grouplens[0] / "ml-latest-small.zip").write_bytes(whole)
    with pytest.raises(OSError, match="truncated or corrupt"):
        load_dataset("ml-latest-small", verbose=False)
    assert everything_under(tmp_path / "cache") == []


def test_number_of_rows_is_checked(grouplens, tmp_path, monkeypatch):
    name = "ml-latest-small"
    monkeypatch.setitem(NAMED, name, NAMED[name]._replace(interactions=7))
    (grouplens[0] / f"{name}.zip").write_bytes(zipped(name, files_csv()))
    with pytest.raises(OSError, match="expected 7 rows, received 6"):
        load_dataset(name, verbose=False)
    assert everything_under(tmp_path / "cache") == []
    write(tmp_path / "cache" / name, files_csv())
    with pytest.raises(ValueError, match="expected 7 rows, received 6. Delete"):
        load_dataset(name, verbose=False)


def test_last_line_without_newline_counts(small):
    files = files_1m()
    files["ratings.dat"] = files["ratings.dat"].rstrip(b"\n")
    write(small / "cache" / "ml-1m", files)
    assert load_dataset("ml-1m", verbose=False).num_users == 2


@pytest.mark.parametrize(
    "member", ["../evil.txt", "/evil.txt", "a/../../evil", "C:\\evil", "..\\e"]
)
def test_members_that_leave_the_folder_are_refused(grouplens, tmp_path, member):
    name = "ml-latest-small"
    archive = io.BytesIO(zipped(name, files_csv()))
    with zipfile.ZipFile(archive, "a") as members:
        members.writestr(zipfile.ZipInfo(member), b"evil")
    (grouplens[0] / f"{name}.zip").write_bytes(archive.getvalue())
    with pytest.raises(OSError, match="is refused: its member .* leaves the folder"):
        load_dataset(name, verbose=False)
    assert everything_under(tmp_path / "cache") == []


def test_archive_of_something_else(grouplens):
    (grouplens[0] / "ml-latest-small.zip").write_bytes(zipped("x", {"tags.csv": b"1\n"}))
    with pytest.raises(OSError, match="ml-latest-small.zip holds none of ratings.csv"):
        load_dataset("ml-latest-small", verbose=False)


def test_hand_put_archive_with_another_checksum_is_named_and_kept(small):
    (small / "cache").mkdir()
    archive = small / "cache" / "ml-1m.zip"
    archive.write_bytes(zipped("ml-1m", files_1m())[:-1])
    with pytest.raises(ValueError, match=r"ml-1m.zip is damaged .* expected md5 .*, received "):
        load_dataset("ml-1m", verbose=False)
    assert archive.is_file()


def test_pinned_bytes_are_checked_where_they_are_found(small, monkeypatch):
    folder = write(small / "cache" / "ml-100k", files_100k())
    right = hashlib.sha256(files_100k()["u.data"]).hexdigest()
    monkeypatch.setattr(datasets, "FILE_SHA256", {"u.data": right})
    load_dataset("ml-100k", verbose=False)
    (folder / "u.data").write_bytes(files_100k()["u.data"].replace(b"300", b"301"))
    with pytest.raises(ValueError, match=f"u.data is not ml-100k's: expected sha256 {right}"):
        load_dataset("ml-100k", verbose=False)


def test_silent_host_costs_its_budget_once(offline, monkeypatch, capsys):
    assert datasets.FIRST_BYTE_SECONDS < 10
    monkeypatch.setattr(datasets, "FIRST_BYTE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setattr(datasets, "GROUPLENS", url)
        start = time.monotonic()
        with pytest.raises(
            OSError, match="127.0.0.1 did not answer within 0.5 s|cannot be reached"
        ):
            load_dataset("ml-1m")
        first = time.monotonic() - start
        start = time.monotonic()
        with pytest.raises(OSError):
            load_dataset("ml-latest-small")
        second = time.monotonic() - start
    assert 0.4 < first < 2 and second < 0.4
    assert "fetching http://127.0.0.1" in capsys.readouterr().out


def test_no_network_says_where_to_put_the_files(offline, tmp_path, capsys, monkeypatch):
    with pytest.raises(OSError) as error:
        load_dataset("ml-100k")
    message = str(error.value)
    assert "cannot be reached" in message and "pip failed" in message
    assert f"{datasets.GROUPLENS}ml-100k.zip" in message and str(tmp_path / "cache") in message
    printed = capsys.readouterr().out.splitlines()
    steps = ["not in", "fetching http", "no: ", "fetching the recbole", "no: pip failed"]
    assert len(printed) == len(steps)
    assert all(f"ml-100k: {step}" in line for step, line in zip(steps, printed, strict=True))
    # Neither is tried again, and the reasons are given again.
    monkeypatch.setattr(datasets.subprocess, "run", None)
    with pytest.raises(OSError, match="pip failed"):
        load_dataset("ml-100k")
    assert everything_under(tmp_path / "cache") == []


def test_certificates_are_verified(small, monkeypatch):
    """A server whose certificate nobody signed is refused, and said to be."""
    import ssl

    openssl = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1".split()
    try:
        subprocess.run(
            [*openssl, "-keyout", small / "key", "-out", small / "cert"],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no openssl to make a certificate with: {error}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(small / "cert", small / "key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(datasets, "GROUPLENS", f"https://127.0.0.1:{server.server_port}/")
    try:
        with pytest.raises(OSError, match="(?i)certificate"):
            load_dataset("ml-1m", verbose=False)
    finally:
        server.shutdown()
        server.server_close()


def test_wheel_with_another_checksum_is_refused(small, monkeypatch, tmp_path):
    def fake_pip(command, **kwargs):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "recbole==1.2.1"} <= set(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / "recbole-1.2.1-py3-none-any.whl").write_bytes(zipped("x", {"a": b"b"}))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(datasets, "_unreachable", {"files.grouplens.org": "not today"})
    monkeypatch.setattr(datasets.subprocess, "run", fake_pip)
    with pytest.raises(OSError, match="not today(.|\n)*checksum mismatch, file removed: expected"):
        load_dataset("ml-100k", verbose=False)
    assert everything_under(tmp_path / "cache") == []


# What can be wrong with the contents


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "user,item_id,timestamp\n1,2,3\n",
            r"need the columns user_id.*received \['user', 'item_id'",
        ),
        ("user_id,item_id\n1,2\n", r"timestamp or position, received \['user_id', 'item_id'\]"),
        ("user_id,item_id,position\nu1,2,0\n", r"user_id must hold integers only, received .*'u1'"),
        (
            "user_id,item_id,position\n1,2.5,0\n",
            r"item_id must hold integers only, received .*2\.5",
        ),
        (
            "user_id,item_id,position\n1,,0\n1,3,1\n",
            r"item_id must hold integers only, received .*nan",
        ),
        (
            "user_id,item_id,timestamp\n1,2,2020-01-01\n1,3,2020-01-02\n1,4,2020-01-03\n",
            r"timestamp must hold integers only, received .*'2020-01-01'",
        ),
        (
            "user_id,item_id,position\n1,2,0\n1,3,1\n1,2,2\n",
            "1 duplicate .user, item. pairs, the first being user 1 with item 2",
        ),
        (
            "user_id,item_id,position\n1,2,0\n1,3,1\n1,4,2\n8,2,0\n8,3,1\n",
            "user 8 has 2 interactions; every user needs three",
        ),
        ("user_id,item_id,position\n", "there are no interactions"),
        ("", "is not a table separated by ','"),
    ],
)
def test_wrong_interactions(small, text, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(own_folder(small / "mine", text), verbose=False)


def test_wrong_number_of_columns(small):
    files = files_100k()
    files["u.data"] = files["u.data"].replace(b"\t", b" ")
    with pytest.raises(ValueError, match=r"u.data has 1 columns separated by '\\t', expected 4"):
        load_dataset(write(small / "x", files), verbose=False)


def test_wrong_items(small):
    own = own_folder(small / "a", **{"items.csv": b"movie,title\n1,x\n"})
    with pytest.raises(ValueError, match=r"items need the column item_id, received \['movie'"):
        load_dataset(own, verbose=False)
    own = own_folder(small / "b", **{"items.csv": b"item_id,title\n1,x\n1,y\n"})
    with pytest.raises(ValueError, match="item_id 1 occurs twice"):
        load_dataset(own, verbose=False)


def test_unknown_name_lists_the_names(small, monkeypatch):
    own_folder(small / "mine")
    monkeypatch.setenv("RECSYS_DATA", str(small))
    with pytest.raises(ValueError, match="Unknown dataset 'ml-100'.*ml-100k, ml-1m.*: mine"):
        load_dataset("ml-100")


def test_folder_without_interactions(small):
    write(small / "x", {"notes.txt": b""})
    with pytest.raises(ValueError, match=r"expected one of interactions.parquet.*'notes.txt'"):
        load_dataset(small / "x")


# The real thing


def test_real_ml_100k():
    dataset = load_dataset("ml-100k")
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


def test_recbole_wheel_is_the_same_dataset(tmp_path, monkeypatch, capsys):
    """The second source, for real: pip, checksum, unpacking; and it equals the first one."""
    reachable = subprocess.run(
        [sys.executable, "-m", "pip", "download", "recbole==1.2.1", "--no-deps", "--retries=0"]
        + ["--dest", str(tmp_path / "probe"), "--quiet"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if reachable.returncode:
        pytest.skip(f"pip's index has no recbole==1.2.1 for us: {reachable.stderr.strip()[-200:]}")
    monkeypatch.setattr(datasets, "_unreachable", {"files.grouplens.org": "left out on purpose"})
    monkeypatch.setattr(datasets, "_data_folders", lambda argument: {"here": tmp_path / "data"})
    wheel = load_dataset("ml-100k")
    assert "read from here/ml-100k" in capsys.readouterr().out
    assert everything_under(tmp_path / "data") == [
        "ml-100k", *(f"ml-100k/ml-100k.{suffix}" for suffix in ("inter", "item", "user"))
    ]  # fmt: skip
    monkeypatch.undo()
    default = load_dataset("ml-100k")
    assert wheel.fingerprint == default.fingerprint
    pd.testing.assert_frame_equal(wheel.interactions, default.interactions)
    pd.testing.assert_frame_equal(wheel.users, default.users)
    pd.testing.assert_frame_equal(
        wheel.items.drop(columns="title"), default.items.drop(columns="title")
    )
    # Accents are all that may differ in titles: "c kfldum klaka" is one copy's "Á köldum klaka".
    titles = wheel.items["title"].compare(default.items["title"])
    assert len(titles) < 10 and (titles["self"].map(lambda title: not title.isascii())).all()
