"""Where datasets come from: sources in their order, and what is left when they fail.

Archives are made here in GroupLens's formats and served from 127.0.0.1, so nothing but the one
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

import pandas as pd
import pooch
import pytest
from test_datasets import FILES, RATINGS, files_1m, files_100k, files_csv, lines, write

from recsys_helpers import fetch
from recsys_helpers.datasets import load_dataset
from recsys_helpers.fetch import NAMED

ASKED_ONCE = (fetch._unreachable, fetch._pip_download)


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
    monkeypatch.setattr(fetch, "FINGERPRINTS", {})
    for asked in ASKED_ONCE:
        asked.cache_clear()
    monkeypatch.delenv("RECSYS_DATA", raising=False)
    monkeypatch.setattr(fetch, "__file__", str(tmp_path / "site" / "x" / "fetch.py"))
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache")
    yield tmp_path
    for asked in ASKED_ONCE:
        asked.cache_clear()


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
    monkeypatch.setattr(fetch, "GROUPLENS", f"http://127.0.0.1:{server.server_port}/")
    yield folder, requests
    server.shutdown()
    server.server_close()


@pytest.fixture
def offline(small, monkeypatch):
    """Neither GroupLens nor a package index answers."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(fetch, "GROUPLENS", f"http://127.0.0.1:{unused.getsockname()[1]}/")
    monkeypatch.setattr(fetch, "RECBOLE", "recbole==0.0.0.no.such.version")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    return small


def own_folder(folder):
    return write(folder, {"interactions.csv": b"user_id,item_id,position\n5,2,2\n5,1,1\n5,9,0\n"})


