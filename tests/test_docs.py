"""The examples of docs/recovery.md and docs/progress.md run as they stand; links lead somewhere."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.interpreters import TIMEOUT_SECONDS, environment, strictly

DOCS = Path(__file__).parents[1] / "docs"
REPOSITORY = (DOCS.parent / "src").exists()
PAGES = ["progress.md", "recovery.md"]


@pytest.mark.parametrize("name", PAGES)
def test_the_example_prints_what_the_page_says(name: str, tmp_path: Path) -> None:
    page = (DOCS / name).read_text("utf-8")
    assert page.count("```python\n") == 1
    [(code, prints)] = re.findall(
        r"<!-- runs: \S+\.py -->\n```python\n(.*?)```\n\n```text\n(.*?)```\n", page, re.DOTALL
    )
    script = tmp_path / "example.py"
    script.write_text(code, "utf-8")
    done = subprocess.run(
        strictly(script),
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", prints)


def test_links_lead_to_headings_that_there_are() -> None:
    for page in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        text = page.read_text("utf-8")
        for path, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#?([^)\s]*)\)", text):
            target = (page.parent / path).resolve() if path else page
            if not REPOSITORY and not target.exists():
                continue  # a copy of the tests has the documents alone
            assert target.exists(), (page.name, path)
            if anchor:
                assert anchor in anchors(target), (page.name, path, anchor)


def anchors(page: Path) -> set[str]:
    """As they are made of headings where Markdown is shown."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}
