"""What the app and its workers share: the broker, the history, and how each upload ended."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from fanwire import History

URL = os.environ.get("FANWIRE_URL", "redis://127.0.0.1:6379")
HISTORY = History(size=256, ttl=3600)  # the same on everybody who publishes or listens


DATABASE = Path(__file__).with_name("uploads.db")
TABLE = "CREATE TABLE IF NOT EXISTS ended (id TEXT PRIMARY KEY, result TEXT, error TEXT)"


def note_end(upload_id: str, *, result: str | None = None, error: str | None = None) -> None:
    """In a database, because a broker may forget."""
    with closing(sqlite3.connect(DATABASE)) as database, database:
        database.execute(TABLE)
        database.execute(
            "INSERT OR REPLACE INTO ended VALUES (?, ?, ?)", (upload_id, result, error)
        )


def end_of(upload_id: str) -> dict[str, str | None]:
    """What came of it, or how it failed; neither while it has not ended."""
    with closing(sqlite3.connect(DATABASE)) as database:
        database.execute(TABLE)
        query = "SELECT result, error FROM ended WHERE id = ?"
        found = database.execute(query, (upload_id,)).fetchone()
    result, error = found or (None, None)
    return {"result": result, "error": error}
