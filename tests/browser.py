"""Chromium without a window: what a page requests, says and measures."""

import html
import json
import re
import shutil
import subprocess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--enable-logging=stderr",
    # No host name is resolved, so that no host is reached.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
ASK = """
<script>
frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll("body *")].filter(e =>
    !e.closest(".scroll") && !e.closest("svg") &&
    e.getBoundingClientRect().right > root.clientWidth + 1);
  const style = frame.contentWindow.getComputedStyle(page.body);
  document.querySelector("#said").textContent = JSON.stringify({
    width: root.clientWidth,
    scrolled: root.scrollWidth,
    wide: wide.map(e => e.outerHTML.slice(0, 80)),
    paper: style.backgroundColor,
    ink: style.color,
    broken: [...page.images].filter(i => !i.naturalWidth).length,
    images: page.images.length,
    plots: [...page.querySelectorAll("svg")].map(
      s => s.getBoundingClientRect().width),
    smallest: Math.min(...[...page.querySelectorAll("svg text")].map(
      t => t.getBoundingClientRect().height)),
  });
};
frame.srcdoc = document.querySelector("#page").textContent;
</script>
"""


def browse(url, profile, *flags):
    """Return the standard output and the log of Chromium."""
    found = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, str(url)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return found.stdout, found.stderr


def look(page, folder, width, *flags, script=ASK):
    """Return measurements of the page in a window of this width in pixels.

    The page is in a frame, because Chromium's windows have a least width.
    """
    outer = folder / "outer.html"
    outer.write_text(
        f'<!DOCTYPE html><iframe style="width:{width}px; height: 800px; border: 0">'
        f'</iframe><pre id="said"></pre><template></template>'
        f'<textarea id="page">{html.escape(page)}</textarea>{script}'
    )
    arguments = ("--dump-dom", "--virtual-time-budget=10000", "--window-size=1400,900")
    shown, _ = browse(outer.as_uri(), folder / "profile", *arguments, *flags)
    return json.loads(html.unescape(re.search(r'id="said">(.*?)</pre>', shown)[1]))


def requests(folder, url):
    """Return the addresses that the page requested, and its console messages.

    Chromium's own requests are left out: no page is their origin.
    """
    log = folder / "net.json"
    _, said = browse(
        url, folder / "profile", f"--log-net-log={log}", "--dump-dom", "--timeout=3000"
    )
    asked = {
        given["url"]
        for event in json.loads(log.read_text())["events"]
        if (given := event.get("params", {})).get("initiator", "not an origin")
        != "not an origin"
    }
    return asked, [line for line in said.splitlines() if "CONSOLE" in line]
