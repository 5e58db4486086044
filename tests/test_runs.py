"""Chapters as experiments: run, recorded, tried with other parameters, and chosen."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import in_a_data_folder
from nbformat.v4 import new_code_cell, new_notebook
from test_results import USERS, write_data

from recsys_helpers import plots, results, trials
from recsys_helpers.baselines import ease, item_knn, markov, popularity, ranks_from_baseline
from recsys_helpers.datasets import load_dataset
from recsys_helpers.machine import describe_machine
from recsys_helpers.metrics import metrics_from_ranks
from recsys_helpers.records import unpack
from recsys_helpers.results import MODELS, SEVERAL, TOWERS, load_runs, write_run
from recsys_helpers.splits import Split, leave_last_out
from recsys_helpers.trials import load_trials

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "results"))
import run  # noqa: E402
import tune  # noqa: E402

# Running


def chapter(*cells, parameters):
    notebook = new_notebook(cells=[new_code_cell(parameters, metadata={"tags": ["parameters"]})])
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "x"}
    notebook.cells += [new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    return notebook


def tagged_record(source):
    return new_code_cell(source, metadata={"tags": ["record"]})


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with this package and one chapter, and a data folder with the tiny dataset."""
    write_data(tmp_path / "data" / "tiny")
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "data"))
    root = tmp_path / "checkout"
    (root / "notebooks").mkdir(parents=True)
    (root / "recsys_helpers").symlink_to(ROOT / "recsys_helpers")
    (root / "requirements.txt").write_text("numpy==1\n")
    return root


