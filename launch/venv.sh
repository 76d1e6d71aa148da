# Sourced by the launch scripts: `ensure_venv EXTRAS` makes .venv in the project's root if it is
# missing and installs the project with these extras at the versions of constraints.txt. It does
# nothing where that was done before and neither file has changed since.
#
# PYTHON names the interpreter that makes the environment (default: python3).

ensure_venv() {
  local extras=$1 python=${PYTHON:-python3} digest stamp
  if [ ! -x .venv/bin/python ]; then
    if ! command -v "$python" >/dev/null 2>&1; then
      echo "error: no interpreter '$python'; install Python 3.11 or newer, or set PYTHON" >&2
      return 1
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      echo "error: '$python' is $("$python" --version 2>&1), but Python 3.11 or newer is needed;" \
        "set PYTHON to a newer one, e.g. PYTHON=python3.11" >&2
      return 1
    fi
    echo "Making .venv with $("$python" --version 2>&1)"
    if ! "$python" -m venv .venv; then
      rm -rf .venv
      echo "error: '$python' cannot make virtual environments; install its venv module" >&2
      return 1
    fi
  fi
  digest=$(cat setup.cfg pyproject.toml constraints.txt |
    .venv/bin/python -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
  stamp=".venv/installed-${extras//,/-}"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$digest" ]; then
    echo "Installing compressjax[$extras] into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      -c constraints.txt -e ".[$extras]" || return 1
    printf '%s\n' "$digest" >"$stamp"
  fi
}
