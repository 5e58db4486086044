"""What an epoch of YouTubeDNN costs: in rows, window by window, and by arithmetic alone.

    RECSYS_DATA=... python benchmarks/epoch.py      MovieLens-1M, six minutes on an idle machine
    python benchmarks/epoch.py ml-100k              another dataset
    python benchmarks/epoch.py --steps 60           a quick look, one round, nothing is written

The model is that of chapter 5 with 64 dimensions and 1,024 negatives, and once more in the sizes of
DeepMatch's YoutubeDNN, there also in processes that have one thread only. A quarter of an
epoch is trained through ordinary `fit`, in five rounds; medians of these are scaled to all
examples. How well a model ranks isn't measured here.

The bound is the time that the matrix products of an epoch would take at the rate of one large
square product: pooling, network and sampled logits, forward once and backward twice. Gathers,
exponentials and the optimizer are not in it, nor the places in a row that hold no example.
"""

from __future__ import annotations

import argparse
import collections
import math
import os
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import tensorflow as tf  # noqa: E402
from common import alternate, in_fresh_process, report  # noqa: E402

from recsys_helpers.datasets import load_dataset  # noqa: E402
from recsys_helpers.sampled_softmax import PopularitySampler  # noqa: E402
from recsys_helpers.samples import Samples, training_samples  # noqa: E402
from recsys_helpers.splits import leave_last_out  # noqa: E402
from recsys_helpers.towers import ItemEmbeddingTower, YouTubeDNNUserTower  # noqa: E402
from recsys_helpers.two_tower import TwoTower  # noqa: E402

SHARE, ROUNDS, PROFILED_STEPS = 1 / 4, 5, 60
POSITIONS, ROWS = 16, 32  # as in chapter 5: up to 512 examples a step; or as many windows
SQUARE = 4096
MODELS = {
    "chapter 5": {"exclude_seen": True, "dim": 64, "negatives": 1024, "dropout": 0.2},
    # Its hidden layers (64, 16) end with the output: the user's vector is that of the last one.
    "DeepMatch's sizes": {
        "dim": 16,
        "negatives": 5,
        "dropout": 0.0,
        "hidden": (64,),
        "recency": False,
        "last": 0,
    },
}
FORMS = {
    "in rows": {"positions": POSITIONS, "batch_size": ROWS},
    "in rows, 20 steps a call": {"positions": POSITIONS, "batch_size": ROWS, "steps_in_call": 20},
    f"in rows, {4 * ROWS} of them a step": {"positions": POSITIONS, "batch_size": 4 * ROWS},
    "window by window": {"positions": 1, "batch_size": ROWS * POSITIONS},
}
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
DEEPMATCH = {"what": "DeepMatch 0.3.2, measured before", "examples_per_cpu_second": 22_000}


def make_model(samples, counts, age_scale, dim, negatives, exclude_seen=False, **choices):
    """A model with the towers of chapter 5, built."""
    keras.utils.set_random_seed(1)
    num_items = len(counts) - 1
    model = TwoTower(
        YouTubeDNNUserTower(samples.sizes, dim, example_age_scale=age_scale, **choices),
        ItemEmbeddingTower(num_items, dim),
        num_items,
        sampler=PopularitySampler(counts, negatives, alpha=0.5),
        temperature=0.07,
        exclude_seen=exclude_seen,
        seed=1,
    )
    model.user_vectors({name: value[:1] for name, value in samples.inputs.items()})  # builds it
    return model


# --- Arithmetic -------------------------------------------------------------------------------


def products(model, positions: int) -> list[tuple[tuple, tuple]]:
    """Shapes of the matrix products of one step's forward pass, each a pair of operands."""
    history = model.user_tower.history
    rows = ROWS * POSITIONS // positions
    kinds, steps = 1 + history.recency + history.last, history.length + positions - 1
    dim = history.items.dim
    kernels = [tuple(layer.kernel.shape) for layer in model.user_tower.network.layers]
    pooling = ((positions * kinds, steps), (rows, steps, dim))
    network = [((rows * positions, kernel[0]), kernel) for kernel in kernels]
    logits = ((rows * positions, dim), (dim, model.sampler.num_sampled))
    return [pooling, *network, logits]