BODY = """\
import numpy as np
from recsys_helpers.datasets import load_dataset
from recsys_helpers.machine import describe_machine
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


# Records by hand, without the seconds that importing pandas takes.
QUICK = """\
import json, pathlib
folder = pathlib.Path(record_to, dataset, "ladder")
folder.mkdir(parents=True)
run = {"dataset": dataset, "model": "fm", "seed": seed, "ranks": None}
run |= {"split": "any", "split_dataset_fingerprint": "0", "metrics": {}, "intervals": {}}
(folder / f"fm-seed{seed}.json").write_text(json.dumps(run))"""


def test_a_chapter_runs_up_to_its_record_cell(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "plan", lambda: [("01_x", PARAMETERS)])
    kept, data = tmp_path / "kept", run.depends.dataset_digest.__wrapped__("tiny")

    def state(data=None):
        return run.state("01_x", PARAMETERS, kept, data, checkout)

    assert state() == "no chapter"
    write_chapter(checkout, BODY, tagged_record(RECORD), "raise RuntimeError('an experiment')")
    assert state() == "missing"
    files = run.run_chapter("01_x", PARAMETERS, kept, data, checkout)
    assert files == [kept / "tiny" / "dssm-seed5.json", kept / "tiny" / "fm-seed5.json"]
    loaded = load_runs(kept)
    assert [r["model"] for r in loaded] == ["fm", "dssm"]
    assert all(r["ranks"].tolist() == [6] * USERS for r in loaded)  # seed 5 reached the chapter
    assert all(r["chapter"] == "01_x" and r["parameters"] == PARAMETERS for r in loaded)
    assert all(r["dataset_digest"] == data for r in loaded)
    assert state() == state(data) == "recorded" and run.stale(kept, checkout) == []
    assert state("of other data") == "out of date"

    write_chapter(checkout, "# Words.\n" + BODY, tagged_record(RECORD), "other()")
    assert state() == "recorded" and run.stale(kept, checkout) == []
    write_chapter(checkout, BODY + " + 1", tagged_record(RECORD))
    assert state() == "out of date"
    assert run.stale(kept, checkout) == ["tiny/dssm-seed5.json", "tiny/fm-seed5.json"]
    # A model that the chapter gave up does not linger; another seed's runs are left alone.
    other_seed = kept / "tiny" / "dssm-seed6.json"
    other_seed.write_text(files[0].read_text().replace('"seed": 5', '"seed": 6'))
    write_chapter(checkout, BODY, tagged_record(RECORD.replace("models", "models[:1]")))
    run.run_chapter("01_x", PARAMETERS, kept, data, checkout)
    assert sorted(p.name for p in (kept / "tiny").iterdir()) == ["dssm-seed6.json", "fm-seed5.json"]
    assert run.stale(kept, checkout) == ["tiny/dssm-seed6.json"]  # nobody plans seed 6


def test_a_chapter_may_record_an_experiment(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "EXPERIMENTS", {"01_x": "ladder"})
    kept = tmp_path / "kept"
    write_chapter(checkout, tagged_record(QUICK))
    files = run.run_chapter("01_x", PARAMETERS, kept, "data", checkout)
    assert files == [kept / "tiny" / "ladder" / "fm-seed5.json"]
    assert run.state("01_x", PARAMETERS, kept, "data", checkout) == "recorded"
    assert load_runs(kept) == []


def test_a_failing_chapter_keeps_nothing(checkout, tmp_path):
    from nbclient.exceptions import CellExecutionError

    write_chapter(checkout, tagged_record(QUICK + "\n1 / 0"))
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run.run_chapter("01_x", PARAMETERS, tmp_path / "kept", "data", checkout)
    assert not (tmp_path / "kept").exists()


@pytest.fixture
def repository(tmp_path):
    """A repository with one file under notebooks, committed."""
    for command in (
        ["init", "-q"],
        ["config", "user.email", "a@b"],
        ["config", "user.name", "a"],
        ["commit", "-q", "--allow-empty", "-m", "."],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path


def test_nothing_is_recorded_of_what_no_commit_has(repository, monkeypatch, capsys):
    monkeypatch.setattr(run, "ROOT", repository)
    clean = run.commit(repository)
    assert len(clean) == 12
    (repository / "README.md").write_text("words decide nothing")
    assert run.commit(repository) == clean
    run.check_clean(dirty=False)
    (repository / "results" / "trials" / "tiny").mkdir(parents=True)
    (repository / "results" / "trials" / "tiny" / "x.json").write_text("{}")
    assert run.commit(repository) == clean + "-dirty"  # trials decide about records,
    assert run.commit(repository, run.SOURCES) == clean  # not about other trials
    with pytest.raises(SystemExit, match="are in no commit"):
        run.check_clean(dirty=False)
    run.check_clean(dirty=True)
    (repository / "notebooks").mkdir()
    (repository / "notebooks" / "01_x.ipynb").write_text("{}")
    with pytest.raises(SystemExit, match="are in no commit"):
        run.check_clean(dirty=False, sources=run.SOURCES)


# Trials


def test_a_trial_ranks_no_test_target(tmp_path):
    folder = write_data(tmp_path / "tiny", movies=6)
    split = leave_last_out(load_dataset(folder, verbose=False), min_item_interactions=1)
    # Two users have seen less; the others everything but the stand-in.
    train = split.train[~((split.train["user_id"] <= 2) & (split.train["item_id"] == 2))]
    split = trials.replace(split, train=train[train["item_id"] != 3])
    hidden = trials.without_test_targets(split)
    assert hidden.targets("test").tolist() == [2, 2, 3, 3]
    assert (hidden.targets("test") != split.targets("test")).all()
    assert hidden.targets("test").dtype == split.targets("test").dtype
    assert hidden.targets("validation").tolist() == split.targets("validation").tolist()
    assert hidden.known("test").equals(split.known("test"))
    # Not even by chance: the first unseen movie is the target here.
    split = trials.replace(split, test=split.test.assign(item_id=2))
    assert (trials.without_test_targets(split).targets("test") != 2).all()


def test_stand_ins_of_many_users_and_items_need_no_table_of_both():
    users = np.repeat(np.arange(1, 4_001), 3)
    whole = pd.DataFrame({"user_id": users, "item_id": np.tile([1, 3, 2], 4_000)})
    whole.loc[3:5, "item_id"] = [50_000, 7, 1]
    dataset = SimpleNamespace(interactions=whole, num_users=4_000, num_items=50_000, repeats=False)
    split = Split(dataset, *(whole.iloc[place::3] for place in range(3)), "large")
    tracemalloc.start()
    hidden = trials.without_test_targets(split).targets("test")
    assert tracemalloc.get_traced_memory()[1] < 2e7  # bytes; a table would have 2e8 entries
    tracemalloc.stop()
    assert hidden[:3].tolist() == [4, 2, 4] and (hidden[2:] == 4).all()


def test_a_user_who_has_had_everything_is_tried_only_where_people_come_back(tmp_path):
    folder = write_data(tmp_path / "tiny", movies=6)
    split = leave_last_out(load_dataset(folder, verbose=False), min_item_interactions=1)
    with pytest.raises(ValueError, match="all 6 items, received 4 who have, such as user 1"):
        trials.without_test_targets(split)
    back = trials.replace(split, dataset=trials.replace(split.dataset, repeats=True))
    targets = split.targets("test")
    assert trials.without_test_targets(back).targets("test").tolist() == [
        2 if target == 1 else 1 for target in targets
    ]


TRIED = """\
import numpy as np
from recsys_helpers.datasets import load_dataset
from recsys_helpers.machine import describe_machine
from recsys_helpers.splits import leave_last_out
from recsys_helpers.trials import load_trials
from recsys_helpers.results import record_run"""
TRY = """\
split = leave_last_out(load_dataset(dataset), min_item_interactions=1)
def ranks(target):
    return split.targets(target).astype(int) + offset
