# shellcheck shell=bash
# Sourced by the other launchers: creates .venv if it is missing, and installs ferjax into it.
# PYTHON: the interpreter for .venv (default: the first of python3, python3.13 ... python3.11 that is
# 3.11 or newer).
# FERJAX_EXTRA: extras to install, such as cuda13 or tpu; "none" for none (default: cuda12 if
# nvidia-smi works, else onednn on Linux with an x86-64 processor).

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "ferjax needs Python 3.11 or newer: give one with PYTHON=/path/to/python3" >&2
  return 1
}

install_ferjax() { # install_ferjax [EXTRA]: extras in addition to the accelerator's
  local extra stamp
  if [ -z "${FERJAX_EXTRA:-}" ]; then
    if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
      extra=cuda12
    elif [ "$(uname -sm)" = 'Linux x86_64' ]; then
      extra=onednn
    else
      extra=none
    fi
  else
    extra=$FERJAX_EXTRA
  fi
  if [ ! -x .venv/bin/python ]; then
    local python
    python=$(find_python)
    echo "creating .venv with $python" >&2
    "$python" -m venv .venv
  fi
  extra=$(printf '%s\n' "${extra/none/}" "${1:-}" | sed '/^$/d' | paste -sd, -)
  stamp=".venv/ferjax-installed[$extra]"
  if [ "$stamp" -nt pyproject.toml ]; then return; fi
  echo "installing ferjax${extra:+[$extra]} into .venv" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}"
  touch "$stamp"
}
