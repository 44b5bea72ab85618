"""What the figures share: matplotlib, imported late, colours, and how one is kept."""

import io
import pathlib
import re

from freeadv_jax.errors import InputError

# Readable on white, also in print and to the colour-blind (with MARKERS); a page
# replaces each by a variable, which has another value in the dark.
SERIES = ("#0b62a8", "#b3400a", "#0a7a55", "#8a3b8f", "#7a5b00", "#5a5a66")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, FAINT = "#1b1b21", "#d5d5dc"
_SUFFIXES = (".png", ".svg", ".pdf")


def new_figure(width: float, height: float, **options):
    """An empty matplotlib Figure of so many inches."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as fault:
        raise missing_extra("figures", "matplotlib") from fault
    mpl.rcParams.update(
        {
            # Text stays text: small, searchable, and in the font of the page.
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": 9,
            "text.color": INK,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": FAINT,
            "grid.linewidth": 0.6,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "lines.markersize": 4,
        }
    )
    return Figure(figsize=(width, height), layout="constrained", **options)


def missing_extra(what: str, package: str) -> InputError:
    """The one line about a package that only the extra `report` brings."""
    return InputError(f"{what} need {package}; pip install 'freeadv_jax[report]'")


def check_figure_path(path: pathlib.Path) -> None:
    """InputError unless a figure can be written there, before it is computed."""
    new_figure(1, 1)
    if path.suffix not in _SUFFIXES:
        raise InputError(f"{path}: a figure ends in one of {', '.join(_SUFFIXES)}")
    path.parent.mkdir(parents=True, exist_ok=True)


def save(figure, path: pathlib.Path, *, dpi: int = 110) -> None:
    """Writes a figure, in the format its name ends in."""
    if path.suffix == ".png":
        # A palette is a third of the size, and the eye sees no difference.
        from PIL import Image

        canvas = io.BytesIO()
        figure.savefig(
            canvas, format="png", dpi=dpi, facecolor="white", bbox_inches="tight"
        )
        Image.open(canvas).convert("RGB").quantize(256).save(path, optimize=True)
    else:
        figure.savefig(path, facecolor="white", bbox_inches="tight")


def as_svg(figure, name: str, description: str) -> str:
    """An <svg> element for a page, transparent, its colours the page's variables.

    `name` keeps its ids apart from those of other figures; `description` is read out.
    """
    import matplotlib as mpl

    canvas = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        # Without a date and a creator the same figure is the same text.
        figure.savefig(
            canvas,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = canvas.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    # Its style would hold for the whole page, which has one for all plots.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r">\s+<", "><", svg)
    svg = re.sub(r" font-family: [^;]*;", "", svg)  # That of the page.
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)  # HTML knows them.
    svg = re.sub(r"<g id=\"\w+_\d+\">", "<g>", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    # A hundredth of a point is enough, and half the size.
    svg = re.sub(
        r'(?<= )(?:d|x|y|transform)="[^"]*"',
        lambda part: re.sub(r"(\.\d\d)\d+", r"\1", " ".join(part[0].split())),
        svg,
    )
    variables = {"--ink": INK, "--faint": FAINT} | {
        f"--series-{place}": colour for place, colour in enumerate(SERIES)
    }
    for variable, colour in variables.items():
        svg = svg.replace(colour, f"var({variable})")
    width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg).groups()
    svg = svg.replace(f'width="{width}pt" height="{height}pt"', "", 1)
    label = (
        description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    )
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def colour_and_marker(place: int) -> dict:
    """For the line of the model in that place."""
    return {
        "color": SERIES[place % len(SERIES)],
        "marker": MARKERS[place % len(MARKERS)],
    }