for model in models:
    record_run(record_to, model=model, split=split, seed=seed, ranks=ranks("test"),
               validation_ranks=ranks("validation"), parameters={"offset": offset}, seconds=2.0)"""


def write_tried(root):
    """Its parameters come after its imports, as in the chapters."""
    write_chapter(root, tagged_record(TRY))
    path = root / "notebooks" / "01_x.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells.insert(0, new_code_cell(TRIED))
    nbformat.write(notebook, path)


def test_a_trial_keeps_what_validation_says_and_nothing_of_the_test(
    checkout, tmp_path, monkeypatch
):
    six = write_data(tmp_path / "data" / "six", movies=6) / "interactions.csv"
    # A seventh, for one more user: what stands in for a target is a movie the others haven't seen.
    six.write_text(six.read_text() + "\n9,6,0\n9,4,4\n9,5,5")
    write_tried(checkout)
    kept, models = tmp_path / "kept", {"fm": {"offset": 3}}
    parameters = tune.parameters_of("01_x", "six", models, checkout)
    assert parameters == {"dataset": "six", "seed": 1, "offset": 3, "models": ["fm", "dssm"]}
    data, executed, execute = run.depends.dataset_digest.__wrapped__("six"), [], run.execute

    def noted(*arguments, **named):
        executed.append(execute(*arguments, **named))
        return executed[-1]

    monkeypatch.setattr(run, "execute", noted)
    file = tune.run_trial("01_x", parameters, models, kept, data, checkout)
    assert file == tune.file_of("01_x", parameters, kept)
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    (trial,) = trials.load_trials(kept, "six")
    assert trial["parameters"] == parameters and trial["seconds"] > 0
    assert trial["models"].keys() == {"fm", "dssm"}
    of = trial["models"]["fm"]
    assert of.keys() == {"settings", "validation_metrics", "configuration", "seconds"}
    assert of["validation_metrics"]["mrr"] == pytest.approx(1 / (5 + 3))  # the fifth movie
    assert (of["settings"], trial["models"]["dssm"]["settings"]) == ({"offset": 3}, {})
    assert not {"metrics", "ranks", "recommended", "recommended_items", "intervals"} & trial.keys()
    assert trial["numerics"]["vectors"] and "cores" in trial["machine"] and trial["inputs"]
    assert run.stale(kept, checkout) == []
    write_chapter(checkout, tagged_record(TRY))
    assert run.stale(kept, checkout) == [trial["file"]]
    # It was no accident of what is kept: in the kernel another movie was asked for, not the sixth.
    for recorded in executed[0].values():
        assert (unpack(recorded["ranks"]) != 6 + 3).all()


def test_two_workers_do_not_run_one_trial_twice(tmp_path):
    file = tmp_path / "a.json"
    with tune.claimed(file) as mine:
        assert mine
        with tune.claimed(file) as again, tune.claimed(tmp_path / "b.json") as another:
            assert (again, another) == (False, True)
    with tune.claimed(file) as mine:  # whoever had it has failed, or was ended
        assert mine
    file.write_text("{}")
    with tune.claimed(file) as mine:
        assert not mine


def test_a_worker_goes_on_after_a_failure_and_repeats_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "ROOT", tmp_path)
    monkeypatch.setattr(tune, "plan", lambda: [("01_x", "tiny", {"fm": {"k": k}}) for k in (1, 2)])
    monkeypatch.setattr(tune, "parameters_of", lambda c, d, m: {"dataset": d} | m["fm"])
    monkeypatch.setattr(run.depends, "dataset_digest", lambda name: "data")
    monkeypatch.setattr(run, "check_clean", lambda *_: None)
    ran = []

    def run_trial(chapter, parameters, models, results, data):
        ran.append(parameters["k"])
        if ran == [1]:
            raise RuntimeError("no luck")
        of = {"fm": {"validation_metrics": {"ndcg@10": 0.25}}}
        return write_run(tune.file_of(chapter, parameters, results), {"models": of, "seconds": 3.0})

    monkeypatch.setattr(tune, "run_trial", run_trial)
    monkeypatch.setattr(sys, "argv", ["tune.py", "--list"])
    assert tune.main() == 0 and ran == [] and capsys.readouterr().out.count("missing") == 2
    monkeypatch.setattr(sys, "argv", ["tune.py"])
    assert tune.main() == 1 and ran == [1, 2]
    shown = capsys.readouterr()
    assert "failed: no luck" in shown.err and "fm 0.2500 in 3 s" in shown.out
    assert tune.main() == 0 and ran == [1, 2, 1]
    write_run(tmp_path / "results" / "trials" / "tiny" / "01_x-of_old.json", {})
    assert tune.main() == 0 and ran == [1, 2, 1]
    assert "01_x-of_old.json is of no trial that is planned" in capsys.readouterr().out


def tried(folder, chapter, number, parameters, **models):
    """A trial's file; models by name: (settings, validation NDCG@10)."""
    of = {
        name: {"settings": settings, "validation_metrics": {"ndcg@10": value}, "seconds": number}
        for name, (settings, value) in models.items()
    }
    trial = {"chapter": chapter, "dataset": "tiny", "parameters": parameters, "models": of}
    write_run(folder / "trials" / "tiny" / f"{chapter}-{number}.json", trial)


