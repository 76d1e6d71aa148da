"""What importing does, and what it leaves to the program that imports."""

import os
import subprocess
import sys


def test_importing_chooses_no_device() -> None:
    # Asked for a platform that does not exist, JAX fails as soon as it starts.
    modules = "compressjax, compressjax.report, experiments.run"
    done = subprocess.run(
        [sys.executable, "-c", f"import {modules}"],
        env={**os.environ, "JAX_PLATFORMS": "nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
