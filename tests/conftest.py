"""Shared by all tests: a quiet TensorFlow."""

import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def in_a_data_folder(*names):
    """Whether one of these datasets lies in a data folder: a test fetches nothing large."""
    from recsys_helpers.fetch import data_folders

    return any((folder / name).is_dir() for folder in data_folders(None).values() for name in names)


def pytest_configure(config):
    """JAX takes float64 in as float32 and says so each time; no test is about that."""
    config.addinivalue_line("filterwarnings", "ignore:Explicitly requested dtype float64")


@pytest.fixture(autouse=True)
def seeded():
    """What is drawn in a test is the same each time, also where the test doesn't say so."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(1)