def everything_under(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.exists() else []


# Sources


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
    assert "data" not in fetch.data_folders()
    checkout = small / "checkout"
    (checkout / "data").mkdir(parents=True)
    (checkout / "_config.yml").touch()
    monkeypatch.setattr(fetch, "__file__", str(checkout / "recsys_helpers" / "fetch.py"))
    assert fetch.data_folders()["data"] == (checkout / "data").resolve()
    # A reader's own folder of this name comes first, and neither hides the other.
    own_folder(small / "project" / "data" / "mine")
    own_folder(checkout / "data" / "theirs")
    monkeypatch.chdir(small / "project")
    for name in ("mine", "theirs"):
        assert load_dataset(name, data_folder="data", verbose=False).num_items == 3
    places = list(fetch.data_folders("data").values())
    assert [place.resolve() for place in places[:2]] == [
        small / "project" / "data", (checkout / "data").resolve()
    ]  # fmt: skip


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


def test_only_what_is_read_is_kept_of_an_archive(grouplens, tmp_path):
    name, files = "ml-latest-small", files_csv()
    more = files | {"run.sh": b"", "tags.csv": b""}
    (grouplens[0] / f"{name}.zip").write_bytes(zipped(name, more))
    load_dataset(name, verbose=False)
    assert everything_under(tmp_path / "cache") == sorted([name, *(f"{name}/{f}" for f in files)])


def test_of_two_that_unpack_the_same_the_first_is_kept(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped("ml-1m", files_1m()))
    theirs = write(tmp_path / "data" / "ml-1m", files_1m())
    before = everything_under(tmp_path / "data")
    assert fetch._keep("ml-1m", tmp_path / "a.zip", {"": tmp_path / "data"}).parent == theirs
    assert everything_under(tmp_path / "data") == before


def test_archive_put_there_by_hand(offline, tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "ml-1m.zip").write_bytes(zipped("ml-1m", files_1m()))
    assert load_dataset("ml-1m").num_users == 2
    assert "unpacking" in capsys.readouterr().out


def test_a_folder_in_the_way_of_an_archive_is_named_and_kept(offline, tmp_path):
    (tmp_path / "cache" / "ml-latest-small").mkdir(parents=True)
    (tmp_path / "cache" / "ml-latest-small" / "links.csv").touch()
    (tmp_path / "cache" / "ml-latest-small.zip").write_bytes(zipped("ml-latest-small", files_csv()))
    with pytest.raises(OSError, match="ml-latest-small is in the way, without interactions: move"):
        load_dataset("ml-latest-small", verbose=False)
    assert len(everything_under(tmp_path / "cache")) == 3


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
    with pytest.raises(OSError, match=r"from no source.\n.*hash") as e:
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


def test_archive_of_something_else(grouplens):
    (grouplens[0] / "ml-latest-small.zip").write_bytes(zipped("x", {"tags.csv": b"1\n"}))
    with pytest.raises(OSError, match="ml-latest-small.zip holds no interactions"):
        load_dataset("ml-latest-small", verbose=False)


def test_hand_put_archive_with_another_checksum_is_named_and_kept(small):
    (small / "cache").mkdir()
    archive = small / "cache" / "ml-1m.zip"
    archive.write_bytes(zipped("ml-1m", files_1m())[:-1])
    with pytest.raises(ValueError, match=r"ml-1m.zip is damaged .* expected md5 .*, received "):
        load_dataset("ml-1m", verbose=False)
    assert archive.is_file()


def test_silent_host_costs_its_budget_once(offline, monkeypatch, capsys):
    assert fetch.ANSWER_SECONDS < 10
    monkeypatch.setattr(fetch, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setattr(fetch, "GROUPLENS", url)
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
    assert f"{fetch.GROUPLENS}ml-100k.zip" in message and str(tmp_path / "cache") in message
    printed = capsys.readouterr().out.splitlines()
    steps = ["not in", "fetching http", "no: ", "fetching the recbole", "no: pip failed"]
    assert len(printed) == len(steps)
    assert all(f"ml-100k: {step}" in line for step, line in zip(steps, printed, strict=True))
    # Neither is tried again, and the reasons are given again.
    monkeypatch.setattr(fetch.subprocess, "run", None)
    with pytest.raises(OSError, match="pip failed"):
        load_dataset("ml-100k")
    assert everything_under(tmp_path / "cache") == []


def test_unknown_name_lists_the_names(small, monkeypatch):
    own_folder(small / "mine")
    monkeypatch.setenv("RECSYS_DATA", str(small))
    with pytest.raises(ValueError, match="Unknown dataset 'ml-100'.*ml-100k, ml-1m.*: mine"):
        load_dataset("ml-100")


def test_a_copy_that_is_not_the_one_we_know_is_loaded_with_a_warning(small, monkeypatch, capsys):
    write(small / "cache" / "ml-1m", files_1m())
    monkeypatch.setitem(NAMED, "ml-1m", NAMED["ml-1m"]._replace(interactions=7))
    with pytest.warns(UserWarning, match="ml-1m has 6 interactions here, 7 at GroupLens"):
        fingerprint = load_dataset("ml-1m").fingerprint
    monkeypatch.setattr(fetch, "FINGERPRINTS", {"ml-1m": fingerprint})
    load_dataset("ml-1m")
    assert "the fingerprint is the one of the book's records" in capsys.readouterr().out
    monkeypatch.setattr(fetch, "FINGERPRINTS", {"ml-1m": "0123"})
    with pytest.warns(UserWarning, match=f"fingerprint {fingerprint[:12]}, .* 0123: results will"):
        load_dataset("ml-1m")
    load_dataset("ml-1m", repeats="last")  # another dataset on purpose
    load_dataset(small / "cache" / "ml-1m")  # not by name


# MovieLens-1M in the order of time

# In GroupLens's form and order: by user, not by time, with ties. Movie 6 has three ratings only.
SESSIONS = {
    1: [(3, 900), (1, 500), (6, 500), (4, 500), (2, 700)],
    2: [(4, 80), (3, 90), (6, 90), (2, 90), (1, 90)],
    3: [(1, 30), (2, 20), (3, 10), (4, 10), (6, 10)],
    4: [(2, 5), (1, 5), (4, 5), (3, 5)],
    5: [(1, 1), (3, 2), (2, 3), (4, 4)],
}
IN_ORDER = {1: [1, 4, 2, 3], 2: [4, 3, 2, 1], 3: [3, 4, 2, 1], 4: [2, 1, 4, 3], 5: [1, 3, 2, 4]}


def sessions_1m():
    ratings = [(u, i, 5 - i % 2, t) for u, session in SESSIONS.items() for i, t in session]
    movies = [(i, f"Movie {i} (199{i})", "Drama|War") for i in (1, 2, 3, 4, 6)]
    users = [(u, "F", 25, 3, "01234") for u in SESSIONS]
    return {
        "ratings.dat": lines(ratings, "::").encode(),
        "movies.dat": lines(movies, "::").encode("latin-1"),
        "users.dat": lines(users, "::").encode("latin-1"),
    }


def histories(dataset):
    table = dataset.interactions
    original = table.assign(
        user_id=dataset.users["original_id"].loc[table["user_id"]].to_numpy(),
        item_id=dataset.items["original_id"].loc[table["item_id"]].to_numpy(),
    )
    return original, original.groupby("user_id")["item_id"].agg(list).to_dict()


@pytest.mark.parametrize("source", ["folder", "archive", "download"])
def test_ml_1m_order_is_made_of_ml_1m(grouplens, monkeypatch, capsys, tmp_path, source):
    whole = zipped("ml-1m", sessions_1m())
    md5 = hashlib.md5(whole).hexdigest()
    monkeypatch.setitem(NAMED, "ml-1m", fetch.Named(md5, 23))
    first = tmp_path / "first"
    if source == "download":
        (grouplens[0] / "ml-1m.zip").write_bytes(whole)
    elif source == "archive":
        first.mkdir()
        (first / "ml-1m.zip").write_bytes(whole)
    else:
        write(first / "ml-1m", sessions_1m())
    # A data folder that comes later does not matter.
    own_folder(tmp_path / "later" / "ml-1m-order")
    if source != "download":
        monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "later"))
    dataset = load_dataset("ml-1m-order", data_folder=first)
    assert dataset.name == "ml-1m-order"
    assert "made from ml-1m, in the order of time" in capsys.readouterr().out
    original, order = histories(dataset)
    assert order == IN_ORDER
    assert original.columns.tolist() == ["user_id", "item_id", "position"]
    assert dataset.titles(1) == "Movie 1 (1991)" and dataset.items["genres"][4] == ("Drama", "War")
    assert dataset.users["zip_code"].tolist() == ["01234"] * 5

    # A folder of the same interactions is the same dataset.
    folder = tmp_path / "here" / "ml-1m-order"
    folder.mkdir(parents=True)
    original.sample(frac=1, random_state=0).to_parquet(folder / "interactions.parquet")
    again = load_dataset("ml-1m-order", data_folder=tmp_path / "here")
    assert "made from" not in capsys.readouterr().out
    assert again.fingerprint == dataset.fingerprint
    monkeypatch.setattr(fetch, "FINGERPRINTS", {"ml-1m-order": dataset.fingerprint})
    load_dataset("ml-1m-order", data_folder=first)
    assert "the fingerprint is the one of the book's records" in capsys.readouterr().out


