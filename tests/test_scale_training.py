"""One model on several devices and processes is the model of one device, or says why it can't be.

Each training runs in processes of its own (shared_training.py), on JAX.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("shared_training.py")
LOSSES = ["full", "sampled", "in-batch"]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="no jax here")


def start(**task):
    environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[1]), "TF_CPP_MIN_LOG_LEVEL": "3"}
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


def in_two(**task):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"address": address, "processes": 2} | task
    return finish(*(start(process=process, **shared) for process in range(2)))


def result(file):
    with np.load(file) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses and vectors of one device."""
    file = str(tmp_path_factory.mktemp("alone") / "one.npz")
    codes, said = finish(start(out=file, losses=LOSSES))
    assert codes == [0], said
    return result(file)


def check_equal(found, expected):
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)


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


def test_a_worker_that_sees_its_own_half_alone_trains_another_model(tmp_path, alone):
    """What the equality above would catch: negatives of half a batch are another loss."""
    file = str(tmp_path / "half.npz")
    codes, said = finish(start(out=file, losses=["in-batch"], batch_size=8))
    assert codes == [0], said
    half = result(file)
    assert np.abs(half["in-batch/loss"] - alone["in-batch/loss"]).max() > 0.1


@pytest.mark.parametrize(
    "task, differs",
    [
        ({"spoil": 1}, "arrays"),
        ({"seeds": [3, 4]}, "seed"),
        ({"batch_sizes": [16, 8]}, "batch_size"),
    ],
)
def test_processes_that_would_train_on_different_batches_are_stopped(tmp_path, task, differs):
    codes, said = in_two(out=str(tmp_path / "no.npz"), losses=["full"], layout="data", **task)
    assert all(codes)
    for text in said:
        assert f"expected the same {differs} in all 2 processes, received" in text


def test_a_killed_process_ends_the_run_and_the_checkpoint_resumes_it(tmp_path):
    one, two, model = (str(tmp_path / name) for name in ("one.npz", "two.npz", "model.keras"))
    codes, said = finish(start(out=one, losses=["full"], epochs=4))
    assert codes == [0], said
    shared = {"losses": ["full"], "layout": "rows", "save": model}
    codes, said = in_two(out=two, epochs=4, dies=1, **shared)
    assert codes[0] != 0 and codes[1] == -9
    assert "another process ended, or can't be reached" in said[0] and f"load {model}" in said[0]
    codes, said = in_two(out=two, epochs=2, epochs_before=2, load=model, **shared)
    assert codes == [0, 0], said
    found, expected = result(two), result(one)
    check_equal(
        {k: found[k] for k in ("full/items", "full/users")} | {"full/loss": found["full/loss"]},
        expected | {"full/loss": expected["full/loss"][2:]},
    )
    assert [p.name for p in tmp_path.glob("*.keras")] == ["model.keras"]


def test_on_another_backend_it_says_so():
    from recsys_helpers.scale import training

    with pytest.raises(RuntimeError, match="the backend is tensorflow. Set KERAS_BACKEND=jax"):
        training.GlobalBatches({}, np.ones((1, 1), int), 1, 1)
