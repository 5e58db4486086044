"""Row-wise updates against the stock optimizers on the dense gradient."""

import inspect
import subprocess
import sys
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
from test_two_tower import KINDS, make, ring, towers

tf = pytest.importorskip("tensorflow")
if keras.backend.backend() != "tensorflow":
    pytest.skip("the row-wise module is TensorFlow's", allow_module_level=True)

from recsys_helpers.layers import EmbeddingTable  # noqa: E402
from recsys_helpers.rowwise import (  # noqa: E402
    RowAdagrad,
    RowAdam,
    RowEmbedding,
    RowSGD,
    summed_rows,
)

ROWS, DIM, STEPS = 12, 3, 8
REFUSED = {
    "momentum": 0.9,
    "weight_decay": 0.1,
    "loss_scale_factor": 2.0,
    "gradient_accumulation_steps": 2,
    "amsgrad": True,
    "use_ema": True,
}
PAIRS = [
    (RowSGD, keras.optimizers.SGD),
    (RowAdagrad, keras.optimizers.Adagrad),
    (RowAdam, keras.optimizers.Adam),
]


def regression(table, optimizer, batches, start):
    """Train rows of a table to meet targets, through plain compile and fit; the rows after."""
    ids = keras.Input((1,), dtype="int32")
    model = keras.Model(ids, keras.layers.Flatten()(table(ids)))
    table.embeddings.assign(start)
    model.compile(optimizer=optimizer, loss="mse", jit_compile=False)
    for ids, targets in batches:
        model.train_on_batch(ids[:, None], targets)
    return model


class DenseEmbedding(RowEmbedding):
    """The same table with a dense gradient: a product with indicators."""

    def call(self, ids):
        return tf.one_hot(ids, self.rows) @ self.embeddings


def batches_of(ids_of):
    rng = np.random.default_rng(0)
    return [(ids_of(rng).astype("int32"), rng.normal(size=(40, DIM))) for _ in range(STEPS)]


def everywhere(rng):
    return rng.permutation(np.r_[np.arange(ROWS), rng.integers(0, ROWS, 40 - ROWS)])


def somewhere(rng):
    return rng.choice(rng.choice(ROWS, 4, replace=False), 40)


def both(row_wise, stock, batches):
    start = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype("float32")
    tables = (RowEmbedding(ROWS, DIM), DenseEmbedding(ROWS, DIM))
    for table, optimizer in zip(tables, (row_wise(0.1), stock(0.1)), strict=True):
        regression(table, optimizer, batches, start)
    return [table.embeddings.numpy() for table in tables]


@pytest.mark.parametrize("row_wise, stock", PAIRS)
def test_equals_the_dense_optimizer_when_every_batch_has_every_row(row_wise, stock):
    ours, theirs = both(row_wise, stock, batches_of(everywhere))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    "clip", [{}, {"clipnorm": 0.01}, {"global_clipnorm": 0.01}, {"clipvalue": 0.001}], ids=str
)
@pytest.mark.parametrize("row_wise, stock", PAIRS[:2])
def test_sgd_and_adagrad_equal_the_dense_optimizer_always(row_wise, stock, clip):
    row_wise, stock = partial(row_wise, **clip), partial(stock, **clip)
    ours, theirs = both(row_wise, stock, batches_of(somewhere))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_lazy_adam_lets_a_row_rest_where_adam_moves_it_on():
    first, second = np.zeros(40, int), np.ones(40, int)
    targets = np.ones((40, DIM))
    batches = [(first.astype("int32"), targets), (second.astype("int32"), targets)]
    ours, theirs = both(RowAdam, keras.optimizers.Adam, batches)
    once, _ = both(RowAdam, keras.optimizers.Adam, batches[:1])
    np.testing.assert_array_equal(ours[0], once[0])
    assert np.abs(theirs[0] - once[0]).min() > 1e-3


def test_rows_that_were_not_read_are_not_written():
    batches = batches_of(lambda rng: rng.integers(0, 4, 40))
    start = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype("float32")
    ours, _ = both(RowAdam, keras.optimizers.Adam, batches)
    np.testing.assert_array_equal(ours[4:], start[4:])
    assert (ours[:4] != start[:4]).all()


