# Sourced by the scripts that make a Python to run: `make_venv`.
# shellcheck shell=bash

# The newest of the Pythons that the pinned packages are built for.
find_python() {
    local python
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys, venv, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    fail "this needs Python 3.11 or newer with its modules venv and pip" \
        "install it, for example \`apt install python3 python3-pip\`"
}

# make_venv VENV PINS MODULE: a Python at VENV with the files that PINS lists by their sha256, of
# which MODULE is one. What is there already is left alone.
make_venv() {
    local venv=$1 pins=$2 module=$3 pin python log
    mkdir -p "$(dirname "$venv")"
    # One at a time; without flock, two runs at once may both build, and the second one wins.
    exec 9>"$(dirname "$venv")/.$(basename "$venv").lock"
    if command -v flock >/dev/null 2>&1; then flock 9; fi

    pin=$(cksum <"$pins")
    if [[ -f $venv/.pin && $(<"$venv/.pin") == "$pin" ]] &&
        "$venv/bin/python" -c "import $module" 2>/dev/null; then
        return
    fi

    python=$(find_python)
    say "$(basename "$venv"): installing $module for $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv --without-pip "$venv" || fail "\`$python -m venv $venv\` failed (see above)"
    log=$(mktemp)
    "$python" -m pip --python "$venv/bin/python" install --quiet --no-input \
        --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes -r "$pins" \
        >"$log" 2>&1 || {
        tail -n 5 "$log" >&2
        rm -f "$log"
        fail "the packages of $pins cannot be installed" \
            "check the network (and proxy settings), then run this again"
    }
    rm -f "$log"
    printf '%s\n' "$pin" >"$venv/.pin"
}
