"""The picture of a distillation: its loss over the iterations."""

import math
from pathlib import Path

from atomhub.provenance import Provenance


def draw_curve(name: str, p: Provenance, path: Path) -> None:
    """Draw the loss over iterations and, where it was measured on the way, the accuracy, as PNG.

    Args:
        name: Name of the set.
        p: Its provenance, with a history.
        path: Where to.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5 + bool(p.clipped_history)), layout="constrained")
    if p.clipped_history:
        axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        iterations, shares = zip(*p.clipped_history, strict=True)
        below.plot(iterations, [100 * share for share in shares], color="tab:red", linewidth=1)
        below.set_ylim(bottom=0)
        below.set_ylabel("clipped\npixels (%)", color="tab:red")
    else:
        axes = below = figure.subplots()
    iterations, losses = zip(*p.history, strict=True)
    axes.plot(iterations, losses, color="tab:blue", alpha=0.35, linewidth=1)
    axes.plot(iterations, _smooth(losses), color="tab:blue")
    axes.set_yscale("log")
    below.set_xlabel("iteration")
    axes.set_ylabel("loss", color="tab:blue")
    if p.accuracy_history:
        right = axes.twinx()
        right.plot(*zip(*p.accuracy_history, strict=True), "o-", color="tab:orange")
        right.set_ylabel("test accuracy of one network (%)", color="tab:orange")
    axes.set_title(name, loc="left")
    figure.savefig(path, dpi=120)


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Return the geometric running mean over about a tenth of the curve."""
    reach = max(1, len(values) // 20)
    logs = [math.log(max(v, 1e-30)) for v in values]
    windows = (logs[max(0, i - reach) : i + reach + 1] for i in range(len(logs)))
    return [math.exp(sum(w) / len(w)) for w in windows]
