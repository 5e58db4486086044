"""One model on several devices and processes is the model of one device, or says why it can't be.

Each training runs in processes of its own (shared_training.py), on JAX.
"""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("shared_training.py")
LOSSES = ["full", "sampled", "in-batch"]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="no jax here")


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """What one process has compiled, the next need not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


def start(**task):
    environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[1])}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), json.dumps(task)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(*programs):
    """Exit codes and what was said; none may stay behind."""
    try:
        said = [program.communicate(timeout=240)[1] for program in programs]
    finally:
        for program in programs:
            program.kill()
            program.wait()
    return [program.returncode for program in programs], said


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def in_two(**task):
    shared = {"address": free_address(), "processes": 2} | task
    return finish(*(start(process=process, **shared) for process in range(2)))


def result(file):
    with np.load(file) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses and vectors of one device, and of one that sees half of each batch."""
    file = str(tmp_path_factory.mktemp("alone") / "one.npz")
    codes, said = finish(start(out=file, losses=[*LOSSES, "in-batch of half"]))
    assert codes == [0], said
    return result(file)


def check_equal(found, expected):
    for loss in LOSSES:
        for what in ("loss", "items", "users"):
            name = f"{loss}/{what}"
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


def test_every_epoch_has_all_rows_in_another_order(alone):
    first, last = alone["full/orders"]
    assert np.array_equal(np.sort(first), np.arange(len(first))) and len(first) > 10
    assert np.array_equal(np.sort(last), np.sort(first)) and not np.array_equal(first, last)


@pytest.mark.parametrize("layout", ["data", "rows"])
def test_two_devices_of_one_process_train_the_same_model(tmp_path, alone, layout):
    file = str(tmp_path / "two.npz")
    codes, said = finish(start(out=file, losses=LOSSES, devices=2, layout=layout, shards=True))
    assert codes == [0], said
    found = result(file)
    check_equal(found, alone)
    for rows, _, of_one, _ in found["full/shards"]:  # a whole table, or half of its rows
        assert of_one == (rows if layout == "data" else rows // 2)


@pytest.mark.parametrize("layout, devices", [("data", 1), ("rows", 1), ("both", 2)])
def test_two_processes_train_the_same_model(tmp_path, alone, layout, devices):
    file = str(tmp_path / "two.npz")
    codes, said = in_two(out=file, losses=LOSSES, layout=layout, devices=devices)
    assert codes == [0, 0], said
    check_equal(result(file), alone)


def test_a_worker_that_sees_its_own_half_alone_trains_another_model(alone):
    """What the equality above would catch: negatives of half a batch are another loss."""
    assert np.abs(alone["in-batch of half/loss"] - alone["in-batch/loss"]).max() > 0.1


def test_processes_that_would_train_on_different_batches_are_stopped(tmp_path):
    spoilt = ["arrays", "seed", "batch_size", "epoch"]
    codes, said = in_two(out=str(tmp_path / "no.npz"), losses=[], layout="data", spoilt=spoilt)
    assert codes == [0, 0], said
    for text in said:
        for what in spoilt:
            assert f"expected the same {what} in all 2 processes, received" in text


def test_a_killed_process_ends_the_run_and_the_checkpoint_resumes_it(tmp_path, alone):
    file, model = str(tmp_path / "two.npz"), str(tmp_path / "model.keras")
    shared = {"losses": ["full"], "layout": "rows", "save": model}
    codes, said = in_two(out=file, dies=1, **shared)
    assert codes[0] != 0 and codes[1] == -9
    assert "another process ended, or can't be reached" in said[0] and f"load {model}" in said[0]
    codes, said = in_two(out=file, epochs=2, epochs_before=2, load=model, **shared)
    assert codes == [0, 0], said
    found = result(file)
    for what, first in (("loss", 2), ("items", 0), ("users", 0)):
        expected = alone[f"full/{what}"][first:]
        np.testing.assert_allclose(found[f"full/{what}"], expected, atol=1e-5, err_msg=what)
    assert [p.name for p in tmp_path.glob("*.keras")] == ["model.keras"]
    # The checkpoint is put together in process 0; the other lets go of each weight it has gathered.
    assert "held at once: 0" in said[1]


def test_the_program_of_the_chapter_runs_as_printed(tmp_path):
    root = PROGRAM.parents[1]
    cells = json.loads((root / "notebooks/17_beyond_one_machine.ipynb").read_text("utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    (program,) = re.findall(r"```python\n(import os\n.*?)```", text, re.DOTALL)
    users, items = np.repeat(np.arange(1, 21), 8), np.tile(np.arange(10, 18), 20)
    log = [f"{u},{i},{t}" for t, (u, i) in enumerate(zip(users, items, strict=True))]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *log]))
    for given, here in (("10.0.0.1:12345", free_address()), ("ml-100k", "log.csv")):
        assert program.count(given) == 1
        program = program.replace(given, here)
    (tmp_path / "train.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    environment.pop("KERAS_BACKEND", None)
    codes, said = finish(*(
        subprocess.Popen([sys.executable, "train.py", str(process)], cwd=tmp_path, env=environment,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for process in range(2)
    ))  # fmt: skip
    assert codes == [0, 0], said
    assert (tmp_path / "model.keras").is_file()


REFUSED = """
import sys

sys.argv[1:] = ["{}"]
from shared_training import INPUTS, NUM_ITEMS, TARGETS, keras, make, training

def refused(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except ValueError as error:
        print(error, file=sys.stderr)

for size in (0, -8, 2.5, "8", None):
    refused(training.GlobalBatches, INPUTS, TARGETS, NUM_ITEMS, size)
data, model = training.GlobalBatches(INPUTS, TARGETS, NUM_ITEMS, 22), make("full")
before = model.item_vectors()
for file in ("model.ckpt", "none/model.keras"):
    refused(training.fit, model, data, file, verbose=0)
    refused(training.save, model, file)
assert (model.item_vectors() == before).all()
for callbacks in (None, keras.callbacks.TerminateOnNaN(), [keras.callbacks.TerminateOnNaN()]):
    training.fit(model, data, "model.keras", callbacks=callbacks, verbose=0)
"""


def test_what_cannot_be_done_is_refused_before_the_first_epoch(tmp_path):
    path = os.pathsep.join(map(str, PROGRAM.parents[:2]))
    codes, said = finish(subprocess.Popen(
        [sys.executable, "-c", REFUSED], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ))  # fmt: skip
    assert codes == [0], said
    for size in (0, -8, 2.5, "8", None):
        assert f"a batch_size from 1 that divides into 1 shares, received {size!r}." in said[0]
    for file in ("model.ckpt", "none/model.keras"):
        text = f"expected a .keras file in a folder that is there, received {file}."
        assert said[0].count(text) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


def test_on_another_backend_it_says_so():
    from recsys_helpers.scale import training

    with pytest.raises(RuntimeError, match="the backend is tensorflow. Set KERAS_BACKEND=jax"):
        training.GlobalBatches({}, np.ones((1, 1), int), 1, 1)