def test_the_best_trial_by_validation_is_chosen_for_each_model(tmp_path):
    common = {"dataset": "tiny", "seed": 1, "length": 7}
    for number, (k, l2, first, second) in enumerate([(5, 50, 0.1, 0.5), (9, 20, 0.3, 0.5)]):
        tried(
            tmp_path, "02_x", number, common | {"k": k, "l2": l2},
            popularity=({}, number), item_knn=({"k": k}, first), ease=({"l2": l2}, second),
        )  # fmt: skip
    chosen = trials.chosen_parameters("02_x", "tiny", tmp_path)
    assert chosen == {"length": 7, "k": 9, "l2": 20}  # of equals, the first by their text
    with pytest.raises(ValueError, match="a trial of 'fm', received 2 trials of .'ease', 'item_k"):
        trials.best_trial(trials.load_trials(tmp_path), "fm")
    with pytest.raises(ValueError, match="a trial of 'fm', received 0 trials"):
        trials.best_trial([], "fm")
    assert trials.chosen_parameters("03_x", "tiny", tmp_path) == {}
    assert trials.chosen_parameters("02_x", "another", tmp_path) == {}
    table = trials.trials_table("tiny", tmp_path)
    assert table.to_dict("list") == {
        "model": ["item_knn", "item_knn", "ease", "ease"],
        "value": [0.1, 0.3, 0.5, 0.5],
        "seconds": [0, 1, 0, 1],
        "chosen": [False, True, False, True],
        "stale": [False] * 4,
    }
    write_run(tmp_path / "stale.json", ["trials/tiny/02_x-1.json"])
    assert trials.trials_table("tiny", tmp_path)["stale"].tolist() == [False, True] * 2


def test_trials_are_drawn_as_rings_and_the_chosen_one_filled():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    columns = {"model": ["fm", "fm"], "value": [0.1, 0.3], "chosen": [False, True]}
    plots.trial_strips(ax, pd.DataFrame(columns), {"fm": "FM", "dssm": "DSSM"})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["FM", "DSSM"]
    rings, chosen = (line for line in ax.lines if len(line.get_xdata()))
    assert rings.get_xdata().tolist() == [0.1, 0.3] and rings.get_markerfacecolor() == "none"
    assert chosen.get_xdata().tolist() == [0.3] and chosen.get_markerfacecolor() != "none"
    assert set(rings.get_ydata()) == {1} == set(chosen.get_ydata())  # in the row of its name
    (said,) = ax.texts
    assert said.get_text() == "not yet tried" and said.get_position()[1] == 0


