"""A page as a browser has it once its scripts have run: `chromium --dump-dom`, and a script that tells what it saw."""

import html
import json
import re
import shutil
import subprocess
import warnings

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

COLLECTOR = """<script>
const errors = [];
window.addEventListener("error", (event) => errors.push(String(event.message)));
window.addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
window.addEventListener("securitypolicyviolation", (event) => errors.push("refused " + event.blockedURI));
const said = console.error;
console.error = (...parts) => { errors.push(parts.join(" ")); said(...parts); };
setTimeout(() => {
  const views = [...document.querySelectorAll("[data-tl-edit]")].map((view) => ({
    drawn: view.dataset.drawn || "", height: view.getBoundingClientRect().height, text: view.textContent,
    tokens: view.querySelectorAll("img,b,bos,s").length,
  }));
  const canvases = [...document.querySelectorAll("canvas")].map((canvas) => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const colours = new Set();
    for (let i = 0; i < pixels.length; i += 4) colours.add(pixels.slice(i, i + 4).join());
    return colours.size;
  });
  const images = [...document.images].map((image) => image.naturalWidth);
  const report = document.createElement("pre");
  report.id = "report";
  report.textContent = JSON.stringify({ errors, views, canvases, images, title: document.title });
  document.body.append(report);
}, 4000);
</script>"""
"""Stands first in the head, so that it hears of every error."""


def report(page, folder):
    """What a browser made of a page: errors, views, distinct colours of canvases, widths of images, title; and the
    whole document as text. Skips loudly without a browser."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        text = f"no browser ({', '.join(NAMES)}): pages are not looked at as a browser shows them"
        warnings.warn(pytest.PytestWarning(text), stacklevel=2)
        pytest.skip(text)
    path = folder / "page.html"
    path.write_text(page.replace("<head>", f"<head>{COLLECTOR}", 1), encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
    flags += ["--virtual-time-budget=9000", "--window-size=1100,4000", "--dump-dom", path.as_uri()]
    ran = subprocess.run([program, *flags], capture_output=True, text=True, encoding="utf-8", timeout=120)
    found = re.search(r'<pre id="report">(.*?)</pre>', ran.stdout, re.DOTALL)
    assert found, ran.stderr[-2000:]
    return json.loads(html.unescape(found[1])), ran.stdout
