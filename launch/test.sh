#!/usr/bin/env bash
# Runs the checks and the tests, in one process for each core, at most four. Installs ferjax and its
# test tools on first use. Arguments go to pytest.
#   launch/test.sh
#   launch/test.sh tests/launch -k killed
#   launch/test.sh -n 0 --pdb
# PYTHON and FERJAX_EXTRA: see launch/setup.sh.
set -euo pipefail
. "$(dirname "$0")/setup.sh"
install_ferjax test
.venv/bin/ruff check --quiet .
.venv/bin/ruff format --check --quiet .
.venv/bin/lint-imports --no-cache --no-logo >/dev/null || .venv/bin/lint-imports --no-cache --no-logo
exec .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
