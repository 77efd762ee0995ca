"""The examples and the commands of docs/postgresql.md run as they stand."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interpreters import TIMEOUT_SECONDS, environment, strictly
from tests.postgres_server import DATABASE, OWNER, PostgresServer

PAGE = (Path(__file__).parents[1] / "docs" / "postgresql.md").read_text("utf-8")
EXAMPLES: dict[str, tuple[str, str]] = {
    name: (code, prints)
    for name, code, prints in re.findall(
        r"<!-- runs: (\S+)\.py -->\n```python\n(.*?)```\n\n```text\n(.*?)```\n", PAGE, re.DOTALL
    )
}
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"<!-- runs: shell -->\n```console\n(.*?)```\n", PAGE, re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture
def as_psql_would(postgres_server: PostgresServer) -> dict[str, str]:
    return environment() | {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(postgres_server.port),
        "PGUSER": OWNER,
        "PGDATABASE": DATABASE,
    }


def run(command: list[str], variables: dict[str, str], directory: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        command,
        env=variables,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return done.returncode, done.stderr, done.stdout


def migrate(variables: dict[str, str], directory: Path) -> None:
    (command,) = COMMANDS
    program, *words = shlex.split(command)
    assert program == "python"
    status, stderr, _ = run([sys.executable, *words], variables, directory)
    assert (status, stderr) == (0, ""), stderr


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_the_page_says(
    as_psql_would: dict[str, str], tmp_path: Path, name: str
) -> None:
    code, prints = EXAMPLES[name]
    if name == "transactions":
        migrate(as_psql_would, tmp_path)
    script = tmp_path / "example.py"
    script.write_text(code, "utf-8")
    ran = run(strictly(script), as_psql_would, tmp_path)
    assert ran == (0, "", prints)


def test_every_whole_program_is_run() -> None:
    assert sorted(EXAMPLES) == ["topics", "transactions"]
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert sum("asyncio.run(" in block for block in programs) == len(EXAMPLES)


def test_the_options_that_the_page_names_are_there(
    as_psql_would: dict[str, str], tmp_path: Path
) -> None:
    migrate(as_psql_would, tmp_path)
    migrate(as_psql_would, tmp_path)  # "and may be run again"
    command = [sys.executable, "-m", "fanwire", "migrate", "--print", "postgresql://"]
    status, stderr, printed = run(command, as_psql_would, tmp_path)
    assert (status, stderr) == (0, "")
    for function in re.findall(r"^\| `(fanwire_\w+)\(", PAGE, re.MULTILINE):
        assert f"FUNCTION {function}" in printed
