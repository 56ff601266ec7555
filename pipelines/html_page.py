"""Pages of results: one HTML file with its plots inside, nothing loaded from elsewhere."""

import html
import io
from collections.abc import Callable
from pathlib import Path
from string import Template

import matplotlib as mpl
from matplotlib.figure import Figure

from recsys.steps import write_text

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1c2530; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-size: .9rem; } .wide { overflow-x: auto; }
th, td { border-bottom: 1px solid #d8dee6; padding: .3rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td.text { text-align: left; white-space: normal; }
svg { height: auto; max-width: 100%; }
.better { color: #12633a; } .worse, .broken { color: #9b1c1c; } .note { color: #5a6675; font-size: .9rem; }
</style></head><body><h1>$title</h1><p class="note">$note</p>$body</body></html>
""")


def write_page(path: Path, title: str, note: str, body: str) -> None:
    """Writes the page whole or not at all; `title` and `note` are text, `body` is HTML."""
    write_text(path, PAGE.substitute(title=html.escape(title), note=html.escape(note), body=body))


def drawn(draw: Callable[[Figure], object], height: float) -> str:
    """A plot as inline SVG."""
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "recsys"}):
        figure = Figure(figsize=(9, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