def seeds_of(chapter, dataset):
    """The seeds that a chapter is planned to be run with."""
    return [p["seed"] for c, p in run.plan() if (c, p["dataset"]) == (chapter, dataset)]


@pytest.mark.parametrize(
    "chapter, hundred, small, million",
    [
        ("02_data_and_rules", 1, 1, 1),
        ("03_factorization_machines", 5, 3, 3),
        ("04_dssm", 5, 3, 3),
        ("05_youtubednn", 5, 3, 3),
        ("06_self_attention", 5, 3, 3),
        ("09_several_towers", 5, 3, 3),
        ("09_ablation", 3, 0, 1),
    ],
)
def test_every_run_of_the_plan_is_there(chapter, hundred, small, million):
    planned = {"ml-100k": hundred, "ml-latest-small": small, "ml-1m-order": million}
    for dataset, seeds in planned.items():
        assert seeds_of(chapter, dataset) == list(range(1, seeds + 1))


def test_a_run_has_the_parameters_of_the_best_trial(checkout, monkeypatch):
    write_chapter(checkout, tagged_record("pass"))
    folder = checkout / "results"
    parameters = {"dataset": "tiny", "seed": 1, "offset": 2, "models": ["fm"], "depth": 3}
    tried(folder, "01_x", 1, parameters, fm=({"offset": 2}, 0.2))
    tried(folder, "01_x", 2, parameters | {"offset": 4}, fm=({"offset": 4}, 0.1))
    chosen = {"offset": 2, "models": ["fm"]}  # the chapter no longer has a depth
    assert run.parameters_of("01_x", "tiny", checkout) == chosen
    assert run.parameters_of("01_x", "another", checkout) == {}
    assert run.parameters_of("no_such", "tiny", checkout) == {}
    # An experiment takes over what it has as well, but for what is its own.
    write_chapter(checkout, parameters=DEFAULTS + "\nnum_sampled = 0")
    (checkout / "notebooks" / "01_x.ipynb").rename(checkout / "notebooks" / "09_y.ipynb")
    monkeypatch.setattr(run, "LIKE", {"09_y": "01_x"})
    monkeypatch.setattr(run, "OWN", {("09_y", "tiny"): {"num_sampled": 9, "models": []}})
    assert run.parameters_of("09_y", "tiny", checkout) == {
        "offset": 2, "models": [], "num_sampled": 9,
    }  # fmt: skip


def test_a_member_of_a_sum_is_trained_as_its_own_chapter_is(checkout, monkeypatch):
    members = [
        {"kind": "fm", "epochs": 9, "batch_size": 64, "shrink": 0.1, "seed": 0},
        {"kind": "youtubednn", "epochs": 9, "batch_size": 32, "shrink": 0.0, "seed": 7},
    ]
    write_chapter(
        checkout, parameters=f"members = {members}\nstudent = {members[1]}\nsoftness = 1.0\n"
    )
    monkeypatch.setattr(run, "MEMBERS", {"01_x": {"fm": "03_fm", "youtubednn": "05_yt"}})
    chosen = {"epochs": 4, "batch_size": 8, "seed": 1, "hidden": 16, "last": 2, "softness": 3.0}
    tried(checkout / "results", "05_yt", 1, chosen, youtubednn=(chosen, 0.2))
    tried(checkout / "results", "05_yt", 2, chosen | {"epochs": 5}, youtubednn=(chosen, 0.1))
    as_chosen = {
        "kind": "youtubednn", "epochs": 4, "batch_size": 32, "shrink": 0.0, "seed": 7,
        "tower": {"hidden": [16], "last": 2},
    }  # fmt: skip
    assert run.parameters_of("01_x", "tiny", checkout) == {
        "members": [members[0] | {"tower": {}}, as_chosen], "student": as_chosen,
    }  # fmt: skip
    monkeypatch.setattr(run, "SUMMED", {"tiny": ("youtubednn",)})
    assert run.parameters_of("01_x", "tiny", checkout)["members"] == [as_chosen]


