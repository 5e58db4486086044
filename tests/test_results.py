"""Recording runs, deciding what is out of date, and the tables made of the records."""

import ast
import hashlib
import importlib.util
import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from recsys_helpers import results
from recsys_helpers.datasets import load_dataset
from recsys_helpers.splits import leave_last_out

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("results_run", ROOT / "results" / "run.py")
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)

USERS = 4


@pytest.fixture
def split(tmp_path):
    """Four users, and three movies that all of them watched in the same order."""
    folder = tmp_path / "data" / "tiny"
    folder.mkdir(parents=True)
    rows = [f"{user},{item},{item}" for user in range(USERS) for item in range(3)]
    (folder / "interactions.csv").write_text("user_id,item_id,position\n" + "\n".join(rows))
    return leave_last_out(load_dataset(folder, verbose=False), min_item_interactions=1)


def record(folder, split, model, seed, ranks, **more):
    return results.record_run(folder, model=model, split=split, seed=seed, ranks=ranks, **more)


# Recording


def test_round_trip(tmp_path, split):
    ranks = np.array([1, 2, 11, 70_000])
    path = record(
        tmp_path / "r", split, "fm", 3, ranks, validation_ranks=np.ones(USERS, int),
        parameters={"dim": 32}, started=0.0,
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
    assert loaded["wall_clock_seconds"] > 0 and loaded["peak_memory_mib"] > 10
    assert loaded["versions"]["numpy"] == np.__version__


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


def test_what_json_cannot_say_leaves_no_file(tmp_path, split):
    with pytest.raises(ValueError):
        record(tmp_path / "r", split, "fm", 1, np.ones(USERS, int), parameters={"x": float("nan")})
    assert not list((tmp_path / "r").rglob("*.*"))


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
    assert table.loc["DSSM", "HR@10"] == "0.6250 ± 0.1768"
    assert table.loc["Popularity", "HR@10"].startswith("0.2500 [0.0000, ")
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
    # In training the first movie was watched by four users, the target by nobody.
    assert first["recommended"]["popularity@1"] == 1 and second["recommended"]["popularity@1"] == 0
    ten = np.repeat(shown[0], 10, axis=1)
    for seed in (1, 2):
        record(tmp_path / "ten", split, "fm", seed, np.array([1, 1, 1, 50]), recommended=ten)
    record(tmp_path / "ten", split, "dssm", 1, np.ones(USERS, int))  # shows nothing
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
    table = results.paired_differences("tiny", "hit_rate@10", "popularity", recorded)
    assert table.index.tolist() == ["DSSM − Popularity", "a_new_model − Popularity"]
    assert table["difference"].tolist() == pytest.approx([1.5 / 4, 3 / 4])
    means = results.intervals_table("tiny", "hit_rate@10", recorded)["mean"]
    assert means.tolist() == pytest.approx([0.25, 0.625, 1])


# What a run depends on


def chapter(*cells, parameters='dataset = "tiny"\nseed = 1\nepochs = 3\nrecord_to = ""'):
    tagged = {"tags": ["install"]}, {"tags": ["parameters"]}
    return new_notebook(
        cells=[
            new_markdown_cell("# Title"),
            new_code_cell("%pip install something", metadata=tagged[0]),
            new_code_cell(parameters, metadata=tagged[1]),
            *(new_code_cell(c) if isinstance(c, str) else c for c in cells),
        ],
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "x"}},
    )


def tagged_record(source="record()"):
    return new_code_cell(source, metadata={"tags": ["record"]})


PACKAGE = {
    "models": '"""Doc."""\nfrom recsys_helpers import layers\n'
    "from recsys_helpers.parts import Base, Other\nSCALE = 2\n"
    'class A(Base):\n    """Doc."""\n'
    'def f(x):\n    """Doc."""\n    return layers.SIZE * A(x * SCALE)\n'
    "class B(Other):\n    pass\n",
    "layers": "import recsys_helpers.results\nSIZE = 3\n",
    "parts": "class Base:\n    def g(self):\n        return h()\n\ndef h():\n    return 5\n"
    "class Other:\n    pass\n",
    "results": "A = 1\n",
    "unused": "B = 1\n",
}
CELLS = ["from recsys_helpers.models import f\n%time y = f(2)", tagged_record(), "later()"]


