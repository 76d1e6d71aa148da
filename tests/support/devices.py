"""Eight devices on one machine, in a process of their own: XLA counts them when it starts."""

import os
import pathlib
import subprocess
import sys


def run_on_eight_devices(program: str) -> str:
    """Runs Python on eight simulated devices, with the compiler flags of the tests.

    Args:
      program: the Python.

    Returns:
      What it printed.

    Raises:
      AssertionError: if it failed, with the end of what it said.
    """
    # First, for XLA stops reading at what it does not know.
    flags = "--xla_force_host_platform_device_count=8 " + os.environ["XLA_FLAGS"]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XLA_FLAGS": flags},
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
