"""What the app and its workers share: the broker, the history, and how each upload ended."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from fanwire import History

URL = os.environ.get("FANWIRE_URL", "redis://127.0.0.1:6379")
HISTORY = History(size=256, ttl=3600)  # the same on everybody who publishes or listens


DATABASE = Path(__file__).with_name("uploads.db")
TABLE = "CREATE TABLE IF NOT EXISTS ended (id TEXT PRIMARY KEY, result TEXT)"


def note_end(upload_id: str, result: str) -> None:
    """In a database, because a broker may forget."""
    with closing(sqlite3.connect(DATABASE)) as database, database:
        database.execute(TABLE)
        database.execute("INSERT OR REPLACE INTO ended VALUES (?, ?)", (upload_id, result))


def end_of(upload_id: str) -> str | None:
    with closing(sqlite3.connect(DATABASE)) as database:
        database.execute(TABLE)
        query = "SELECT result FROM ended WHERE id = ?"
        found = database.execute(query, (upload_id,)).fetchone()
    return str(found[0]) if found else None
