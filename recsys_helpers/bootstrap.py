"""Means in draws of users and seeds: intervals for models that were trained several times."""

from __future__ import annotations

import numpy as np

DRAWN = 1 << 21  # users at a time, in all draws together


def means_of_draws(
    values: dict[str, np.ndarray], num_samples: int = 10_000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Draw users, the same for all models, and then seeds of each model by itself.

    Users and seeds are crossed, as in Owen (2007), "The pigeonhole bootstrap": an interval of these
    means is rather too wide than too narrow. Of n > 1 seeds n - 1 are drawn, or the spread of so
    few would come out too small by (n - 1) / n (Rao and Wu 1988, section 2).

    Args:
        values: by model [seeds, users], of the same users in the same order.
        num_samples: how many times users and seeds are drawn, with replacement.
        seed: of the draws.

    Returns:
        By model: its mean in each draw, [num_samples].

    Raises:
        ValueError: if there are not as many users of each model, or values that are no numbers.
    """
    if not values:
        return {}
    for model, runs in values.items():
        if np.ndim(runs) != 2 or not np.size(runs) or not np.isfinite(runs).all():
            raise ValueError(
                f"expected finite values [seeds, users] of {model!r}, at least one, received shape "
                f"{np.shape(runs)}, {np.sum(~np.isfinite(runs))} of them not finite."
            )
    users = {model: np.shape(runs)[-1] for model, runs in values.items()}
    if len(set(users.values())) > 1:
        raise ValueError(f"expected values of the same users, received numbers of users {users}.")
    generator = np.random.default_rng(seed)
    every = np.concatenate(list(values.values())).T  # [users, runs of all models]
    users, means = len(every), []
    step = max(1, DRAWN // users)
    for start in range(0, num_samples, step):
        size = min(step, num_samples - start)
        drawn = generator.integers(0, users, (size, users)) + users * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users)
        means.append(counts.astype(np.float64) @ every / users)
    means, first, chosen = np.concatenate(means), 0, {}  # [num_samples, runs]
    for model, runs in values.items():
        own, n = means[:, first : first + len(runs)], len(runs)
        picked = generator.integers(0, n, (num_samples, max(1, n - 1)))
        chosen[model] = np.take_along_axis(own, picked, axis=1).mean(axis=1)
        first += n
    return chosen


def interval(drawn: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentiles that leave out as much at both ends.

    Raises:
        ValueError: if the level isn't between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, received {level}.")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
