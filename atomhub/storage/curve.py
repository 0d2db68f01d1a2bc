"""The picture of a distillation: its loss over the iterations."""

from pathlib import Path

import numpy as np

from atomhub.provenance import Provenance
from atomhub.recipe import Recipe


def draw_curve(name: str, p: Provenance, path: Path) -> None:
    """Draw the loss of the set ``name`` over iterations, and what was measured on the way, as PNG.

    Pixels out of 0..1 are those that a step pushed there, where they are clipped.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter
    from scipy.ndimage import uniform_filter1d

    figure = Figure(figsize=(6, 3.5 + bool(p.clipped_history)))
    # fixed, as the layouts that matplotlib finds draw everything twice
    figure.subplots_adjust(left=0.16, right=0.84 if p.accuracy_history else 0.97, bottom=0.13, top=0.92, hspace=0.08)
    if p.clipped_history:
        axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        iterations, shares = zip(*p.clipped_history, strict=True)
        below.plot(iterations, [100 * share for share in shares], color="tab:red", linewidth=1)
        below.set_ylim(bottom=0)
        below.set_ylabel("pixels out\nof 0..1 (%)", color="tab:red")
    else:
        axes = below = figure.subplots()
    iterations, losses = zip(*p.history, strict=True)
    axes.plot(iterations, losses, color="tab:blue", alpha=0.35, linewidth=1)
    window = 2 * max(1, len(losses) // 20) + 1  # a geometric running mean over about a tenth of the curve
    smooth = np.exp(uniform_filter1d(np.log(np.maximum(losses, 1e-30)), window, mode="nearest"))
    axes.plot(iterations, smooth, color="tab:blue")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())  # 60, not 6 x 10 to the 1
    axes.yaxis.set_minor_formatter(LogFormatter())
    below.set_xlabel("iteration")
    axes.set_ylabel("loss", color="tab:blue")
    if p.accuracy_history:
        right = axes.twinx()
        right.plot(*zip(*p.accuracy_history, strict=True), "o-", color="tab:orange")
        norm = f", {p.recipe.norm} norm" if isinstance(p.recipe, Recipe) else ""
        low, high = right.get_ylim()
        room = max(0.0, 10 - (high - low)) / 2  # within fewer than ten points, one network's noise looks like a trend
        right.set_ylim(max(0, low - room), min(100, high + room))
        right.set_ylabel(f"test accuracy of one network (%)\nquick, ConvNet{norm}", color="tab:orange")
    axes.set_title(f"{name}, recipe {p.method}", loc="left", fontsize=11)
    figure.savefig(path, dpi=120)
