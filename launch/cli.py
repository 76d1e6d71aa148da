"""What the commands that read files from the disk share: flags, errors and exit codes.

Each command keeps its flags to itself, in a `FlagValues` of its own, so that commands may have
flags of one name and be run inside another program. A file that is missing or damaged, or a flag
that makes no sense, ends in one line on the error output and exit code 2.
"""

import sys
from collections.abc import Callable, Sequence

from absl import flags

GOOD, PASSED, BAD = 0, 1, 2  # exit codes: all is well, a threshold is passed, the input is wrong


def run(work: Callable[[], int], values: flags.FlagValues, about: str, argv: Sequence[str]) -> int:
    """Parses the flags of a command and does its work.

    Args:
        work: reads the flags, and gives the exit code.
        values: the flags.
        about: what `--help` prints before them.
        argv: the command line, with the program's name first.

    Returns:
        The exit code.
    """
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(f"{about.strip()}\n{values.get_help()}")
        return GOOD
    for name in values:
        values[name].unparse()
    try:
        rest = values(list(argv))[1:]
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!r}; see --help")
        return work()
    except (flags.Error, ImportError, OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD
