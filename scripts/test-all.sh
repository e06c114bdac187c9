#!/usr/bin/env bash
# The suite on each supported Python that is found, on the PATH or among pyenv's versions; says which it did not.
# Each has its own packages below .venv/.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

find_python() { # the command for Python $1, or nothing
  local found
  for found in "python$1" $(printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python | sort -rV); do
    if [[ $("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) == "$1" ]]; then
      echo "$found"
      return
    fi
  done
}

told=() failed=0 ran=0
for version in 3.11 3.12 3.13 3.14; do
  python=$(find_python "$version")
  if [[ -z $python ]]; then
    told+=("Python $version: not run, it was not found")
    continue
  fi
  echo "== Python $version ($python)"
  ran=1
  if "${MAKE:-make}" --no-print-directory test PYTHON="$python" VENV=".venv/$version"; then
    told+=("Python $version: passed")
  else
    told+=("Python $version: FAILED")
    failed=1
  fi
done
printf '%s\n' "${told[@]}"
((ran && !failed))
