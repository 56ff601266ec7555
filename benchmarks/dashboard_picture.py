"""The dashboard in Chromium, for the docs: `python -m benchmarks.dashboard_picture BUNDLE`; writes docs/dashboard*.png.

A service of its own with a minute of made traffic; wide, and as on a phone.
"""

import argparse
import json
import shutil
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

from benchmarks.load_client import Due, poisson, post, send_all
from benchmarks.running import running
from recsys.bundle import open_bundle
from recsys.errors import RecsysError

DOCS = Path(__file__).resolve().parent.parent / "docs"
SIZES = {"dashboard.png": (1000, 800), "dashboard-phone.png": (360, 740)}


def main() -> None:
    """Serves, asks, and takes pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=20)
    arguments = parser.parse_args()
    items = open_bundle(arguments.bundle).catalog.item_ids.to_list()
    with (
        TemporaryDirectory() as folder,
        running(arguments.bundle, Path(folder) / "log", state=Path(folder) / "state.sqlite") as service,
    ):
        send_all(service.port, traffic(items, arguments.rate, arguments.seconds))
        photograph(f"{service.address}/dashboard?paused=true")


def traffic(items: list[str], rate: float, seconds: float) -> list[Due]:
    """Users who act and ask, more in the middle; a few requests that are refused."""
    random, due = Random(0), []
    for at in poisson(rate, seconds, random):
        if random.random() > 0.4 + 0.6 * min(1, 4 * at / seconds * (1 - at / seconds)):
            continue
        user = f"user-{int(random.paretovariate(0.6)) % 200}"
        if random.random() < 0.3:
            body, path = {"user_id": user, "item_id": random.choice(items)}, "/v1/events"
        else:
            body, path = {"user_id": user, "k": 0 if random.random() < 0.01 else 10}, "/v1/recommend"
        due.append(Due(at, path, post(path, json.dumps(body).encode())))
    return due


def photograph(address: str) -> None:
    """Both pictures, the whole page each."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise RecsysError("no Chromium is installed; `apt-get install chromium` brings it.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, (width, height) in SIZES.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(address)
            page.screenshot(path=DOCS / name, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
