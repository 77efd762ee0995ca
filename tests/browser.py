"""A real browser, and the demo's page in it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.demo import Instance

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DEADLINE_MILLISECONDS = 20_000

NewPerson = Callable[..., BrowserContext]

needs_chromium = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"needs {CHROMIUM} (Debian's package chromium)"
)

expect.set_options(timeout=DEADLINE_MILLISECONDS)

# Writes down each state of the first card that the page shows to its reader.
RECORD = """() => {
  window.shown = [];
  new MutationObserver(() => {
    const card = document.querySelector(".card");
    if (!card) return;
    const percent = card.querySelector("[role=progressbar]").getAttribute("aria-valuenow");
    const step = card.querySelector("[aria-current=step]");
    window.shown.push([Number(percent), step ? step.textContent : card.classList[1]]);
  }).observe(
    document.getElementById("cards"), { subtree: true, childList: true, attributes: true }
  );
}"""


def open_demo(person: BrowserContext, instance: Instance, query: str = "") -> Page:
    page = person.new_page()
    page.goto(f"{instance.url}/{query}")
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator("#instance")).to_have_text(f":{instance.port}")
    return page
