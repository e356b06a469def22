#!/usr/bin/env bash
# Trains on this machine. Installs ferjax on first use, then runs `python -m ferjax.main FLAGS`.
#   launch/local.sh                                  # LA-Net on the embedded data set
#   launch/local.sh --config=configs/softmax.py --config.epochs=20
# PYTHON and FERJAX_EXTRA: see launch/setup.sh.
set -euo pipefail
here=$PWD
. "$(dirname "$0")/setup.sh"
install_ferjax
root=$PWD
if [ $# -eq 0 ]; then
  set -- --config=configs/lanet.py
else
  cd "$here"
fi
exec "$root/.venv/bin/python" -m ferjax.main "$@"
