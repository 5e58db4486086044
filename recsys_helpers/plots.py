"""The house's look for figures: one colour a side, one a model, drawn as SVG.

The book's pages put these SVGs into the HTML and exchange the colours below for those of the
reader's light or dark page, so a figure should use them and no others.
"""

from __future__ import annotations

import re

import matplotlib as mpl
import numpy as np
import pandas as pd

# On white each has a contrast of at least 4.5; `book/_static/book.css` has the dark page's.
COLOURS = {
    "ink": "#1f2933",
    "muted": "#5c6773",
    "grid": "#d5dbe1",
    "user": "#1f6fb2",
    "item": "#b4540a",
    "baseline": "#66707b",
    "fm": "#7a3e9d",
    "dssm": "#0b7468",
    "youtubednn": "#b91c4a",
    "self_attentive": "#4a6800",
}
MARKERS = {"fm": "o", "dssm": "s", "youtubednn": "D", "self_attentive": "^"}
MARKERS |= {"sum": "P", "distilled": "X"}  # made of several, so in none of their colours


def colour_of(model: str) -> str:
    """The colour of a model's short name, as in `results.MODELS`; baselines share one."""
    if model in ("sum", "distilled"):
        return COLOURS["ink"]
    return COLOURS.get("fm" if model.startswith("fm") else model, COLOURS["baseline"])


def for_the_page(svg: str) -> str:
    """An SVG without what a page doesn't need, its colours as CSS variables with a fallback."""
    svg = re.sub(
        r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.S
    )
    for name, colour in COLOURS.items():  # not where it is such a fallback already
        svg = re.sub(rf"(?<!, ){colour}\b", f"var(--{name.replace('_', '-')}, {colour})", svg)
    return svg.strip()


def house_style() -> None:
    """Set matplotlib's defaults, and notebooks to SVG. Call it once, after the imports."""
    series = ("user", "item", "dssm", "fm", "youtubednn", "self_attentive")
    mpl.rcParams.update(
        {
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "figure.constrained_layout.use": True,
            "figure.figsize": (6.5, 3.4),
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.labelsize": 11,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "legend.fontsize": 10,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": COLOURS["grid"],
            "grid.linewidth": 0.7,
            "lines.linewidth": 2,
            "svg.fonttype": "none",  # text stays text
            "svg.hashsalt": "two towers",  # the same figure has the same ids each time
            "axes.prop_cycle": mpl.cycler(color=[COLOURS[name] for name in series]),
        }
        | dict.fromkeys(
            "text.color axes.edgecolor axes.labelcolor axes.titlecolor xtick.color ytick.color "
            "legend.labelcolor".split(),
            COLOURS["ink"],
        )
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # no notebook
        return
    set_matplotlib_formats("svg", metadata={"Date": None})


def strip_plot(panels: dict[str, pd.DataFrame], keys: list[str], new: int = 1) -> mpl.figure.Figure:
    """Models under each other, each a dot with its interval, a panel a metric.

    Args:
        panels: by title: a frame with columns mean, low and high, one row a model, all frames with
            the same rows.
        keys: short names of the rows, for their colours.
        new: how many rows at the end are this page's, drawn filled and labelled in bold.

    Returns:
        The figure.

    Raises:
        ValueError: without panels, or if a panel's rows aren't those of the first, or not as many
            as `keys`.
    """
    from matplotlib import pyplot as plt

    if not panels:
        raise ValueError("expected at least one panel, received none.")
    names = list(next(iter(panels.values())).index)
    for title, frame in panels.items():
        if list(frame.index) != names or len(keys) != len(names):
            raise ValueError(
                f"each panel needs the same rows and a key for each: expected {names} with "
                f"{len(keys)} keys, received {list(frame.index)} for {title!r}."
            )
    fig, axes = plt.subplots(
        1, len(panels), figsize=(7.6, 0.7 + 0.32 * len(names)), sharey=True, squeeze=False
    )
    for ax, (title, frame) in zip(axes[0], panels.items(), strict=True):
        strips(ax, frame, keys, [False] * (len(names) - new) + [True] * new)
        ax.set_title(title)
    for label in axes[0, 0].get_yticklabels()[len(names) - new :]:
        label.set_fontweight("bold")
    return fig


def strips(ax, frame: pd.DataFrame, keys: list[str], filled: list[bool]) -> None:
    """One panel of strips: a dot and its interval for each row of a frame, the first at the top.

    Args:
        ax: of matplotlib.
        frame: columns mean, low and high; the index names the rows.
        keys: short names of the rows, for their colours.
        filled: by row, whether the dot is.
    """
    places = np.arange(len(frame))[::-1]
    for place, key, full, (_, row) in zip(places, keys, filled, frame.iterrows(), strict=True):
        colour = colour_of(key)
        if row["low"] < row["high"]:  # what others published comes without an interval
            ax.plot([row["low"], row["high"]], [place, place], color=colour, lw=2)
        ax.plot(row["mean"], place, MARKERS.get(key, "o"), ms=7, color=colour,
                mfc=colour if full else "none", mew=1.5)  # fmt: skip
    _name_rows(ax, list(frame.index))


def trial_strips(ax, trials: pd.DataFrame, names: dict[str, str]) -> None:
    """One panel of trials: a ring for each, filled where it was chosen, a row a model.

    Args:
        ax: of matplotlib.
        trials: columns model (short name), value and chosen, as `trials.trials_table` has them.
        names: of the rows by the short name, the first at the top; a row without a trial says so.
    """
    for place, model in enumerate(reversed(names)):
        own, colour = trials[trials["model"] == model], colour_of(model)
        marker = MARKERS.get(model, "o")
        ax.plot(own["value"], [place] * len(own), marker, ms=6, color=colour, mfc="none", mew=1)
        best = own.loc[own["chosen"], "value"]
        ax.plot(best, [place] * len(best), marker, ms=8, color=colour, mew=1.5)
        if own.empty:
            ax.text(0.5, place, "not yet tried", transform=ax.get_yaxis_transform(), ha="center",
                    va="center", color=COLOURS["muted"], fontsize=9)  # fmt: skip
    _name_rows(ax, list(names.values()))


def _name_rows(ax, names: list[str]) -> None:
    """Label the rows of a panel of strips, the first at the top."""
    ax.set(yticks=np.arange(len(names))[::-1], ylim=(-0.6, len(names) - 0.4))
    ax.set_yticklabels(names)
    ax.grid(axis="y", visible=False)
