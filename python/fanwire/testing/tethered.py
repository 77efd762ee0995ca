"""A process that ends when this one does, however that comes: SIGKILL leaves nobody to tidy up."""

import subprocess
from collections.abc import Sequence
from typing import IO

__all__ = ["start"]

# The kernel closes the pipe of a process that has ended, and whoever reads from it is told. So a
# shell waits there and the program takes the place of its parent: `$$` is the program's process id.
# Both are in one group, and as long as one of a group lives, its number is not given to another
# process: though the program may be long gone, nobody else is killed.
_RUN_UNTIL_INPUT_ENDS = """
exec 3<&0
{ read -r _ <&3; kill "$$" 2>/dev/null; } &
exec "$@" </dev/null 3<&-
"""


def start(command: Sequence[str], output: IO[bytes] | int) -> "subprocess.Popen[bytes]":
    """Start a program that is sent SIGTERM when ``stdin`` of the result is closed.

    That happens at the latest with the end of this process. (A child that was forked from it and
    lives on keeps the program alive.) The program itself has nothing to read. It is in a session of
    its own, away from the terminal's Ctrl-C.

    Args:
        command: the program, by a path or a name on the PATH, and its arguments.
        output: where what it prints goes, as ``subprocess`` has it.
    """
    return subprocess.Popen(  # noqa: S603 - the program that was asked for
        ["/bin/sh", "-c", _RUN_UNTIL_INPUT_ENDS, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