def test_ml_1m_order_from_nowhere_says_what_to_fetch(offline):
    with pytest.raises(OSError, match=r"By hand: fetch http\S*/ml-1m.zip"):
        load_dataset("ml-1m-order", verbose=False)


# The wheel


def test_wheel_with_another_checksum_is_refused(small, monkeypatch, tmp_path):
    def fake_pip(command, **kwargs):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "recbole==1.2.1"} <= set(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / "recbole-1.2.1-py3-none-any.whl").write_bytes(zipped("x", {"a": b"b"}))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch, "_unreachable", lambda url: "not today")
    monkeypatch.setattr(fetch.subprocess, "run", fake_pip)
    with pytest.raises(OSError, match="not today(.|\n)*expected sha256"):
        load_dataset("ml-100k", verbose=False)
    assert everything_under(tmp_path / "cache") == []


def test_recbole_wheel_is_the_same_dataset(tmp_path, monkeypatch, capsys):
    """The second source, for real: pip, checksum, unpacking; and it equals the first one."""
    reachable = subprocess.run(
        [sys.executable, "-m", "pip", "download", "recbole==1.2.1", "--no-deps", "--retries=0"]
        + ["--dest", str(tmp_path / "probe"), "--quiet"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if reachable.returncode:
        pytest.skip(f"pip's index has no recbole==1.2.1 for us: {reachable.stderr.strip()[-200:]}")
    monkeypatch.setattr(fetch, "_unreachable", lambda url: "left out on purpose")
    monkeypatch.setattr(fetch, "data_folders", lambda argument: {"here": tmp_path / "data"})
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
