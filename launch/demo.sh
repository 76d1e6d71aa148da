#!/usr/bin/env bash
# Compresses a model of the embedded handwritten digits, end to end, and prints the table.
# Usage: bash launch/demo.sh [--config.key=value ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
ensure_venv export,experiments

workdir=runs/digits
.venv/bin/python -m experiments.run --config=experiments/configs/digits.py --workdir="$workdir" "$@"
echo
echo "Everything the run made is in $PWD/$workdir:"
(cd "$workdir" && find . -maxdepth 1 -type f | sed 's|^\./|  |' | sort)
