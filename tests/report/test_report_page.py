"""The report's page in a browser sends no requests, logs no errors, and is readable."""

import re

import pytest
from browser import CHROMIUM, look, requests
from fake_models import reported, row
from tiny_run import ROOT

from freeadv_jax.report.page import render

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"
)
EXAMPLE = ROOT / "docs" / "report.html"
DARK = "--blink-settings=preferredColorScheme=0"
LIGHT = "--blink-settings=preferredColorScheme=1"


@pytest.fixture(scope="module")
def page():
    return EXAMPLE.read_text()


def test_the_page_requests_nothing_and_logs_nothing(tmp_path):
    asked, console = requests(tmp_path, EXAMPLE.as_uri())
    assert console == []
    assert asked == set()


def test_a_request_and_an_error_of_another_page_are_noticed(tmp_path):
    other = tmp_path / "other.html"
    other.write_text(
        '<!DOCTYPE html><img src="http://nobody.test/x.png">'
        "<script>console.error('heard')</script>"
    )
    asked, console = requests(tmp_path, other.as_uri())
    assert asked == {"http://nobody.test/x.png"}
    assert any("heard" in line for line in console)


@pytest.mark.parametrize("width", [375, 768, 1280])
def test_nothing_is_wider_than_the_window(page, tmp_path, width):
    seen = look(page, tmp_path, width)
    assert seen["width"] == width
    assert seen["scrolled"] == width
    assert seen["wide"] == []
    assert seen["broken"] == 0
    assert seen["images"] >= 18
    assert min(seen["plots"]) > 200
    assert seen["smallest"] >= 8


TABLE = """
<script>
frame = document.querySelector("iframe");
frame.onload = () => {
  const box = frame.contentDocument.querySelector(".results .scroll");
  const cells = box.querySelectorAll("tbody tr:first-child > *");
  const edges = i => [cells[i].getBoundingClientRect().left,
                      cells[i].getBoundingClientRect().right];
  const names = [...box.querySelectorAll("thead th")].map(e => e.textContent);
  const autoattack = edges(names.indexOf("autoattack"));
  box.scrollLeft = 10000;
  document.querySelector("#said").textContent = JSON.stringify({
    scrolled: box.scrollLeft,
    box: [box.getBoundingClientRect().left, box.getBoundingClientRect().right],
    page: frame.contentDocument.documentElement.scrollWidth,
    autoattack: autoattack,
    name_when_scrolled: edges(0),
    last_when_scrolled: edges(cells.length - 1),
  });
};
frame.srcdoc = document.querySelector("#page").textContent;
</script>
"""


@pytest.mark.parametrize("width", [390, 1280])
def test_the_widest_table_scrolls_with_name_and_autoattack_in_view(tmp_path, width):
    attacks = [f"pgd-20-x{restarts}" for restarts in range(2, 15)]
    names = ("natural", *attacks, "autoattack", "worst-case")
    page = render([reported({name: row(100) for name in names})], "html")
    seen = look(page, tmp_path, width, script=TABLE)
    left, right = seen["box"]
    assert seen["page"] == width
    assert seen["scrolled"] > 0
    assert left <= seen["autoattack"][0] < seen["autoattack"][1] <= right
    # Scrolled to its end, the table shows the model's name beside the last attack.
    assert seen["name_when_scrolled"][0] == left
    assert seen["name_when_scrolled"][1] <= seen["last_when_scrolled"][0]
    assert seen["last_when_scrolled"][1] <= right + 1


def test_a_page_wider_than_the_window_is_noticed(tmp_path):
    wide = '<!DOCTYPE html><html><body><div style="width: 600px">x</div></body></html>'
    seen = look(wide.replace("x<", "x<svg><text>t</text></svg><"), tmp_path, 375)
    assert seen["scrolled"] > 375
    assert seen["wide"]


def test_text_contrasts_with_the_paper_in_light_and_dark(page, tmp_path):
    light = look(page, tmp_path, 375, LIGHT)
    dark = look(page, tmp_path, 375, DARK)
    for seen, lighter, darker in ((light, "paper", "ink"), (dark, "ink", "paper")):
        assert luminance(seen[lighter]) > 0.7
        assert luminance(seen[darker]) < 0.1


@pytest.mark.parametrize("place", range(3))
def test_every_colour_of_text_and_plots_has_contrast(page, place):
    """WCAG 2 asks for 4.5 for text and 3 for lines; in light, in dark and in print."""
    colours = [
        dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{3,6})", block))
        for block in re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    ]
    assert len(colours) == 3
    chosen = colours[0] | colours[place]
    for name in ("--ink", "--soft", "--accent", "--bad", "--good"):
        assert contrast(chosen[name], chosen["--paper"]) >= 4.5, name
        assert contrast(chosen[name], chosen["--panel"]) >= 4.5, name
    for series in range(6):
        assert contrast(chosen[f"--series-{series}"], chosen["--paper"]) >= 3


def luminance(colour):
    """Return the relative luminance (WCAG 2) of '#fff', '#ffffff' or 'rgb(1, 2, 3)'."""
    if colour.startswith("#"):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * d for d in colour[1:])
        parts = [int(digits[place : place + 2], 16) for place in (0, 2, 4)]
    else:
        parts = map(int, re.findall(r"\d+", colour)[:3])
    linear = [
        part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4
        for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)