def test_the_ladder_samples_wherever_it_is_recorded():
    ladders = [p for chapter, p in run.plan() if chapter == "09_ablation"]
    assert ladders and all(p.get("num_sampled", 0) > 0 for p in ladders)


# What this repository plans


def test_every_model_has_the_same_budget_of_trials():
    assert set(tune.SEARCH) == set(run.SEEDS)
    fixed = {"popularity", *SEVERAL}  # nothing to choose, or made of the chosen
    follows = {"fm_profile"}  # trained as FM is
    for dataset, search in tune.SEARCH.items():
        assert search.keys() == MODELS.keys() - fixed - follows == tune.CHAPTER.keys()
        for model, settings in search.items():
            large = dataset == "ml-1m-order" and model in TOWERS
            budget = tune.LARGE_BUDGET if large else tune.BUDGET
            assert len(settings) == budget, (dataset, model)
            # Different ones, which all say the same names: a notebook's default can't slip in.
            assert len({json.dumps(s, sort_keys=True) for s in settings}) == budget, model
            assert len({tuple(sorted(s)) for s in settings}) == 1, (dataset, model)
        towers = [s["dim"] for m, settings in search.items() if m in TOWERS for s in settings]
        assert len(set(towers)) == 1  # one size of vectors
    files = [tune.file_of(c, tune.parameters_of(c, d, m), ROOT) for c, d, m in tune.plan()]
    most = {
        (d, tune.CHAPTER[m]): len(s) for d, search in tune.SEARCH.items() for m, s in search.items()
    }
    assert len(files) == len(set(files)) == sum(most.values())


