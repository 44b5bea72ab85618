"""The style, the colours and the file formats of all figures.

Matplotlib is imported only when a figure is made.
"""

import io
import pathlib
import re
from xml.etree import ElementTree

from freeadv_jax.errors import InputError
from freeadv_jax.files import AnyPath, local_path

# Readable on white, in print and, with MARKERS, to the colour-blind. A page replaces each
# colour by a variable that has another value in the dark.
SERIES = ("#0b62a8", "#b3400a", "#0a7a55", "#8a3b8f", "#7a5b00", "#5a5a66")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, FAINT = "#1b1b21", "#d5d5dc"
_SVG = "http://www.w3.org/2000/svg"
_SUFFIXES = (".png", ".svg", ".pdf")


def new_figure(width: float, height: float, **options):
    """Return an empty matplotlib Figure of this size in inches.

    Raise InputError if matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as fault:
        raise missing_extra("figures", "matplotlib") from fault
    mpl.rcParams.update(
        {
            # Text stays text: it is small, searchable and in the page's font.
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
    """Return the InputError for a package of the extra `report` that is missing."""
    return InputError(f"{what} need {package}; pip install 'freeadv_jax[report]'")


def check_figure_path(path: AnyPath) -> None:
    """Raise InputError unless a figure can be written to `path`; make its folder."""
    path = local_path(path)
    new_figure(1, 1)
    if path.suffix not in _SUFFIXES:
        raise InputError(f"{path}: a figure ends in one of {', '.join(_SUFFIXES)}")
    path.parent.mkdir(parents=True, exist_ok=True)


def save(figure, path: pathlib.Path, *, dpi: int = 110) -> None:
    """Write a figure in the format of its suffix: .png, .svg or .pdf."""
    if path.suffix == ".png":
        # A palette needs a third of the size, and the eye sees no difference.
        from PIL import Image

        canvas = io.BytesIO()
        figure.savefig(
            canvas, format="png", dpi=dpi, facecolor="white", bbox_inches="tight"
        )
        Image.open(canvas).convert("RGB").quantize(256).save(path, optimize=True)
    else:
        figure.savefig(path, facecolor="white", bbox_inches="tight")


def as_svg(figure, name: str, description: str) -> str:
    """Return a figure as an <svg> element for a page.

    It is transparent and takes its colours and its font from the page. `name` keeps its
    ids apart from those of other figures; screen readers read `description`.
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
    root = ElementTree.fromstring(canvas.getvalue())
    _drop(root, "metadata")
    # A style would hold for the whole page, which has one for all plots.
    _drop(root, "style")
    linked = {
        link
        for element in root.iter()
        for value in element.attrib.values()
        for link in _LINK.findall(value)
    }
    for element in root.iter():
        # HTML knows the namespaces, and the whitespace between elements has no meaning.
        element.tag = element.tag.rpartition("}")[2]
        element.text = (element.text or "").strip()
        element.tail = ""
        attributes = {
            attribute.rpartition("}")[2]: _for_page(attribute, value, name)
            for attribute, value in element.attrib.items()
            if attribute != "id" or value in linked
        }
        element.attrib.clear()
        element.attrib.update(attributes)
    # The page decides the size; viewBox keeps the proportions.
    del root.attrib["width"], root.attrib["height"]
    root.attrib |= {"role": "img", "aria-label": description}
    return ElementTree.tostring(root, encoding="unicode")


# An id in href="#id" or url(#id).
_LINK = re.compile(r"#([\w-]+)(?=\)|$)")
_LONG_FRACTION = re.compile(r"(\.\d\d)\d+")


def _drop(root, tag):
    """Remove all elements with this tag."""
    for parent in list(root.iter()):
        for child in parent.findall(f"{{{_SVG}}}{tag}"):
            parent.remove(child)


def _for_page(attribute, value, name):
    """The value of an attribute with the page's ids, colours, font and precision."""
    if attribute == "id":
        return f"{name}-{value}"
    if attribute == "style":
        parts = [part.strip() for part in value.split(";")]
        value = "; ".join(
            part for part in parts if part and not part.startswith("font-family")
        )
    if attribute in ("d", "x", "y", "transform"):
        # A hundredth of a point is enough, and half the size.
        value = _LONG_FRACTION.sub(r"\1", " ".join(value.split()))
    colours = {INK: "--ink", FAINT: "--faint"} | {
        colour: f"--series-{number}" for number, colour in enumerate(SERIES)
    }
    for colour, variable in colours.items():
        value = value.replace(colour, f"var({variable})")
    return _LINK.sub(rf"#{name}-\1", value)


def colour_and_marker(place: int) -> dict:
    """Return the colour and the marker of the line with this number."""
    return {
        "color": SERIES[place % len(SERIES)],
        "marker": MARKERS[place % len(MARKERS)],
    }
