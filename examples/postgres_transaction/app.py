"""Uploads that are finished in a table and told to the browsers in one transaction.

Whoever hears of an upload finds it in the table, and nobody hears of one that was rolled back.

    python app.py postgresql://app@127.0.0.1/app
"""

import os
import sys
from typing import Any

import psycopg
from psycopg.types.json import Json

Connection = psycopg.Connection[tuple[Any, ...]]


def finish(connection: Connection, upload_id: str, description: str) -> None:
    """Writes down what came of an upload, and tells who watches it. The caller commits."""
    connection.execute(
        "INSERT INTO descriptions (upload_id, description) VALUES (%s, %s)",
        (upload_id, description),
    )
    completed = {
        "action": "upload_completed",
        "upload_id": upload_id,
        "description": description,
    }
    # The last statement, because it holds the upload's row: until the commit nobody else can
    # publish for this upload. It gives the offset, which is not needed here.
    connection.execute(
        "SELECT fanwire_publish_upload(%s, %s, history_size => 256, ttl => '1 hour')",
        (upload_id, Json(completed)),
    )
    # To every page of every instance that has subscribed to this topic. It is not recorded.
    connection.execute("SELECT fanwire_publish('finished', %s)", (Json(upload_id),))


def main(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS descriptions (upload_id text PRIMARY KEY, description text)"
        )
        connection.commit()

        with connection.transaction():
            finish(connection, "u1", "a cat on a wall")
        print("u1: committed, and everybody was told")

        try:
            with connection.transaction():
                finish(connection, "u2", "a dog on a lawn")
                finish(connection, "u1", "a second cat")
        except psycopg.errors.UniqueViolation:
            print("u2: rolled back, and nobody was told")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("DATABASE_URL", ""))
