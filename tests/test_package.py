"""What importing the package does: nothing, but that Keras gets to know its layers."""

import subprocess
import sys
from pathlib import Path

import pytest

import recsys_helpers

IMPORTS = """
import sys

import recsys_helpers
from recsys_helpers import baselines, cold, datasets, delta, index, metrics
from recsys_helpers import results, samples, splits, versions

assert not {"keras", "tensorflow", "jax", "torch"} & sys.modules.keys(), "data need no Keras"
import keras

known = keras.saving.get_custom_objects()
for name in NAMES:
    assert f"recsys_helpers>{name}" in known, name
"""
NAMES = ["TwoTower", "EmbeddingTable", "SelfAttentiveUserTower", "PopularitySampler"]


def test_data_and_metrics_need_no_keras_and_keras_once_imported_knows_the_layers():
    import keras

    names = NAMES + (["RowAdam"] if keras.backend.backend() == "tensorflow" else [])
    code = IMPORTS.replace("NAMES", repr(names))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("module", ["batches", "sampled_softmax"])
def test_a_module_that_is_the_first_to_import_keras_can_be_imported(module):
    code = f"import recsys_helpers.{module}, keras\nassert keras.saving.get_registered_object("
    code += "'recsys_helpers>TwoTower')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_every_module_is_short_enough_to_be_read_in_one_go():
    package = Path(recsys_helpers.__file__).parent
    lines = {path.name: len(path.read_text().splitlines()) for path in package.rglob("*.py")}
    assert len(lines) > 40 and {name: n for name, n in lines.items() if n > 400} == {}
