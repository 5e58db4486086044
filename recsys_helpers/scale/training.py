"""Train one model on several devices, in one process or in many: `keras.distribution` on JAX.

Every process runs the same program. It makes the same model, gives `GlobalBatches` the same arrays,
and feeds its share of each batch, which is all of it where only the tables are shared out; the
loss, the negatives and the gradients are those of the whole batch. Set KERAS_BACKEND=jax before
Keras is imported.
"""

from __future__ import annotations

import os
import secrets
import zlib
from pathlib import Path

import keras
import numpy as np

from recsys_helpers.batches import checked_arrays
from recsys_helpers.layers import EmbeddingTable, register

SHARES = 64  # a table's rows are padded to a multiple, so that as many devices can share them
PATIENCE = 15  # seconds


@register
class SharedTable(EmbeddingTable):
    """An `EmbeddingTable` with rows to spare, so that its rows divide among up to 64 devices.

    JAX lays out an array over devices only if its size divides by their number. The rows added are
    never read. Give it to a tower as `table=SharedTable`.
    """

    def __init__(self, rows, dim, stddev=0.05, **kwargs):
        super().__init__(-(-rows // SHARES) * SHARES, dim, stddev, **kwargs)
        self.rows = rows


def start(address: str, processes: int, process: int) -> None:
    """Join the other processes, once, before anything is computed; all draw the same weights.

    A process that ends is missed within `PATIENCE` seconds; `keras.distribution.initialize` would
    let the others wait for minutes.

    Args:
        address: host and port of process 0, such as "10.0.0.1:12345".
        processes: how many there are.
        process: number of this one, from 0.

    Raises:
        RuntimeError: on another backend than JAX.
    """
    jax = _jax()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # elsewhere it has its own
    jax.distributed.initialize(
        address,
        processes,
        process,
        heartbeat_timeout_seconds=PATIENCE,
        shutdown_timeout_seconds=PATIENCE,
    )
    from jax.experimental import multihost_utils

    seed = multihost_utils.broadcast_one_to_all(np.int32(secrets.randbelow(1 << 31)))
    keras.utils.set_random_seed(int(seed))


def data_parallel() -> None:
    """Each device has the whole model and computes a share of every batch; gradients are summed."""
    devices = keras.distribution.DeviceMesh((len(_devices()),), ["batch"], _devices())
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(device_mesh=devices, auto_shard_dataset=False)
    )


def tables_sharded(data: int = 1) -> None:
    """Each device has a share of every table's rows; the rest of the model is everywhere.

    By default that divides memory, and the optimizer's walk over the tables, and not the work of a
    batch: each device computes all of it, so that no gradient has to be summed.

    Args:
        data: into how many shares the batch is divided; the tables into all devices divided by it.
            From 2 on, gradients of the tables are summed over the shares of the batch.

    Raises:
        ValueError: if the devices can't be divided so.
    """
    devices = _devices()
    if data < 1 or len(devices) % data or SHARES % (len(devices) // data):
        raise ValueError(
            f"expected a number of devices that is data={data} times a divisor of {SHARES}, "
            f"received {len(devices)} devices."
        )
    shape = (data, len(devices) // data)
    mesh = keras.distribution.DeviceMesh(shape, ["batch", "rows"], np.reshape(devices, shape))
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*embeddings"] = ("rows", None)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(
            layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False
        )
    )


class GlobalBatches(keras.utils.PyDataset):
    """What this process computes of each batch, in an order that is the same in all of them.

    The last batch is filled up with rows of zeros, which have no target and count for nothing: so
    every batch divides among the devices, and every process takes equally many steps. (Where they
    don't, each waits for the others for ever.)

    Args:
        x: inputs, an array or name -> array, n rows: all of them, in every process's memory.
        y: targets [n, T].
        num_items: size of the catalogue.
        batch_size: rows of a batch of all processes together.
        seed: of the order, which is another one in each epoch.
        epoch: how many epochs a run has behind it that goes on from a checkpoint.

    Raises:
        ValueError: on arrays that don't fit each other, a batch that can't be divided, or if the
            processes were given different arrays, sizes, seeds or epochs.
    """

    def __init__(self, x, y, num_items, batch_size, seed=0, epoch=0):
        super().__init__()
        _jax()
        self.x, self.y, _ = checked_arrays(x, y, None, num_items)
        shares, mine = _shares_of_a_batch()
        if not isinstance(batch_size, int | np.integer) or batch_size < 1 or batch_size % shares:
            raise ValueError(
                f"expected a batch_size from 1 that divides into {shares} shares, received "
                f"{batch_size!r}."
            )
        self.mine = slice(mine[0] * batch_size // shares, mine[1] * batch_size // shares)
        self.batch_size, self.seed, self.epoch = batch_size, seed, epoch
        arrays = keras.tree.flatten([self.x, self.y])
        agree(
            rows=len(self.y),
            arrays=zlib.crc32(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)),
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
        )
        self.on_epoch_end()

    def __len__(self):
        return -(-len(self.y) // self.batch_size)

    def __getitem__(self, step):
        rows = self.order[step * self.batch_size : (step + 1) * self.batch_size][self.mine]
        missing = self.mine.stop - self.mine.start - len(rows)

        def filled(array):
            return np.concatenate([array[rows], np.zeros((missing, *array.shape[1:]), array.dtype)])

        return keras.tree.map_structure(filled, (self.x, self.y))

    def on_epoch_end(self):
        """Another order for the next epoch."""
        self.order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.y))
        self.epoch += 1