def hashed(tmp_path, notebook=None, package=None, parameters=None, fingerprint="x"):
    folder = tmp_path / "recsys_helpers"
    folder.mkdir(exist_ok=True)
    for name, source in {**PACKAGE, **(package or {})}.items():
        (folder / f"{name}.py").write_text(source)
    nbformat.write(notebook or chapter(*CELLS), tmp_path / "chapter.ipynb")
    given = {"dataset": "tiny", "seed": 1} | (parameters or {})
    return run.inputs_hash(tmp_path / "chapter.ipynb", given, fingerprint, folder)


@pytest.mark.parametrize(
    "change",
    [
        {"notebook": chapter("# a comment\n" + CELLS[0], *CELLS[1:])},
        {"notebook": chapter("from recsys_helpers.models import f\n\n%time y = f(2)", *CELLS[1:])},
        {"notebook": chapter(*CELLS[:2], "something_else()")},
        {"notebook": chapter(*CELLS, parameters='dataset = "x"  # words\nseed = 7\nepochs = 3')},
        {"package": {"models": PACKAGE["models"].replace("Doc.", "Other words.")}},
        {"package": {"models": PACKAGE["models"].replace('"""Doc."""\nfrom', "from")}},
        {"package": {"layers": PACKAGE["layers"] + "# a comment\n"}},
        {"package": {"results": "A = 2\n", "unused": "B = 2\n"}},
        {"package": {"models": PACKAGE["models"].replace("pass", "x = 1")}},  # B isn't used
        {"package": {"parts": PACKAGE["parts"].replace("pass", "x = 1")}},  # nor its base class
        {"parameters": {"record_to": "elsewhere"}},
    ],
)
def test_what_cannot_change_a_result_does_not_change_the_hash(tmp_path, change):
    assert hashed(tmp_path, **change) == hashed(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"notebook": chapter(CELLS[0].replace("2", "3"), *CELLS[1:])},
        {"notebook": chapter(CELLS[0], tagged_record("record(1)"), CELLS[2])},
        {"notebook": chapter(*CELLS, parameters='dataset = "tiny"\nseed = 1\nepochs = 5')},
        {"package": {"models": PACKAGE["models"].replace("A(x", "A(-x")}},
        {"package": {"models": PACKAGE["models"].replace("SCALE = 2", "SCALE = 3")}},
        {"package": {"parts": PACKAGE["parts"].replace("return h()", "return -h()")}},
        {"package": {"parts": PACKAGE["parts"].replace("5", "6")}},  # used by a base class's method
        {"package": {"parts": PACKAGE["parts"] + "if True:\n    Base.g = None\n"}},
        {"package": {"layers": PACKAGE["layers"].replace("3", "4")}},  # imported by an import
        {"parameters": {"seed": 2}},
        {"parameters": {"epochs": 2}},
        {"fingerprint": "y"},
    ],
)
def test_what_can_change_a_result_changes_the_hash(tmp_path, change):
    assert hashed(tmp_path, **change) != hashed(tmp_path)


def test_hash_is_the_same_on_every_python():
    source = (
        "@d\nclass A(B):\n    x: int = 1\n    def f(self, *a, k=None, **w):\n"
        "        return f'{k!r:>{a[0]}} and ' 'more' + str(-1.5e3) if a else [i async for i in w]\n"
        "try:\n    import a.b as c\nexcept* ValueError as e:\n    lambda: (yield)\n"
        "match x:\n    case {'a': [1, *_], **r} if r: pass\n"
        "type_ = f'{x=} {y:{z}.{w}f} {{}}'\nfor i in x: pass\nelse: 1_000\n"
        "u'a' 'b'\nx = 'a' f'{b}' 'c'\n"
    )  # fmt: skip
    content = json.dumps(run._canonical(ast.parse(source)))
    expected = "5791ef72766c3c73b647868c0845da7ffa5365e95baab42fce4abc417aa3d127"
    assert hashlib.sha256(content.encode()).hexdigest() == expected


