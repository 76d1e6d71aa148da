"""A phone over adb: what `android.py` asks of it, with errors that say what to do."""

import pathlib
import shlex
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

FOLDER = "/data/local/tmp/compressjax"


class Phone(NamedTuple):
    """A connected phone.

    Attributes:
        adb: the command.
        serial: which phone.
        timeout: seconds that one command may take.
    """

    adb: str
    serial: str
    timeout: float = 600.0

    def push(self, file: pathlib.Path, name: str) -> str:
        """Copies a file to the phone, and gives its path there."""
        _call([self.adb, "-s", self.serial, "push", str(file), f"{FOLDER}/{name}"], self.timeout)
        return f"{FOLDER}/{name}"

    def pull(self, name: str, file: pathlib.Path) -> bytes:
        """Copies a file from the phone, and gives its content."""
        _call([self.adb, "-s", self.serial, "pull", f"{FOLDER}/{name}", str(file)], self.timeout)
        return file.read_bytes()

    def clear(self) -> None:
        """Removes what was pushed and written."""
        self.shell("rm", "-rf", FOLDER)

    def shell(self, *words: str) -> str:
        """Runs a command on the phone, and gives all that it prints."""
        # Without the echo, adb of older phones gives 0 whatever happened.
        line = f"{shlex.join(words)} 2>&1; echo status=$?"
        printed = _call([self.adb, "-s", self.serial, "shell", line], self.timeout)
        text, _, status = printed.rpartition("status=")
        if status.strip() != "0":
            last = " ".join((text or printed).split()[-60:])
            raise ValueError(
                f"on the phone {self.serial}, {words[0]} ended with {status.strip()}: {last}"
            )
        return text


def connect(adb: str, serial: str | None, timeout: float = 600.0) -> Phone:
    """Finds the phone.

    Args:
        adb: the command.
        serial: which phone; the only one by default.
        timeout: seconds that one command may take.

    Returns:
        The phone, with an empty folder on it.

    Raises:
        OSError: there is no adb.
        ValueError: no phone is ready, or there are several.
    """
    # An adb that has to start its server first may say so above the list.
    _, _, listed = _call([adb, "devices"], timeout).partition("List of devices attached")
    lines = [line.split(maxsplit=1) for line in listed.splitlines()]
    found = {line[0]: line[1].strip() for line in lines if len(line) == 2}
    ready = [name for name, state in found.items() if state == "device"]
    if serial is not None and serial not in ready:
        raise ValueError(f"the phone {serial} is {found.get(serial, 'not connected')}: {_HELP}")
    if not ready:
        states = ", ".join(f"{name} is {state}" for name, state in found.items())
        raise ValueError(f"no phone is ready ({states or 'none is connected'}): {_HELP}")
    if serial is None and len(ready) > 1:
        raise ValueError(f"several phones are connected: choose one with --serial ({ready})")
    phone = Phone(adb, serial or ready[0], timeout)
    phone.clear()  # a run that was cut off may have left its files
    phone.shell("mkdir", "-p", FOLDER)
    return phone


_HELP = (
    "plug it in, allow USB debugging in its developer options, and accept this computer on its "
    "screen; `adb devices` must show it as `device`"
)


def _call(command: Sequence[str], timeout: float) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{command[0]} is not there: install Android's platform tools, or give --adb"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{shlex.join(command)} took more than {timeout:g} seconds") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise ValueError(f"{shlex.join(command)} failed with {done.returncode}: {said}")
    return done.stdout
