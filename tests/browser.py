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
const parts = (colour) => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
const over = (front, back, share) => front.slice(0, 3).map((part, i) => share * part + (1 - share) * back[i]);
function behind(place) {
  if (!place) return [255, 255, 255];
  const own = parts(getComputedStyle(place).backgroundColor);
  return over(own, behind(place.parentElement), own[3] * (+getComputedStyle(place).opacity));
}
function luminance(colour) {
  const [r, g, b] = colour.map((part) => part <= 10 ? part / 3294.6 : ((part / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(place) {
  let share = 1;
  for (let each = place; each; each = each.parentElement) share *= +getComputedStyle(each).opacity;
  const back = behind(place), ink = parts(getComputedStyle(place).color);
  const [a, b] = [luminance(over(ink, back, share * ink[3])), luminance(back)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
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
  const faint = [];
  const readable = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (readable.nextNode()) {
    const text = readable.currentNode.textContent.trim();
    const place = readable.currentNode.parentElement;
    if (!text || place.closest("[data-drawn],script,style") || !place.getClientRects().length) continue;
    const ratio = contrast(place);
    if (ratio < 4.5) faint.push([text, ratio]);
  }
  const report = document.createElement("pre");
  report.id = "report";
  report.textContent = JSON.stringify({ errors, views, canvases, images, faint, title: document.title,
    wide: document.documentElement.scrollWidth });
  document.body.append(report);
}, 4000);
</script>"""
"""Stands first in the head, so that it hears of every error."""


def report(page, folder, *, dark=False, width=1100):
    """What a browser made of a page: errors, views, distinct colours of canvases, widths of images, texts whose
    contrast is below 4.5 (but for what circuitsvis drew), title, and how wide the page became; and the whole document
    as text. Skips loudly without a browser."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        text = f"no browser ({', '.join(NAMES)}): pages are not looked at as a browser shows them"
        warnings.warn(pytest.PytestWarning(text), stacklevel=2)
        pytest.skip(text)
    path = folder / "page.html"
    path.write_text(page.replace("<head>", f"<head>{COLLECTOR}", 1), encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
    flags += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    flags += ["--virtual-time-budget=9000", f"--window-size={width},4000", "--dump-dom", path.as_uri()]
    ran = subprocess.run([program, *flags], capture_output=True, text=True, encoding="utf-8", timeout=120)
    found = re.search(r'<pre id="report">(.*?)</pre>', ran.stdout, re.DOTALL)
    assert found, ran.stderr[-2000:]
    return json.loads(html.unescape(found[1])), ran.stdout
