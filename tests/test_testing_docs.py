"""The examples of docs/testing.md run as they stand, in a repository of their own."""

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

PAGE = (Path(__file__).parents[1] / "docs" / "testing.md").read_text("utf-8")
FILES = dict(re.findall(r"<!-- runs: (\S+\.py) -->\n```python\n(.*?)```\n", PAGE, re.DOTALL))


def test_the_examples_run(pytester: pytest.Pytester) -> None:
    for name, code in FILES.items():
        (pytester.path / name).write_text(code)
    plain = ["-p", "no:asyncio", "-p", "no:anyio", "-W", "error"]
    result = pytester.runpytest_subprocess(*plain, timeout=40)
    result.assert_outcomes(passed=sum(code.count("\ndef test_") for code in FILES.values()))


def test_every_example_is_run() -> None:
    assert PAGE.count("```python\n") == len(FILES) > 0


def test_the_page_names_every_fixture(pytester: pytest.Pytester) -> None:
    listed = pytester.runpytest_subprocess("--fixtures", "-q", timeout=40).stdout.str()
    fixtures = re.findall(r"^(fanwire_\w+)", listed, re.MULTILINE)
    assert sorted(fixtures) == sorted(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