def test_one_record_cell_and_plain_parameters(tmp_path):
    with pytest.raises(ValueError, match="expected one cell tagged 'record', received 0"):
        hashed(tmp_path, notebook=chapter("x = 1"))
    with pytest.raises(ValueError, match=r"chapter.ipynb has no parameters \['epoch'\]; it has"):
        hashed(tmp_path, parameters={"epoch": 3})
    with pytest.raises(ValueError, match="assignments only, received 'import os'"):
        hashed(tmp_path, notebook=chapter(*CELLS, parameters="import os"))


# Running


@pytest.fixture
def checkout(tmp_path, split, monkeypatch):
    """A checkout with this package and one chapter, and a data folder with the tiny dataset."""
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "data"))
    root = tmp_path / "checkout"
    (root / "notebooks").mkdir(parents=True)
    (root / "recsys_helpers").symlink_to(ROOT / "recsys_helpers")
    return root


BODY = """\
import numpy as np
from recsys_helpers.datasets import load_dataset
from types import SimpleNamespace
from recsys_helpers.results import record_run
split = SimpleNamespace(dataset=load_dataset(dataset), name="none")
ranks = np.full(split.dataset.num_users, seed + offset)"""
RECORD = """\
for model in models:
    record_run(record_to, model=model, split=split, seed=seed, ranks=ranks)"""
DEFAULTS = 'dataset = "nowhere"\nseed = 1\noffset = 1\nmodels = ["fm", "dssm"]\nrecord_to = ""'
PARAMETERS = {"dataset": "tiny", "seed": 5}


def write_chapter(root, *cells, parameters=DEFAULTS):
    nbformat.write(chapter(*cells, parameters=parameters), root / "notebooks" / "01_x.ipynb")


def test_a_chapter_runs_up_to_its_record_cell(checkout, tmp_path):
    kept = tmp_path / "kept"
    assert run.state("01_x", PARAMETERS, kept, checkout) == "no chapter"
    write_chapter(checkout, BODY, tagged_record(RECORD), "raise RuntimeError('an experiment')")
    assert run.state("01_x", PARAMETERS, kept, checkout) == "missing"
    files = run.run_chapter("01_x", PARAMETERS, kept, checkout)
    assert files == [kept / "tiny" / "dssm-seed5.json", kept / "tiny" / "fm-seed5.json"]
    loaded = results.load_runs(kept)
    assert [r["model"] for r in loaded] == ["fm", "dssm"]
    assert all(r["ranks"].tolist() == [6] * USERS for r in loaded)  # seed 5 reached the chapter
    assert all(r["chapter"] == "01_x" and r["parameters"] == PARAMETERS for r in loaded)
    tiny = load_dataset("tiny", verbose=False)
    assert all(r["dataset_fingerprint"] == tiny.fingerprint for r in loaded)
    assert run.state("01_x", PARAMETERS, kept, checkout) == "recorded"

    write_chapter(checkout, "# Words.\n" + BODY, tagged_record(RECORD), "other()")
    assert run.state("01_x", PARAMETERS, kept, checkout) == "recorded"
    write_chapter(checkout, BODY + " + 1", tagged_record(RECORD))
    assert run.state("01_x", PARAMETERS, kept, checkout) == "out of date"
    # A model that the chapter gave up does not linger; another seed's runs are left alone.
    other_seed = kept / "tiny" / "dssm-seed6.json"
    other_seed.write_text(files[0].read_text().replace('"seed": 5', '"seed": 6'))
    write_chapter(checkout, BODY, tagged_record(RECORD.replace("models", "models[:1]")))
    run.run_chapter("01_x", PARAMETERS, kept, checkout)
    assert sorted(p.name for p in (kept / "tiny").iterdir()) == ["dssm-seed6.json", "fm-seed5.json"]


def test_a_chapter_may_record_an_experiment(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "EXPERIMENTS", {"01_x": "ladder"})
    kept = tmp_path / "kept"
    write_chapter(
        checkout, BODY, tagged_record(RECORD.replace("seed=", 'experiment="ladder", seed='))
    )
    files = run.run_chapter("01_x", PARAMETERS, kept, checkout)
    assert {path.parent for path in files} == {kept / "tiny" / "ladder"}
    assert run.state("01_x", PARAMETERS, kept, checkout) == "recorded"
    assert results.load_runs(kept) == []