def agree(**values: int) -> None:
    """Check that all processes have the same numbers before they wait for each other.

    Raises:
        ValueError: naming what differs, in every process.
    """
    jax = _jax()
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    mine = np.array([value % (1 << 31) for value in values.values()], np.int32)
    everybody = np.asarray(multihost_utils.process_allgather(mine))  # (processes, values)
    for name, seen in zip(values, everybody.T, strict=True):
        if len(set(seen.tolist())) > 1:
            raise ValueError(
                f"expected the same {name} in all {len(seen)} processes, received {seen.tolist()}. "
                "They would train on different batches, and no error would say so."
            )


def fit(model, batches: GlobalBatches, checkpoint: str | os.PathLike = "", **kwargs):
    """`model.fit` on batches that the processes share.

    Args:
        model: built and compiled, the same in all processes.
        batches: their common batches.
        checkpoint: a `.keras` file to write after every epoch, see `save`; "" writes none.
        **kwargs: of `keras.Model.fit`.

    Raises:
        ValueError: if no checkpoint can be written there.
        RuntimeError: when another process has ended. There is no going on without it: start all of
            them again, with the model loaded from the checkpoint.
    """
    callbacks = keras.tree.flatten(kwargs.pop("callbacks", None) or [])
    if checkpoint:
        _check_file(Path(checkpoint))
        callbacks.append(keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: save(model, checkpoint)))  # fmt: skip
    try:
        return model.fit(batches, shuffle=False, callbacks=callbacks, **kwargs)
    except _jax().errors.JaxRuntimeError as error:
        if _jax().process_count() == 1:
            raise
        again = f"load {checkpoint}" if checkpoint else "give `checkpoint` a file next time"
        raise RuntimeError(
            "another process ended, or can't be reached, and training needs all of them: start "
            f"them again, and {again}."
        ) from error


def save(model, path: str | os.PathLike) -> None:
    """Write a model whose weights may lie on several devices, from process 0, whole or not at all.

    All processes must call it. The file is an ordinary `.keras` file, optimizer included, and loads
    with or without devices to share it. Process 0 needs memory for all of it, and every other for
    its largest table, which is gathered there, too, and let go.

    Raises:
        ValueError: if it isn't a `.keras` file in a folder that is there.
    """
    jax, path = _jax(), Path(path)
    _check_file(path)
    everything = _everything(model)
    if jax.process_index():
        for weight in everything:
            _gathered(weight)
    else:
        distribution = keras.distribution.distribution()
        keras.distribution.set_distribution(None)
        try:
            plain = type(model).from_config(model.get_config())
            plain.build_from_config(model.get_build_config())
            if model.optimizer is not None:
                plain.compile_from_config(model.get_compile_config())
            for variable, weight in zip(_everything(plain), everything, strict=True):
                variable.assign(_gathered(weight))
            unfinished = path.with_name(f"{path.stem}-{secrets.token_hex(4)}.keras")
            try:
                plain.save(unfinished)
                os.replace(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
        finally:
            keras.distribution.set_distribution(distribution)
    agree(saved=1)  # nobody goes on, or ends, before the file is there


def _check_file(path: Path) -> None:
    if path.suffix != ".keras" or not (path.parent.is_dir() or _jax().process_index()):
        raise ValueError(f"expected a .keras file in a folder that is there, received {path}.")


def _shares_of_a_batch() -> tuple[int, tuple[int, int]]:
    """Into how many shares a batch is divided, and from which to which this process computes.

    Processes that hold different rows of the tables for one share of the batch compute the same.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return 1, (0, 1)
    mesh = distribution.device_mesh
    axis = mesh.axis_names.index(distribution.batch_dim_name)
    shares = mesh.shape[axis]
    where = np.indices(mesh.shape)[axis].ravel()  # each device's share
    jax = _jax()
    local = {f"{d.platform}:{d.id}" for d in jax.local_devices()}
    mine = where[[name in local for name in mesh.devices.ravel()]]
    return shares, (int(mine.min()), int(mine.max()) + 1)


def _everything(model):
    optimizer = [] if model.optimizer is None else model.optimizer.variables
    return [*model.weights, *optimizer]


def _gathered(weight):
    from jax.experimental import multihost_utils

    value = weight.value
    if getattr(value, "is_fully_addressable", True):
        return np.asarray(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def _devices():
    return keras.distribution.list_devices()


def _jax():
    if keras.backend.backend() != "jax":
        raise RuntimeError(
            f"keras.distribution works with fit on JAX alone; the backend is "
            f"{keras.backend.backend()}. Set KERAS_BACKEND=jax before Keras is imported."
        )
    import jax

    return jax
