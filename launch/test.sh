#!/usr/bin/env bash
# Runs everything that continuous integration runs: format, lint, types, layers, tests, doctests.
# Usage: bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
ensure_venv test,dev
export PATH="$PWD/.venv/bin:$PATH"

ruff check .
ruff format --check .
mypy compressjax
lint-imports
# Two workers of one thread each: tests/conftest.py keeps XLA from starting a pool per worker.
pytest -n 2 --dist worksteal --durations=15 "$@"
