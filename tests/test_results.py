"""Recording runs, deciding what is out of date, and the tables made of the records."""

import dataclasses
import gzip
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recsys_helpers import findings, machine, pages, results, trials
from recsys_helpers.bootstrap import interval, means_of_draws
from recsys_helpers.datasets import load_dataset
from recsys_helpers.metrics import recommendation_metrics
from recsys_helpers.plots import colour_of
from recsys_helpers.records import pack, write_run
from recsys_helpers.splits import leave_last_out

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "results"))
import run  # noqa: E402

USERS = 4


@pytest.fixture
def split(tmp_path):
    """Four users, and three movies that all of them watched in the same order."""
    folder = write_data(tmp_path / "data" / "tiny")
    return leave_last_out(load_dataset(folder, verbose=False), min_item_interactions=1)


def write_data(folder, movies=3):
    folder.mkdir(parents=True)
    rows = [f"{user},{item},{item}" for user in range(USERS) for item in range(movies)]
    (folder / "interactions.csv").write_text("user_id,item_id,position\n" + "\n".join(rows))
    return folder


def record(folder, split, model, seed, ranks, **more):
    return results.record_run(folder, model=model, split=split, seed=seed, ranks=ranks, **more)


# Recording


def test_round_trip(tmp_path, split):
    ranks = np.array([1, 2, 11, 70_000])
    path = record(
        tmp_path / "r", split, "fm", 3, ranks, validation_ranks=np.ones(USERS, int),
        parameters={"dim": 32}, seconds=2.04,
    )  # fmt: skip
    assert path == tmp_path / "r" / "tiny" / "fm-seed3.json"
    assert [p.name for p in path.parent.iterdir()] == ["fm-seed3.json"]  # nothing temporary
    (loaded,) = results.load_runs(tmp_path / "r", "tiny")
    assert loaded["ranks"].tolist() == ranks.tolist()
    assert loaded["metrics"]["hit_rate@5"] == 0.5 and loaded["metrics"]["hit_rate@50"] == 0.75
    assert loaded["metrics"]["ndcg@10"] == pytest.approx((1 + 1 / np.log2(3)) / 4)
    assert loaded["metrics"]["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 11 + 1 / 70_000) / 4)
    low, high = loaded["intervals"]["ndcg@10"]
    assert low <= loaded["metrics"]["ndcg@10"] <= high and low < high
    assert loaded["intervals"].keys() == loaded["metrics"].keys()
    assert loaded["validation_metrics"]["precision@10"] == pytest.approx(0.1)
    assert loaded["configuration"] == {"dim": 32} and loaded["split"] == "leave-last-out"
    assert loaded["split_dataset_fingerprint"] == split.dataset.fingerprint
    assert loaded["wall_clock_seconds"] == 2.0 and loaded["peak_memory_mib"] > 10
    assert "cores" in loaded["machine"] and loaded["numerics"]["instructions"]
    assert loaded["metrics"].keys() >= {"hit_rate@100", "hit_rate@200", "hit_rate@500"}
    assert loaded["versions"]["numpy"] == np.__version__


CPUINFO = """\
processor\t: 0
cpu family\t: 6
model\t\t: 85
model name\t: Some CPU: 8 cores
flags\t\t: fpu avx avx2

processor\t: 1
model name\t: Another
"""


def test_the_machine_and_its_numerics_are_named(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    about = machine.describe_machine()
    assert "Some CPU: 8 cores (family 6, model 85)" in about["machine"]
    assert about["numerics"]["vectors"] == "AVX2"
    assert about["numerics"]["oneDNN"] == "TensorFlow not in use"
    (tmp_path / "cpuinfo").write_text(CPUINFO.replace("avx2", "avx2 avx512f"))
    assert machine.describe_machine()["numerics"]["vectors"] == "AVX-512"
    (tmp_path / "cpuinfo").unlink()
    assert machine.describe_machine()["numerics"]["vectors"] == "unknown"
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    port = SimpleNamespace(IsMklEnabled=lambda: False)
    monkeypatch.setitem(sys.modules, "tensorflow.python.util._pywrap_util_port", port)
    assert machine.describe_machine()["numerics"]["oneDNN"] == "off"
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    assert machine.describe_machine()["machine"].startswith(f"1 of {os.cpu_count()} cores, ")


def test_an_empty_folder_records_nothing(tmp_path, split, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert record("", split, "fm", 1, np.ones(USERS, int)) is None
    assert not list(tmp_path.rglob("*.json"))


def test_an_experiment_is_kept_apart_from_the_models(tmp_path, split):
    ranks = np.ones(USERS, int)
    record(tmp_path, split, "fm", 1, ranks)
    path = record(
        tmp_path, split, "no_last", 1, ranks * 2, experiment="ladder", target="validation"
    )
    assert path == tmp_path / "tiny" / "ladder" / "no_last-seed1.json"
    (model,), (variant,) = (results.load_runs(tmp_path, "tiny", e) for e in ("", "ladder"))
    assert (model["model"], model["target"]) == ("fm", "test")
    assert (variant["model"], variant["target"]) == ("no_last", "validation")
    assert variant["ranks"].tolist() == [2] * USERS
    assert list(results.results_table("tiny", tmp_path).index) == ["FM"]


def test_wrong_number_of_ranks(tmp_path, split):
    with pytest.raises(
        ValueError, match=r"one rank for each of the 4 users, received shape \(3,\)"
    ):
        record(tmp_path / "r", split, "fm", 1, np.ones(3, int))
    with pytest.raises(ValueError, match="validation_ranks must have one rank"):
        record(
            tmp_path / "r", split, "fm", 1, np.ones(USERS, int), validation_ranks=np.ones(5, int)
        )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("odd", [float("nan"), np.float32("inf"), ROOT, {"of": [np.nan]}])
def test_what_json_cannot_say_is_named_and_leaves_no_file(tmp_path, split, odd):
    with pytest.raises(ValueError, match=r"parameters\['x'\] must be what JSON has, received .*"):
        record(tmp_path / "r", split, "fm", 1, np.ones(USERS, int), parameters={"y": 1, "x": odd})
    assert not (tmp_path / "r").exists()


def test_numbers_may_be_numpys(tmp_path, split):
    parameters = {"dim": np.int64(3), "rate": np.float32(0.5), "own": np.bool_(True)}
    parameters["hidden"] = np.array([8, 4])
    record(tmp_path, split, "fm", np.int64(1), np.ones(USERS, int), parameters=parameters,
           seconds=np.float32(1.26))  # fmt: skip
    (loaded,) = results.load_runs(tmp_path)
    assert loaded["configuration"] == {"dim": 3, "rate": 0.5, "own": True, "hidden": [8, 4]}
    assert (loaded["seed"], loaded["wall_clock_seconds"]) == (1, 1.3)


def test_a_run_that_tables_could_not_use_is_not_recorded(tmp_path, split):
    def refused(message, model="fm", seed=1, name="tiny", **more):
        own = dataclasses.replace(split, dataset=dataclasses.replace(split.dataset, name=name))
        with pytest.raises(ValueError, match=message):
            record(tmp_path / "r" / "in", own, model, seed, np.ones(USERS, int), **more)

    for name in ("2023/shop", "..", ".", "", "a\\b"):
        refused("the dataset's name must be a name without / and .*received", name=name)
        refused("model must be a name without / and .*received", model=name)
    refused("experiment must be a name .*received '../x'", experiment="../x")
    refused("seed must be an integer, received None", seed=None)
    refused("target must be .test., or .validation. in an.*received 'val'", target="val")
    refused("received 'validation' in ''", target="validation")  # which no table would tell apart
    assert not (tmp_path / "r").exists()


def test_a_record_is_readable_for_others(tmp_path, split):
    path = record(tmp_path / "r", split, "fm", 1, np.ones(USERS, int))
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["dataset", "model", "seed", "split", "metrics", "intervals"])
def test_a_record_without_what_tables_need_is_named(recorded, name):
    path = recorded / "tiny" / "dssm-seed2.json"
    run = json.loads(path.read_text())
    del run[name]
    results.write_run(path, run)
    with pytest.raises(ValueError, match=rf"dssm-seed2.json is damaged \(KeyError: '{name}'\)"):
        results.load_runs(recorded)


@pytest.mark.parametrize("damage", ["<<<<<<< HEAD\n", "{}", "[]", '{"ranks": "AAAA"}', "\udcff"])
def test_a_damaged_file_is_named(recorded, damage):
    for name in ("tiny/fm-seed1.json", "stale.json", "benchmarks/a.json", "trials/tiny/1.json"):
        if name in ("stale.json", "benchmarks/a.json") and damage[0] in "{[":
            continue  # nothing says what should be in them
        path = recorded / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(damage, errors="surrogateescape")
        with pytest.raises(ValueError, match=rf"{name} is damaged \(\w+: .*\). Restore it, or"):
            results.load_benchmark("a", recorded)
            trials.load_trials(recorded, "tiny")
            results.results_table("tiny", recorded)
        path.unlink()
    assert len(results.load_runs(recorded)) == 5


# Tables


@pytest.fixture
def recorded(tmp_path, split):
    folder = tmp_path / "r"
    record(folder, split, "dssm", 1, np.array([1, 1, 100, 100]))
    record(folder, split, "dssm", 2, np.array([1, 1, 1, 100]))
    record(folder, split, "a_new_model", 1, np.array([1, 1, 1, 1]))
    for seed in (1, 2):
        record(folder, split, "popularity", seed, np.array([100, 100, 100, 1]))
    return folder


def test_results_table(recorded):
    table = results.results_table("tiny", recorded, metrics=("hit_rate@10", "mrr"))
    assert table.index.tolist() == ["Popularity", "DSSM", "a_new_model"]
    assert table.columns.tolist() == ["seeds", "HR@10", "MRR"]
    # (0.5 + 0.75) / 2, and the standard deviation of two numbers is their distance over sqrt(2)
    assert table.loc["DSSM", "HR@10"] == pytest.approx((0.625, 0.1768), abs=1e-4)
    assert table.loc["Popularity", "HR@10"][:2] == (0.25, 0.0)  # and its interval's upper end
    assert len(table.loc["Popularity", "HR@10"]) == 3
    assert table["seeds"].tolist() == ["1, 2", "1, 2", "1"]
    assert results.results_table("nothing", recorded).empty


def test_what_is_shown_stands_beside_the_exact_ranking(tmp_path, split):
    # Everybody's third movie is the target; two of the four users are shown it, at the first place.
    shown = [np.array([[3], [3], [1], [2]]), np.array([[3], [3], [3], [3]])]
    for seed, recommended in enumerate(shown, start=1):
        record(tmp_path, split, "fm", seed, np.array([1, 1, 1, 50]), recommended=recommended)
    (first, second) = results.load_runs(tmp_path)
    assert first["recommended"]["hit_rate@1"] == 0.5 and second["recommended"]["hit_rate@1"] == 1
    assert first["recommended"]["coverage@1"] == 1
    assert first["recommended_items"].tolist() == shown[0].tolist()
    counts = np.bincount(split.train["item_id"], minlength=4)
    again = recommendation_metrics(first["recommended_items"], split.targets("test"), counts)
    assert again == first["recommended"]
    # In training the first movie was watched by four users, the target by nobody.
    assert first["recommended"]["popularity@1"] == 1 and second["recommended"]["popularity@1"] == 0
    more = load_dataset(write_data(tmp_path / "more" / "tiny", movies=11), verbose=False)
    wide = leave_last_out(more, min_item_interactions=1)  # the eleventh is everybody's target
    ten = np.array([range(2, 12), range(2, 12), range(1, 11), range(1, 11)])
    for seed in (1, 2):
        record(tmp_path / "ten", wide, "fm", seed, np.array([1, 1, 1, 50]), recommended=ten)
    record(tmp_path / "ten", wide, "dssm", 1, np.ones(USERS, int))  # shows nothing
    record(tmp_path / "ten", wide, "sum", 1, np.ones(USERS, int), recommended=ten[:, :5])
    table = results.served_table("tiny", tmp_path / "ten")
    assert table.index.tolist() == ["FM"]
    assert table.loc["FM", ["HR@10, exact", "HR@10, shown", "coverage"]].tolist() == [0.75, 0.5, 1]


def test_differences_are_paired_by_user(recorded):
    table = results.paired_differences("tiny", "hit_rate@10", folder=recorded)
    assert table.index.tolist() == ["DSSM − Popularity", "a_new_model − DSSM"]
    # Means over the seeds: popularity 0 0 0 1, DSSM 1 1 1/2 0, the new model 1 1 1 1.
    assert table["difference"].tolist() == pytest.approx([(1 + 1 + 0.5 - 1) / 4, 1.5 / 4])
    assert table["better"].tolist() == [0.75, 0.5] and table["worse"].tolist() == [0.25, 0.0]
    assert (table["low"] <= table["difference"]).all()
    assert (table["high"] >= table["difference"]).all()
    pairs = [("a_new_model", "popularity")]
    (row,) = results.paired_differences(
        "tiny", "hit_rate@10", folder=recorded, pairs=pairs
    ).itertuples()
    assert (row.Index, row.difference) == ("a_new_model − Popularity", 0.75)
    table = results.paired_differences("tiny", "hit_rate@10", "popularity", recorded)
    assert table.index.tolist() == ["DSSM − Popularity", "a_new_model − Popularity"]
    assert table["difference"].tolist() == pytest.approx([1.5 / 4, 3 / 4])
    means = results.intervals_table("tiny", "hit_rate@10", recorded)["mean"]
    assert means.tolist() == pytest.approx([0.25, 0.625, 1])


def test_an_interval_of_a_difference_knows_of_the_seeds(tmp_path, split):
    # All users agree, so that drawing users changes nothing; dssm's hit rate is 0, 0 or 1 by seed.
    hit, miss = np.ones(USERS, int), np.full(USERS, 11)
    record(tmp_path, split, "fm", 1, miss)
    for seed, ranks in enumerate((miss, miss, hit), start=1):
        record(tmp_path, split, "dssm", seed, ranks)
    (row,) = results.paired_differences("tiny", "hit_rate@10", folder=tmp_path).itertuples()
    # Of three seeds two are drawn: both miss 4 times in 9, both hit once in 9.
    assert (row.difference, row.low, row.high) == (pytest.approx(1 / 3), 0, 1)
    assert (row.better, row.worse) == (1, 0)
    model = results.intervals_table("tiny", "hit_rate@10", tmp_path).loc["DSSM"]
    assert (model["low"], model["high"]) == (0, 1)


def test_seeds_that_agree_leave_the_interval_of_the_users(tmp_path):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(1, 300))
    one, three = (
        interval(means_of_draws({"a": runs, "b": values * 0})["a"])
        for runs in (values, np.repeat(values, 3, axis=0))
    )
    assert one == three and np.mean(one) == pytest.approx(values.mean(), abs=0.01)
    assert np.diff(one) == pytest.approx(2 * 1.96 * values.std() / 300**0.5, rel=0.03)


def test_the_spread_over_seeds_is_that_of_their_mean():
    """Seeds that all users share: nothing but them varies, and s / sqrt(n) is known."""
    seeds = np.array([0.1, 0.4, 0.2, 0.9, 0.5])
    drawn = means_of_draws({"a": np.repeat(seeds[:, None], 50, axis=1)})["a"]
    assert drawn.std() == pytest.approx(seeds.std(ddof=1) / 5**0.5, rel=0.03)
    # Two models' seeds are drawn apart, their users together.
    users = np.random.default_rng(0).normal(size=50)
    apart = means_of_draws({"a": seeds[:, None] + users, "b": seeds[:, None] + users})
    assert (apart["a"] - apart["b"]).std() == pytest.approx(
        (2 / 5) ** 0.5 * seeds.std(ddof=1), rel=0.03
    )


def test_draws_are_of_numbers_and_a_level_is_a_share():
    for odd, said in (
        (np.ones(3), r"\(3,\), 0 of"), (np.ones((2, 0)), r"\(2, 0\), 0"), (np.ones((0, 3)), "0 of"),
        ([[1.0, np.nan]], r"\(1, 2\), 1 of"), ([[1.0, np.inf]], "1 of them not finite"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"values \[seeds, users\] of 'b'.* shape .*{said}"):
            means_of_draws({"a": np.ones((1, 2)), "b": odd})
    for level in (95, 0, 1, -0.5, np.nan):
        with pytest.raises(ValueError, match=f"between 0 and 1, such as 0.95, received {level}"):
            interval(np.arange(10), level)


@pytest.mark.parametrize("name", ["shop [1]", "shop*", "tiny"])
def test_data_of_ones_own_are_recorded_by_the_name_of_their_folder(tmp_path, monkeypatch, name):
    folder = write_data(tmp_path / "somewhere" / name)
    own = leave_last_out(load_dataset(folder, verbose=False), min_item_interactions=1)
    record(tmp_path, own, "fm", 1, np.ones(USERS, int))
    monkeypatch.chdir(tmp_path)
    for place in (name, folder, str(folder), f"somewhere/{name}/"):
        assert [run["dataset"] for run in results.load_runs(tmp_path, place)] == [name]
        assert list(results.results_table(place, tmp_path).index) == ["FM"]
    for place in ("/some/where/shop", "../shop", "shop[1]", "[", "", "/", tmp_path / "tiny?"):
        for table in (
            results.results_table, results.served_table, results.paired_differences,
            results.intervals_table,
        ):  # fmt: skip
            assert table(place, folder=tmp_path).empty
        assert results.load_runs(None, place) == [] and results.stale_note(place) == ""


@pytest.mark.parametrize(
    "file", ["shop.csv", "shop.2024.CSV.gz", "shop/interactions.csv", "data.csv/interactions.csv"]
)
def test_records_are_found_by_the_path_that_the_dataset_was_loaded_from(
    tmp_path, monkeypatch, file
):
    rows = [f"{user},{item},{item}" for user in range(USERS) for item in range(3)]
    path = tmp_path / "somewhere" / file
    path.parent.mkdir(parents=True)
    content = "\n".join(["user_id,item_id,position", *rows]).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    own = leave_last_out(load_dataset(path, verbose=False), min_item_interactions=1)
    record(tmp_path, own, "fm", 1, np.ones(USERS, int))
    trial = {"chapter": "02_x", "dataset": own.dataset.name, "models": {}}
    write_run(tmp_path / "trials" / own.dataset.name / "02_x-1.json", trial)
    monkeypatch.chdir(path.parent)
    places = [path, str(path), path.name, f"./{path.name}", own.dataset.name]
    if path.name == "interactions.csv":
        places += [path.parent, ".", f"../{path.parent.name}"]
    for gone in (False, True):  # records outlive the data
        for place in places:
            assert len(results.load_runs(tmp_path, place)) == 1
            assert list(results.results_table(place, tmp_path).index) == ["FM"]
            assert len(trials.load_trials(tmp_path, place)) == 1
        if not gone:
            path.unlink()


def test_stale_records_say_so(recorded):
    assert results.stale_note("tiny", recorded) == ""
    files = [run["file"] for run in results.load_runs(recorded)]
    assert files[1:3] == ["tiny/popularity-seed2.json", "tiny/dssm-seed1.json"]
    results.write_run(recorded / "stale.json", files[2:3])
    table = results.results_table("tiny", recorded)
    assert table["seeds"].tolist() == ["1, 2", "1, 2 (stale)", "1"]
    note = results.stale_note("tiny", recorded)
    assert note.startswith("The records of DSSM on tiny are stale: an earlier version of the code")
    results.write_run(recorded / "stale.json", files)
    assert results.stale_note("tiny", recorded).startswith("All records on tiny are stale")
    assert results.stale_note("another", recorded) == ""


# What a page shows


def test_a_model_is_a_baseline_or_a_tower_or_made_of_several_in_this_order():
    assert (*results.BASELINES, *results.TOWERS, *results.SEVERAL) == tuple(results.MODELS)
    assert results.BASELINES[-1] == "ease_recency" and results.TOWERS[0] == "fm_profile"
    assert len({colour_of(model) for model in results.SEVERAL + results.TOWERS}) == 5


def test_a_page_shows_its_model_below_the_best_baseline(recorded, split):
    for model in ("self_attentive", "sum"):  # no baselines, however good
        record(recorded, split, model, 1, np.ones(USERS, int))
    record(recorded, split, "markov", 1, np.array([100, 1, 1, 1]))
    ranks = {"dssm": np.array([1, 1, 1, 100])}
    table = pages.closing_table(split, ranks, 7, recorded, metrics=("hit_rate@10",))
    rows = table.data.to_numpy()[:, :2].tolist()
    assert rows == [["Markov chain, best baseline", "0.75"], ["DSSM, this page", "0.75"]]
    assert table.caption.startswith("tiny, leave-last-out, test target, 4 users, 3 items")
    assert "stale" not in table.caption
    results.write_run(recorded / "stale.json", ["tiny/dssm-seed1.json"])
    assert "DSSM on tiny are stale" in pages.closing_table(split, ranks, 7, recorded).caption
    assert len(pages.closing_table(split, ranks, 7, recorded / "nothing").data) == 1
    table = pages.closing_table(split, ranks, 7, recorded, metrics=("hit_rate@20", "mrr"))
    assert table.data["HR@20"].tolist() == ["0.75", "0.75"]  # which isn't among those evaluated
    with pytest.raises(ValueError, match=r"ranks must be one for each of the 4 users.* \(2,\)"):
        pages.closing_table(split, {"dssm": np.ones(2, int)}, 7, recorded)


@pytest.mark.parametrize("change", ["split", "interactions"])
def test_a_page_does_not_show_records_of_something_else(recorded, split, change, tmp_path):
    if change == "split":
        other = dataclasses.replace(split, name="random")
    else:
        longer = load_dataset(write_data(tmp_path / "more" / "tiny", movies=4), verbose=False)
        other = leave_last_out(longer, min_item_interactions=1)
    record(recorded, split, "markov", 1, np.ones(USERS, int))
    ranks = {"dssm": np.array([1, 1, 1, 100])}
    table = pages.closing_table(other, ranks, 7, recorded)
    assert len(table.data) == 1 and table.caption.endswith(
        "other data or another split: not shown."
    )
    figure = pages.closing_plot(other, ranks, recorded)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["DSSM, this page"]


def test_a_number_that_is_glued_is_its_digits(monkeypatch):
    shown = []
    monkeypatch.setattr(pages, "display", lambda data, **_: shown.extend(data.values()))
    for value in (np.float64(0.25), np.int64(3), 0.5, "some"):
        pages.glue("x", value)
    assert shown == ["0.25", "3", "0.5", "'some'"]


def test_a_page_draws_its_model_below_those_before_it(recorded, split):
    record(recorded, split, "self_attentive", 1, np.ones(USERS, int))  # comes later in the book
    figure = pages.closing_plot(split, {"dssm": np.array([1, 1, 1, 100])}, recorded)
    names = [[label.get_text() for label in ax.get_yticklabels()] for ax in figure.axes]
    assert names[0] == ["Popularity", "DSSM, this page"]
    # HR@50: three of four users; each model a line from low to high and a dot at its mean
    dot = figure.axes[0].lines[-1]
    assert dot.get_xdata() == [0.75] and dot.get_color() == colour_of("dssm")


def test_what_a_user_watched_and_is_recommended(tmp_path, split):
    watched, recommended = pages.watched_and_recommended(split, 2, np.array([3]), score=[0.12345])
    assert watched.data["original_id"].tolist() == ["1", "0"]  # the latest first; no titles here
    assert watched.caption == "Watched last by user 2" and len(watched.to_html())
    assert recommended.data.columns.tolist() == ["original_id", "score"]
    assert "0.123" in recommended.to_html() and "0.1234" not in recommended.to_html()
    folder = write_data(tmp_path / "titled")
    (folder / "items.csv").write_text("item_id,title,year,genres\n0,A,1999,x|y\n1,B,,\n2,C,,x\n")
    titled = leave_last_out(load_dataset(folder, verbose=False), min_item_interactions=1)
    watched, recommended = pages.watched_and_recommended(titled, 1, [3], last=1, of_which_own=[1])
    assert watched.data.to_dict("records") == [{"title": "B", "genres": ""}]
    shown = {"title": "C", "genres": "x", "of which own": "1.000"}
    assert recommended.data.to_dict("records") == [shown]
    for user in (0, 1.5, "1"):
        with pytest.raises(ValueError, match=f"user must be an id from 1 to 4, received {user}"):
            pages.watched_and_recommended(titled, user, [3])
    for ids in ([3, 999], [0], [1.5], [[1, 2]], 1):
        with pytest.raises(ValueError, match=r"item ids \[k\] from 1 to 3, received"):
            pages.watched_and_recommended(titled, 1, ids)
    assert pages.watched_and_recommended(titled, 1, [])[1].data.empty


# Writing


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = results.write_run(tmp_path / "fm-seed1.json", {"a": 1})

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(results.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        results.write_run(path, {"a": 2})
    assert list(tmp_path.iterdir()) == [path] and json.loads(path.read_text()) == {"a": 1}


def test_a_comparison_with_an_unknown_model_says_which_there_are(recorded):
    with pytest.raises(ValueError, match="against must be one of .*received 'nope'"):
        results.paired_differences("tiny", against="nope", folder=recorded)
    with pytest.raises(ValueError, match="each model of pairs must be one of .*received 'nope'"):
        results.paired_differences("tiny", folder=recorded, pairs=[("dssm", "nope")])


@pytest.mark.parametrize(
    ("model", "counts"), [("ease", r"'ease': \{5\}"), ("dssm", r"'dssm': \{4, 5\}")]
)
def test_records_of_other_users_are_not_compared(recorded, model, counts):
    run = json.loads((recorded / "tiny" / "dssm-seed1.json").read_text())
    run |= {"model": model, "seed": 3, "ranks": pack(np.arange(1, 6)), "num_users": 5}
    results.write_run(recorded / "tiny" / f"{model}-seed3.json", run)
    for compare in (results.paired_differences, results.intervals_table):
        with pytest.raises(ValueError, match=f"of the same users, received .*{counts}"):
            compare("tiny", "hit_rate@10", folder=recorded)
    with pytest.raises(ValueError, match="of the same users, received .*'a': 3, 'b': 2"):
        means_of_draws({"a": np.ones((2, 3)), "b": np.ones((1, 2))})
    assert len(results.results_table("tiny", recorded)) == 3 + (model == "ease")


@pytest.mark.parametrize("change", [{"split": "random"}, {"split_dataset_fingerprint": "0" * 64}])
def test_records_of_another_split_or_dataset_are_not_compared(recorded, change):
    path = recorded / "tiny" / "dssm-seed2.json"
    results.write_run(path, json.loads(path.read_text()) | change)
    for compare in (
        results.paired_differences, results.intervals_table, results.results_table,
        results.served_table,
    ):  # fmt: skip
        with pytest.raises(ValueError, match="one split of one dataset, leave-last-out of .*, rec"):
            compare("tiny", folder=recorded)
    with pytest.raises(
        ValueError, match=r"received tiny/dssm-seed2.json \(.*\). Record these anew"
    ):
        results.results_table("tiny", recorded)
    path.unlink()
    assert len(results.results_table("tiny", recorded)) == 3


# What is recorded in this repository


def test_benchmarks_are_read_as_tables(tmp_path):
    rows = [{"items": 10, "ms_per_step": 1.5}, {"items": 20, "ms_per_step": 2.5}]
    results.write_run(tmp_path / "benchmarks" / "step.json", rows)
    assert results.load_benchmark("step", tmp_path).to_dict("records") == rows
    assert results.load_benchmark("never run", tmp_path).empty


def test_a_recorded_row_wise_step_does_not_pay_for_the_catalogue():
    steps = results.load_benchmark("training_step")
    largest = steps[steps["items"] == 5_000_000].set_index("layer")["times_smallest"]
    assert len(largest["row-wise"]) == 3 and largest["row-wise"].max() <= 1.15
    assert largest["stock"].min() > 10


def test_readme_shows_what_is_recorded():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert run.readme_with_table(readme, ROOT / "results") == readme


def test_readme_table(recorded, monkeypatch):
    monkeypatch.setattr(run, "SEEDS", {"tiny": (1, 2), "absent": (1,)})
    text = run.readme_with_table("a <!-- results:begin --> old <!-- results:end --> b", recorded)
    assert text.startswith("a <!-- results:begin -->\n\n`tiny`, split leave-last-out, 4 users")
    assert text.endswith("\n\n<!-- results:end --> b") and "old" not in text
    assert "| DSSM | 1, 2 | 0.6250 ± 0.1768 |" in text and "stale" not in text
    assert run.readme_with_table(text, recorded) == text
    results.write_run(recorded / "stale.json", ["tiny/dssm-seed1.json"])
    stale = run.readme_with_table(text, recorded)
    assert "| DSSM | 1, 2 (stale) |" in stale and "The records of DSSM on tiny are stale" in stale
    with pytest.raises(ValueError, match="needs one <!-- results:begin -->"):
        run.readme_with_table("no markers", recorded)


def test_records_tell_where_a_model_is_ahead_and_where_it_is_not(tmp_path, split):
    first, last, some = np.ones(USERS, int), np.full(USERS, 100), np.array([1, 1, 100, 100])
    for place, baseline, own in (("a", last, first), ("b", first, last), ("c", some, some[::-1])):
        data = dataclasses.replace(split, dataset=dataclasses.replace(split.dataset, name=place))
        for seed, ranks in ((1, own), (2, own)):
            record(tmp_path, data, "dssm", seed, ranks, validation_ranks=ranks)
        record(tmp_path, data, "markov", 1, baseline, validation_ranks=first)
        record(tmp_path, data, "ease", 1, last, validation_ranks=last)  # not the one to choose
    assert findings.chosen("a", results.BASELINES, folder=tmp_path) == "markov"
    assert findings.chosen("a", ("fm",), folder=tmp_path) is None
    table, said = findings.recorded_differences(
        ("dssm", "fm"), ("ease", "sum"), tmp_path, datasets=("a", "b", "c", "nothing")
    )
    assert said.data.splitlines() == [
        "- *DSSM* against the baseline that the validation target chooses: by NDCG@10 and by HR@50 "
        "ahead on `a`, behind on `b`, not told apart on `c`.",
        "- *DSSM* against *EASE*: by NDCG@10 and by HR@50 ahead on `a`, not told apart on `b` and "
        "`c`.",
    ]
    data = dataclasses.replace(split, dataset=dataclasses.replace(split.dataset, name="b"))
    record(tmp_path, data, "fm", 1, np.full(USERS, 20))  # a hit at 50, none at 10
    _, said = findings.recorded_differences(("fm",), (), tmp_path, datasets=("b",))
    assert said.data.endswith(": by NDCG@10 behind on `b`; by HR@50 not told apart on `b`.")
    _, said = findings.recorded_differences(("dssm",), ("ease",), tmp_path, datasets=("b", "c"))
    assert said.data.endswith("by NDCG@10 and by HR@50 told apart on no dataset.")
    rows = table.data.to_numpy().tolist()
    assert [row[:2] for row in rows[:3]] == [
        ["a", "DSSM − Markov chain"], ["a", "DSSM − EASE"], ["b", "DSSM − Markov chain"]
    ]  # fmt: skip
    assert rows[0][2:] == ["1.00", "[1.00, 1.00]"] * 2 + ["1.000 (2)"]
    (tmp_path / "stale.json").write_text(json.dumps(["b/fm-seed1.json", "c/dssm-seed1.json"]))
    _, said = findings.recorded_differences(("dssm",), ("ease",), tmp_path, datasets=("b", "c"))
    verdict, note = said.data.split("\n\n")  # nothing of FM, which isn't compared
    assert verdict.startswith("- *DSSM*") and note.startswith("The records of DSSM on c are stale")
    # The baseline that is chosen may be among the others, and a model among both.
    table, _ = findings.recorded_differences(
        ("dssm", "dssm"), ("markov", "ease", "ease", "dssm"), tmp_path, datasets=("a",)
    )
    assert [row[1] for row in table.data.to_numpy()] == ["DSSM − Markov chain", "DSSM − EASE"]
    # A mean over the seeds decides, not how many there are.
    record(tmp_path, data, "ease", 1, last, validation_ranks=np.full(USERS, 3))
    for seed in (1, 2, 3):
        record(tmp_path, data, "markov", seed, last, validation_ranks=np.full(USERS, 8))
    assert findings.chosen("b", results.BASELINES, folder=tmp_path) == "ease"
    table, said = findings.recorded_differences(("dssm",), folder=tmp_path / "none")
    assert table.data == "" and said.data.startswith("No runs are recorded here")


def test_each_metric_has_the_baseline_that_it_chooses(tmp_path, split):
    """The validation target likes one at the top of the list and the other within fifty."""
    validation = {"markov": [1, 1, 99, 99], "ease": [20] * 4, "dssm": [5] * 4}
    for model, test in (("markov", 1), ("ease", 99), ("dssm", 5)):
        ranks = np.array(validation[model])
        record(tmp_path, split, model, 1, np.full(USERS, test), validation_ranks=ranks)
    table, said = findings.recorded_differences(("dssm",), (), tmp_path, datasets=("tiny",))
    assert list(table.data["difference"]) == ["DSSM − Markov chain", "DSSM − EASE"]
    assert said.data == (
        "- *DSSM* against the baseline that the validation target chooses: by NDCG@10 behind on "
        "`tiny`; by HR@50 ahead on `tiny`."
    )


def test_names_that_would_find_no_record_are_refused(tmp_path, split):
    for model, ranks in (("ease", [1, 1, 1, 15]), ("ease_recency", [1, 1, 1, 2]), ("own", [2] * 4)):
        ranks = np.array(ranks)
        record(tmp_path, split, model, 1, ranks, validation_ranks=ranks)
    assert findings.chosen("tiny", ("ease", "own"), folder=tmp_path) == "ease"
    for metrics in (("hit_rate@10", "hit_rate@17"), ("hit_rate@10",)):
        findings.recorded_differences(
            ("ease_recency",), ("ease",), tmp_path, metrics=metrics, datasets=("tiny",)
        )
    with pytest.raises(ValueError, match=r"candidates must be several names, such as \('ease_rec"):
        findings.chosen("tiny", "ease_recency", folder=tmp_path)  # of whose letters "ease" is made
    with pytest.raises(ValueError, match=r"candidates must be of .*, own.*received \['nope'\]"):
        findings.chosen("tiny", ("nope",), folder=tmp_path)
    with pytest.raises(ValueError, match=r"metric must be of .*, mrr.*received \['hit_rate@17'\]"):
        findings.chosen("tiny", ("ease",), "hit_rate@17", tmp_path)
    good = {"models": ("ease",), "others": ("ease_recency",), "datasets": ("tiny",)}
    for what in ("models", "others", "metrics", "datasets"):
        with pytest.raises(ValueError, match=rf"{what} must be several names, such as \('ease',\)"):
            findings.recorded_differences(**good | {what: "ease"}, folder=tmp_path)
    for what in ("models", "others"):
        with pytest.raises(ValueError, match=rf"{what} must be of .*received \['eas'\]"):
            findings.recorded_differences(**good | {what: ("eas",)}, folder=tmp_path)
