#!/bin/sh
# Prints the path of a Python that can make virtual environments here.
#
#     sh requirements/find-python.sh 3.11 3.12      first version that is found wins
#     PYTHON=/my/python sh requirements/find-python.sh 3.11      that one, or an error
#
# A name on PATH is not enough: it may be a pyenv shim that refuses to run, or a system
# Python without ensurepip (Debian keeps that in a package of its own). So try each.

runs() {  # runs PYTHON VERSION: is it that version, and can it make environments?
    "$1" -c "import ensurepip, sys, venv
sys.exit('%d.%d' % sys.version_info[:2] != '$2')" >/dev/null 2>&1
}

path_of() {
    "$1" -c "import sys; print(sys.executable)"
}

for version in "$@"; do
    if [ -n "$PYTHON" ]; then
        runs "$PYTHON" "$version" && path_of "$PYTHON" && exit
        continue
    fi
    for candidate in "python$version" python3 python \
        "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
        runs "$candidate" "$version" && path_of "$candidate" && exit
    done
done

cat >&2 <<END
No usable Python found. Looked for: ${PYTHON:-python} of version $(echo "$@" | sed 's/ / or /g').
Install one with its venv module (on Debian and Ubuntu: apt-get install python3-venv, or
python$1-venv; with pyenv: pyenv install $1), or name one: make ... ${FLAG:-PYTHON}=/its/path
END
exit 1