def test_a_failing_chapter_keeps_nothing(checkout, tmp_path):
    from nbclient.exceptions import CellExecutionError

    write_chapter(checkout, BODY, tagged_record(RECORD + "\n1 / 0"))
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run.run_chapter("01_x", PARAMETERS, tmp_path / "kept", checkout)
    assert not (tmp_path / "kept").exists()


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


def test_plan_is_what_the_book_reports():
    names = {(c, p["dataset"], p["seed"]) for c, p in run.plan()}
    # Three seeds of four chapters and, once, the chapter without chance, on three datasets; and
    # the ladder on the largest.
    assert len(names) == len(run.plan()) == 3 * (3 * 4 + 1) + 1
    assert ("04_dssm", "ml-1m-order", 3) in names and ("04_dssm", "ml-latest-small", 2) in names
    assert ("09_ablation", "ml-1m-order", 1) in names
    assert ("06_self_attention", "ml-100k", 2) in names
    assert ("06_self_attention", "ml-1m-order", 3) in names


PLANNED = [(c, p) for c, p in run.plan() if (ROOT / "notebooks" / f"{c}.ipynb").is_file()]


@pytest.mark.parametrize(("chapter", "parameters"), PLANNED, ids=str)
def test_recorded_results_match_chapter_helpers_and_data(chapter, parameters):
    runs = run._recorded(chapter, parameters, ROOT / "results")
    assert runs, "not recorded: run `make results`"
    notebook = ROOT / "notebooks" / f"{chapter}.ipynb"
    for recorded in runs:
        fingerprint = recorded["dataset_fingerprint"]
        inputs = run.inputs_hash(notebook, parameters, fingerprint, ROOT / "recsys_helpers")
        assert recorded["inputs"] == inputs, "out of date: run `make results`"
        recomputed = results.evaluate(recorded["ranks"])["mean"].to_dict()
        assert recorded["metrics"] == pytest.approx(recomputed)
        assert recorded["parameters"] == parameters


def test_nothing_is_recorded_outside_the_plan():
    planned = {(c, p["dataset"], p["seed"]) for c, p in run.plan()}
    every = [
        results.load_runs(ROOT / "results", experiment=e) for e in ("", *run.EXPERIMENTS.values())
    ]
    for recorded in sum(every, []):
        assert (recorded["chapter"], recorded["dataset"], recorded["seed"]) in planned


def test_annoy_loses_next_to_nothing_in_the_recorded_runs():
    for recorded in results.load_runs(ROOT / "results"):
        if recorded["recommended"]:
            exact, shown = (recorded[k]["hit_rate@10"] for k in ("metrics", "recommended"))
            assert shown >= 0.995 * exact, (recorded["dataset"], recorded["model"])


@pytest.mark.parametrize("dataset", run.SEEDS)
def test_recorded_results_are_of_the_data_on_this_machine(dataset):
    recorded = {r["dataset_fingerprint"] for r in results.load_runs(ROOT / "results", dataset)}
    if not recorded:
        pytest.skip(f"nothing is recorded on {dataset}")
    try:
        here = load_dataset(dataset, verbose=False).fingerprint
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and "Unknown dataset" not in str(error):
            raise  # it is here, and something is wrong with it
        pytest.skip(f"{dataset} is not on this machine: {error}")
    assert recorded == {here}


def test_readme_shows_what_is_recorded():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert run.readme_with_table(readme, ROOT / "results") == readme


def test_readme_table(recorded, monkeypatch):
    monkeypatch.setattr(run, "SEEDS", {"tiny": (1, 2), "absent": (1,)})
    text = run.readme_with_table("a <!-- results:begin --> old <!-- results:end --> b", recorded)
    assert text.startswith("a <!-- results:begin -->\n\n`tiny`, split leave-last-out, 4 users")
    assert text.endswith("\n\n<!-- results:end --> b") and "old" not in text
    assert "| DSSM | 1, 2 | 0.6250 ± 0.1768 |" in text
    assert run.readme_with_table(text, recorded) == text
    with pytest.raises(ValueError, match="needs one <!-- results:begin -->"):
        run.readme_with_table("no markers", recorded)
