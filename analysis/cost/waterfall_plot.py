"""The picture of `waterfall`: one bar for the time of a step, one for the memory of a GPU, each in its parts."""

from pathlib import Path

from analysis import figure_style
from analysis.cost.waterfall import Waterfall
from scaling.errors import UserError

#: Parts below this share of their bar are summed up as "other".
_SMALL = 0.02
_FORMATS = (".svg", ".png", ".pdf")


def save_waterfall(found: Waterfall, title: str, path: Path, device_gib: float) -> None:
    """Draw both bars into `path` under a title of lines. device_gib: the GPU's memory, marked on the second bar.

    Raises UserError for a file type that is none of .svg, .png and .pdf.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"--plot {path}: must end in {', '.join(_FORMATS)}")
    from matplotlib.figure import Figure

    with figure_style.style(text_as_paths=True):
        figure = Figure(figsize=(9.0, 4.2), facecolor=figure_style.PAPER)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        above, below = figure.subplots(2, 1)
        total = found.time.total
        _stack(above, found.time_parts(), f"one step: {total:.3g} s", "s")
        _stack(below, found.memory_parts(), f"memory of a GPU: {found.memory.device / 2**30:.3g} GiB", "GiB")
        below.axvline(device_gib, color=figure_style.INK, linewidth=1.0, linestyle="--")
        below.set_xlim(0, 1.02 * max(device_gib, found.memory.device / 2**30))
        below.annotate(f"{device_gib:.3g} GiB", (device_gib, 0.45), ha="right", va="bottom", fontsize=8)
        figure.savefig(path, dpi=160)


def _stack(axes, parts: list[tuple[str, float]], title: str, unit: str) -> None:
    """One horizontal bar of stacked parts, the small ones as one, with a legend beside it."""
    total = sum(size for _, size in parts)
    shown = [(name, size) for name, size in parts if size >= _SMALL * total]
    rest = total - sum(size for _, size in shown)
    if rest > 0:
        shown.append(("other", rest))
    start = 0.0
    for (name, size), color in zip(shown, figure_style.series_colors(len(shown)), strict=True):
        label = f"{name.replace('_', ' ')} {100 * size / total:.0f} %"
        axes.barh(0, size, left=start, height=0.6, color=color, label=label)
        start += size
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.set_yticks([])
    axes.grid(False)
    axes.set_ylim(-0.35, 0.6)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
