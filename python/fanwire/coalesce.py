"""Rules of one's own for what is progress."""

from dataclasses import dataclass

__all__ = ["CoalesceRule"]


@dataclass(frozen=True)
class CoalesceRule:
    """Makes messages progress: a newer one may take the place of an older one that still waits.

    Args:
        pointer: JSON pointer (RFC 6901) to the member that tells, such as ``/action``.
        values: its values for progress; numbers and booleans in their JSON form.
        ids: JSON pointers to the id of what the progress is of; the first that is there counts.
            On the channel of an upload that upload counts.

    Raises:
        fanwire.ConfigError: from the ``ConnectionManager`` that is given a rule whose pointer is
            none.
    """

    pointer: str
    values: tuple[str, ...]
    ids: tuple[str, ...] = ("/payload/upload_id", "/payload/batch_id", "/upload_id", "/batch_id")