def test_what_is_searched_are_parameters_of_the_chapters():
    for chapter, _, models in tune.plan():
        source = (ROOT / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8")
        for model, settings in models.items():
            assert settings.keys() <= run.depends.defaults(source).keys(), (chapter, model)


def test_kept_trials_are_of_the_plan_and_say_nothing_of_the_test():
    planned = {
        tune.file_of(c, tune.parameters_of(c, d, m), ROOT / "results") for c, d, m in tune.plan()
    }
    for file in (ROOT / "results" / "trials").glob("*/*.json"):
        assert file in planned, "remove it, or plan it in results/tune.py"
        trial = json.loads(file.read_text())
        for of in trial["models"].values():
            assert of.keys() == {"settings", "validation_metrics", "configuration", "seconds"}
        assert not {"metrics", "ranks", "recommended", "recommended_items"} & trial.keys()


@pytest.mark.parametrize("chapter", run.CHAPTERS)
def test_a_page_has_the_best_of_its_trials_on_its_own_dataset(chapter):
    source = (ROOT / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8")
    defaults = run.depends.defaults(source)
    chosen = trials.chosen_parameters(chapter, defaults["dataset"])
    if not chosen:
        pytest.skip("not yet tried")
    assert {name: defaults.get(name, "no such parameter") for name in chosen} == chosen


# What this repository has recorded


RUNS = [
    recorded
    for experiment in ("", *run.EXPERIMENTS.values())
    for recorded in load_runs(ROOT / "results", experiment=experiment)
]


def test_the_stale_records_are_known():
    listed = json.loads((ROOT / "results" / "stale.json").read_text())
    assert listed == run.stale(ROOT / "results"), "run `python results/run.py --list`"


def test_what_is_planned_is_recorded_and_nothing_else():
    """Stale records may be of an older plan; where one isn't stale, all of the plan are there."""
    planned = {(c, p["dataset"], p["seed"]): p for c, p in run.plan()}
    recorded = {(r["chapter"], r["dataset"], r["seed"]) for r in RUNS}
    assert recorded <= set(planned)
    current = {(r["chapter"], r["dataset"]) for r in RUNS if not r["stale"]}
    assert {key for key in planned if key[:2] in current} <= recorded
    for r in RUNS:
        if not r["stale"]:
            parameters = planned[r["chapter"], r["dataset"], r["seed"]]
            assert r["parameters"].items() <= parameters.items()


def test_recorded_metrics_are_those_of_the_recorded_ranks():
    for recorded in RUNS:
        again = metrics_from_ranks(recorded["ranks"])
        known = {name: again[name] for name in recorded["metrics"]}
        assert recorded["metrics"] == pytest.approx(known)


def test_annoy_loses_less_than_a_reader_would_notice():
    """Half of what the choice of the users alone accounts for."""
    for recorded in RUNS:
        if recorded["recommended"]:
            exact, shown = (recorded[k]["hit_rate@10"] for k in ("metrics", "recommended"))
            noise = exact - recorded["intervals"]["hit_rate@10"][0]
            assert shown >= exact - noise / 2, recorded["file"]


@pytest.mark.parametrize("dataset", run.SEEDS)
def test_recorded_results_are_of_the_data_on_this_machine(dataset):
    current = [r for r in RUNS if r["dataset"] == dataset and not r["stale"]]
    if not current:
        pytest.skip(f"all records on {dataset} are stale")
    try:
        here = run.depends.dataset_digest(dataset)
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and "Unknown dataset" not in str(error):
            raise  # it is here, and something is wrong with it
        pytest.skip(f"{dataset} is not on this machine: {error}")
    assert {r["dataset_digest"] for r in current} == {here}


# The promise: the same digits on one machine, elsewhere up to rounding or within the seeds' spread

BASELINES = {"item_knn": item_knn, "markov": markov, "ease": ease, "ease_recency": ease}
BASELINES |= {"popularity": popularity}


def same_machine(known, here):
    """The same processor, number of threads, instructions and libraries."""
    return all(known[name] == here[name] for name in ("machine", "numerics", "versions"))


@pytest.fixture(scope="module")
def movielens():
    if not in_a_data_folder("ml-100k"):
        pytest.skip("MovieLens-100K is not on this machine")
    return leave_last_out(load_dataset("ml-100k", verbose=False), verbose=False)


@pytest.mark.parametrize("model", BASELINES)
def test_a_baseline_gives_the_same_digits_again(movielens, model):
    """Its best trial, and its record; where numerics differ, two users' ranks may be others."""
    known = []
    for trial in load_trials(dataset="ml-100k", chapter="02_data_and_rules"):
        if not trial["stale"]:
            known.append((trial, trial["models"][model], "validation"))
    known = known[:1] + [
        (record, record | {"validation_metrics": record["metrics"]}, "test")
        for record in RUNS
        if (record["dataset"], record["model"]) == ("ml-100k", model) and not record["stale"]
    ]
    if not known:
        pytest.skip("no trial and no record that isn't stale")
    for made, of, target in known:
        baseline = BASELINES[model](
            movielens.train, movielens.dataset.num_items, **of["configuration"]
        )
        again = metrics_from_ranks(ranks_from_baseline(movielens, baseline, target))
        again = {name: again[name] for name in of["validation_metrics"]}
        if same_machine(made, describe_machine()):
            assert again == of["validation_metrics"]
        two_users = 2 / movielens.dataset.num_users
        assert again == pytest.approx(of["validation_metrics"], rel=0, abs=two_users)


@pytest.mark.slow
@pytest.mark.parametrize("chapter", [c for c in run.CHAPTERS if len(seeds_of(c, "ml-100k")) >= 3])
def test_a_record_is_the_same_again(movielens, chapter):
    """On MovieLens-100K with the first seed; where numerics differ, within what seeds differ by."""
    runs = [r for r in RUNS if (r["dataset"], r["chapter"]) == ("ml-100k", chapter)]
    current = [r for r in runs if not r["stale"]]
    if len(current) < 3:
        pytest.skip("fewer than three records that aren't stale")
    parameters = next(p for c, p in run.plan() if (c, p["dataset"]) == (chapter, "ml-100k"))
    for again in run.execute(chapter, parameters).values():
        seeds = [r for r in current if r["model"] == again["model"]]
        (same,) = [r for r in seeds if r["seed"] == parameters["seed"]]
        if same_machine(same, again):
            assert again["metrics"] == same["metrics"]
        for name in results.METRICS:
            values = np.array([r["metrics"][name] for r in seeds])
            # One more of the same kind is as far from the mean of five once in fifty times.
            assert abs(again["metrics"][name] - values.mean()) <= 4 * values.std(ddof=1), name