def test_a_table_starts_random_in_every_block_and_the_same_for_the_same_seed():
    def table(seed):
        keras.utils.set_random_seed(seed)
        return RowEmbedding(200_001, 2, stddev=0.1).embeddings.numpy()

    values = table(1)
    np.testing.assert_array_equal(values, table(1))
    assert (values != table(2)).any()
    assert abs(values.std() - 0.1) < 1e-3 and abs(values.mean()) < 1e-3
    assert (values[:100_000] != values[100_000:200_000]).mean() > 0.99
    assert values.any(axis=1).all()  # also the last of a block


def test_repeated_rows_are_summed():
    gradient = tf.IndexedSlices(tf.constant([[1.0], [10.0], [100.0]]), tf.constant([7, 2, 7]))
    rows, values = summed_rows(gradient)
    summed = dict(zip(rows.numpy().tolist(), values.numpy()[:, 0].tolist(), strict=True))
    assert summed == {7: 101.0, 2: 10.0}


@pytest.mark.parametrize("row_wise, stock", PAIRS)
def test_dense_weights_are_trained_as_ever(row_wise, stock):
    def run(optimizer):
        weight = keras.Variable(np.ones((2, 2), "float32"))
        optimizer.build([weight])
        for step in range(3):
            optimizer.apply([tf.constant([[1.0, -2.0], [0.5, step]])])
        return weight.numpy()

    np.testing.assert_array_equal(run(row_wise(0.1)), run(stock(0.1)))


@pytest.mark.parametrize("row_wise, _", PAIRS)
def test_state_is_saved_and_restored_with_the_model(row_wise, _, tmp_path):
    batches = batches_of(somewhere)
    start = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype("float32")
    model = regression(RowEmbedding(ROWS, DIM), row_wise(0.1), batches[:4], start)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for ids, targets in batches[4:]:
        model.train_on_batch(ids[:, None], targets)
        loaded.train_on_batch(ids[:, None], targets)
    np.testing.assert_array_equal(model.get_weights()[0], loaded.get_weights()[0])


def test_what_cannot_be_done_row_by_row_is_refused():
    for optimizer in (RowSGD, RowAdagrad, RowAdam):
        for option, value in REFUSED.items():
            if option in inspect.signature(optimizer.__mro__[2]).parameters:
                message = f"{optimizer.__name__} has no {option}, received {value}"
                with pytest.raises(ValueError, match=message):
                    optimizer(0.1, **{option: value})
    with pytest.raises(ValueError, match="RowSGD has no momentum, received 0.9"):
        RowSGD(0.1, 0.9)
    RowAdam(0.1, weight_decay=None, amsgrad=False)
    RowAdam.from_config(RowAdam(0.1, clipnorm=1.0).get_config())


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_of_row_wise_tables_is_trained_as_one_of_dense_tables(kind):
    """From equal weights, by gradient descent on everything; repeats are in every batch."""

    def trained(table, optimizer):
        table = {"table": table}
        pair = towers(kind, user=table, item=table)
        model = make(kind, optimizer(0.5), eager=True, towers_=pair)
        model.user_vectors(inputs)
        start[:] = start or model.get_weights()
        model.set_weights(start)
        model.fit(inputs, targets, batch_size=16, verbose=0, shuffle=False)
        return model.user_vectors(inputs), model.item_vectors()

    inputs, targets = ring(rows=32)
    start = []
    ours, theirs = trained(RowEmbedding, RowSGD), trained(EmbeddingTable, keras.optimizers.SGD)
    for ours_, theirs_ in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(ours_, theirs_, atol=1e-5)


STATE_IN_MEMORY = """
import re, sys
from pathlib import Path
import keras, numpy as np
from recsys_helpers import rowwise

def gib(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**20

rows = 1_000_000
ids = keras.Input((1,), dtype="int32")
table = rowwise.RowEmbedding(rows, 64)
model = keras.Model(ids, keras.layers.Flatten()(table(ids)))
x, y = np.arange(512, dtype="int32")[:, None], np.ones((512, 64))
for optimizer in (rowwise.RowAdagrad, rowwise.RowAdam):
    model.compile(optimizer=optimizer(0.1), loss="mse", jit_compile=False)
    before = gib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest is what it is now
    model.fit(x, y, batch_size=256, verbose=0)
    print((gib("VmHWM") - before) / (rows * 64 * 4 / 2**30))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read as Linux says")
def test_fit_makes_the_state_once_and_never_copies_it():
    command = [sys.executable, "-c", STATE_IN_MEMORY]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    adagrad, adam = map(float, run.stdout.split()[-2:])  # in sizes of the table
    assert adagrad < 1.7 and adam < 2.7
