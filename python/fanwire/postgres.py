"""What fanwire keeps in a PostgreSQL database: the tables of a history, and its functions.

A publisher with ``history=`` makes them at first use, where its role may. Where it may not,
somebody who may runs ``python -m fanwire migrate``, or :func:`migrate`, or puts :func:`schema_sql`
into a migration of the application's own. It may run any number of times. Without a history, and
without ``fanwire_publish`` in the application's own transactions, nothing is needed.
"""

from dataclasses import dataclass

from fanwire import _core

__all__ = ["Migrated", "migrate", "schema_sql"]


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration has led to.

    Args:
        schema: the schema that fanwire's tables are in.
        before: the version that was there, or None.
        version: the version that is there.
    """

    schema: str
    before: int | None
    version: int


def schema_sql() -> str:
    """The SQL: one statement, which makes everything or nothing."""
    return _core.schema_sql()


def migrate(dsn: str, *, timeout_seconds: float = 30.0) -> Migrated:
    """Make the tables and functions in a database, or bring them up to date. It blocks its thread.

    Args:
        dsn: as for :class:`fanwire.PostgresPubSub`. The objects go into the first schema of the
            role's ``search_path``; where they are on it already they stay where they are.
        timeout_seconds: for all of it. Who else migrates or publishes at the moment is waited for.

    Raises:
        fanwire.ConfigError: the URL makes no sense.
        fanwire.BrokerError: the database refuses it, or cannot be reached; the text says why.
    """
    schema, before, version = _core.migrate(dsn, timeout_seconds=timeout_seconds)
    return Migrated(schema=schema, before=before, version=version)
