"""How the figures look, and how one becomes SVG that follows the reader's light or dark page.

Ordered things (budgets, sizes) are coloured by viridis (Smith and van der Walt 2015, matplotlib's default), unordered
ones by the set of Okabe and Ito 2008 ("Color Universal Design"); both stay apart under the common forms of colour
blindness, and viridis in grey print. matplotlib is imported inside functions.
"""

import contextlib
import io
import re
from collections.abc import Iterator

INK, MUTED, GRID, PAPER = "#1b1f24", "#69737f", "#e3e7ea", "#ffffff"
BLUE, VERMILLION, GREEN = "#0072b2", "#d55e00", "#009e73"
#: Samples of viridis; a figure picks from these alone, so that a page can restyle each of them.
SERIES_STEPS = 12

_DARK = {
    INK: "#e8eaed",
    MUTED: "#9aa4af",
    GRID: "#2d343b",
    PAPER: "#15191d",
    BLUE: "#56b4e9",
    VERMILLION: "#f0814a",
    GREEN: "#2fc796",
}
_NAMES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    BLUE: "blue",
    VERMILLION: "vermillion",
    GREEN: "green",
}

_RC = {
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.05,
    "figure.constrained_layout.w_pad": 0.05,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
    "patch.linewidth": 0.0,
    "path.simplify_threshold": 0.2,
    "pdf.fonttype": 42,
}


@contextlib.contextmanager
def style(text_as_paths: bool = False) -> Iterator[None]:
    """The figures' settings, for drawing and for saving; the user's own are restored afterwards."""
    import matplotlib

    fonttype = "path" if text_as_paths else "none"
    with matplotlib.rc_context({**_RC, "svg.fonttype": fonttype, "svg.hashsalt": "scaling-lab"}):
        yield


def use() -> None:
    """The figures' settings from here on, as a notebook wants them."""
    import matplotlib

    matplotlib.rcParams.update({**_RC, "savefig.facecolor": PAPER})


def series_colors(number: int) -> list[str]:
    """`number` hex colours in order, dark violet to light green; repeated steps above SERIES_STEPS."""
    palette = _series(0.0, 0.86)
    if number == 1:
        return [palette[SERIES_STEPS // 3]]
    return [palette[round(index * (SERIES_STEPS - 1) / (number - 1))] for index in range(number)]


def _series(low: float, high: float) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    steps = SERIES_STEPS - 1
    return [to_hex(colormaps["viridis"](low + (high - low) * index / steps)) for index in range(SERIES_STEPS)]


def _variables() -> list[tuple[str, str, str]]:
    """(name, light, dark) of every colour a figure may hold."""
    fixed = [(name, light, _DARK[light]) for light, name in _NAMES.items()]
    series = zip(_series(0.0, 0.86), _series(0.28, 1.0))
    return fixed + [(f"series-{index}", light, dark) for index, (light, dark) in enumerate(series)]


def css_variables(dark: bool) -> str:
    """CSS declarations of the figures' colours, for a light or a dark page."""
    return " ".join(f"--{name}: {night if dark else day};" for name, day, night in _variables())


def inline_svg(figure, name: str) -> str:
    """An <svg> element to stand inside HTML: text as text, colours as CSS variables, no address in it.

    `name` makes the ids of this figure differ from those of the others on the page.
    """
    import matplotlib

    buffer = io.StringIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text)
    text = re.sub(r"(\d+\.\d\d)\d+", r"\1", text)
    for variable, light, _ in _variables():
        text = text.replace(light, f"var(--{variable})")
    return re.sub(r"\s*\n\s*", "\n", text)