def flop(shapes: list[tuple[tuple, tuple]]) -> int:
    """Operations of products, forward and backward: three times those of the products alone."""
    return sum(3 * 2 * math.prod(a) * math.prod(b) // b[-2] for a, b in shapes)


def product_seconds(a_shape: tuple, b_shape: tuple):
    """A function that returns the seconds of a product and of its gradients, both cores at work."""
    repetitions = max(1, round(5e9 / flop([(a_shape, b_shape)])))
    c_shape = (*b_shape[:-2], a_shape[-2], b_shape[-1])
    # Other operands each time, or TensorFlow would compute equal products only once.
    operands = [
        [tf.random.normal(shape) for shape in (a_shape, b_shape, c_shape)]
        for _ in range(repetitions)
    ]

    @tf.function
    def run(operands):
        results = []
        for a, b, gradient in operands:
            with tf.GradientTape() as tape:
                tape.watch([a, b])
                c = tf.matmul(a, b)
            results.append((c, tape.gradient(c, [a, b], output_gradients=gradient)))
        return results

    def measure():
        begin = time.perf_counter()
        run(operands)[-1][0].numpy()
        return (time.perf_counter() - begin) / repetitions

    return measure


# --- Epochs -----------------------------------------------------------------------------------


def some_steps(samples: Samples, batch_size: int, steps: int) -> Samples:
    """Whole batches, drawn without replacement."""
    chosen = np.random.default_rng(1).permutation(len(samples))[: steps * batch_size]
    inputs = {name: value[chosen] for name, value in samples.inputs.items()}
    return replace(samples, inputs=inputs, targets=samples.targets[chosen])


def fit_seconds(model, samples: Samples, batch_size: int, cpu_seconds: list):
    """A function that trains on all samples once and returns the seconds that took."""

    def measure():
        begin, cpu_begin = time.perf_counter(), time.process_time()
        model.fit(samples.inputs, samples.targets, batch_size=batch_size, verbose=0)
        cpu_seconds.append(time.process_time() - cpu_begin)
        return time.perf_counter() - begin

    return measure


def profile(model, samples: Samples, batch_size: int) -> list[dict]:
    """Shares of the time that a step spends in operations, by their kind.

    Two operations may run at the same time; each counts with its own duration. Operations of the
    optimizer are one kind, whatever they compute.
    """
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        model.fit(samples.inputs, samples.targets, batch_size=batch_size, verbose=0)
        tf.profiler.experimental.stop()
        seconds = kernel_seconds(next(Path(folder).rglob("*.xplane.pb")))
    top = dict(seconds.most_common(10))
    top["other"] = seconds.total() - sum(top.values())
    return [{"kind": kind, "share": value / seconds.total()} for kind, value in top.items()]


def kernel_seconds(path: Path) -> collections.Counter:
    """Seconds spent in each kind of operation, from a profile that TensorFlow has written."""
    try:
        from tensorflow.tsl.profiler.protobuf import xplane_pb2
    except ModuleNotFoundError:
        from tensorflow.core.profiler.protobuf import xplane_pb2
    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    seconds = collections.Counter()
    for plane in space.planes:
        kinds = {key: kind(event.name) for key, event in plane.event_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                if kinds[event.metadata_id]:
                    seconds[kinds[event.metadata_id]] += event.duration_ps / 1e12
    return seconds


def kind(event: str) -> str | None:
    """The kind of an operation, from an event named after both: `dense/MatMul_1:_MklMatMul`.

    None for all other events, and for operations that only wait for the operations in them.
    """
    found = re.fullmatch(r"[^\s:]+:(?:_Mkl|_Fused)*([A-Z]\w*?)(?:V\d)?", event)
    if not found or re.search("Call|Iterator|While|Dataset", found[1]):
        return None
    if "adam/" in event:
        return "Adam"
    return "MatMul" if "MatMul" in found[1] else found[1]


def workshop(name: str, steps: int | None):
    """A function that makes (model, samples, products of a step), and the number of examples."""
    split = leave_last_out(load_dataset(name, verbose=False))
    windows, sequences = training_samples(split), training_samples(split, positions=POSITIONS)
    counts = np.bincount(windows.targets[:, 0], minlength=split.dataset.num_items + 1)
    age = windows.inputs["example_age"].mean() if split.dataset.has_timestamps else None

    def make(size: str, form: str):
        positions, batch_size = FORMS[form]["positions"], FORMS[form]["batch_size"]
        samples = windows if positions == 1 else sequences
        model = make_model(samples, counts, age, **MODELS[size])
        model.compile(
            keras.optimizers.Adam(1e-3), steps_per_execution=FORMS[form].get("steps_in_call", 1)
        )
        number = steps or math.ceil(SHARE * len(samples) / batch_size)
        return model, some_steps(samples, batch_size, number), products(model, positions)

    return make, len(windows)


def alone(name: str, size: str, form: str, steps: int | None) -> tuple[float, float, int]:
    """Median seconds and processor seconds of a fit, and its number of examples."""
    model, part, _ = workshop(name, steps)[0](size, form)
    cpu_seconds: list[float] = []
    measure = fit_seconds(model, part, FORMS[form]["batch_size"], cpu_seconds)
    seconds = alternate({"": measure}, 1 if steps else ROUNDS)[""]
    return seconds, float(np.median(cpu_seconds[1:])), np.count_nonzero(part.targets)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", nargs="?", default="ml-1m-order")
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()

    make, examples = workshop(arguments.dataset, arguments.steps)
    contenders, given, cpu_seconds = {}, {}, {}
    for size in MODELS:
        for form in FORMS:
            given[size, form] = model, part, _ = make(size, form)
            cpu_seconds[size, form] = []
            contenders[size, form] = fit_seconds(
                model, part, FORMS[form]["batch_size"], cpu_seconds[size, form]
            )
    square = ((SQUARE, SQUARE), (SQUARE, SQUARE))
    shapes = given["chapter 5", "in rows"][2]
    contenders |= {product: product_seconds(*product) for product in [square, *shapes]}
    medians = alternate(contenders, 1 if arguments.steps else ROUNDS)

    rate = flop([square]) / medians[square]
    rows = [
        {"what": f"product of {SQUARE} x {SQUARE}, and its gradients", "gflops_per_second": rate}
    ]
    for product in shapes:
        what = "product of " + " by ".join(" x ".join(map(str, shape)) for shape in product)
        rows.append({"what": what, "gflops_per_second": flop([product]) / medians[product]})
    per_example = flop(shapes) / (ROWS * POSITIONS)
    own_rate = flop(shapes) / sum(medians[product] for product in shapes)
    for what, its_rate in (("bound", rate), ("products of these shapes, nothing else", own_rate)):
        rows.append(
            {
                "what": f"chapter 5, {what}",
                "seconds_per_epoch": examples * per_example / its_rate,
                "gflop_per_epoch": examples * per_example,
                "gflops_per_second": its_rate,
                "times_bound": rate / its_rate,
            }
        )
    for (size, form), (_, part, its_shapes) in given.items():
        scale = examples / np.count_nonzero(part.targets)
        seconds = medians[size, form] * scale
        cpu = float(np.median(cpu_seconds[size, form][1:])) * scale
        work = examples * flop(its_shapes) / (ROWS * POSITIONS)
        rows.append(
            {
                "what": f"{size}, {form}",
                "seconds_per_epoch": seconds,
                "cpu_seconds_per_epoch": cpu,
                "examples_per_cpu_second": examples / cpu,
                "gflop_per_epoch": work,
                "gflops_per_second": work / seconds,
                "times_bound": seconds / (work / rate),
                "share_measured": 1 / scale,
            }
        )
    os.environ.update(ONE_THREAD)  # of the processes to come
    for form in FORMS:
        size = "DeepMatch's sizes"
        seconds, cpu, number = in_fresh_process(
            alone, arguments.dataset, size, form, arguments.steps
        )
        rows.append(
            {
                "what": f"{size}, {form}, one thread",
                "seconds_per_epoch": seconds * examples / number,
                "cpu_seconds_per_epoch": cpu * examples / number,
                "examples_per_cpu_second": number / cpu,
                "share_measured": number / examples,
            }
        )
    rows = [{k: v / 1e9 if k.startswith("gflop") else v for k, v in r.items()} for r in rows]
    rows.append(DEEPMATCH)
    rows = [{"dataset": arguments.dataset, "examples": examples} | row for row in rows]

    model, part, _ = given["chapter 5", "in rows"]
    shares = profile(model, some_steps(part, ROWS, PROFILED_STEPS), ROWS)
    for name, table in (("epoch", rows), ("epoch_profile", shares)):
        if arguments.steps:
            print(pd.DataFrame(table).to_string(index=False, float_format="{:.3f}".format))
        else:
            report(name, table)


if __name__ == "__main__":
    main()
