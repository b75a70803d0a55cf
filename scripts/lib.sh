# What scripts/demo and scripts/test share: tools of the machine. Sourced, never run.
# shellcheck shell=bash

fail() {
    printf 'error: %s\n' "$1" >&2
    if (($# > 1)); then printf '\nhint: %s\n' "$2" >&2; fi
    exit 1
}

# need_root WHY
need_root() {
    [[ $(uname -s) == Linux ]] || fail "Cove runs on Linux; this is $(uname -s)"
    ((EUID == 0)) || fail "this must run as root: $1" "sudo -E $0"
}

need_cargo() {
    if ! command -v cargo >/dev/null && [[ -f "$HOME/.cargo/env" ]]; then
        # shellcheck source=/dev/null
        source "$HOME/.cargo/env"
    fi
    command -v cargo >/dev/null || fail "cargo was not found" "install Rust 1.92 or newer, see https://rustup.rs"
    local wanted have
    wanted=$(sed -nE 's/^rust-version = "([0-9.]+)"/\1/p' Cargo.toml)
    have=$(rustc --version | sed -E 's/rustc ([0-9.]+).*/\1/')
    if [[ $(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1) != "$wanted" ]]; then
        fail "rustc $have is too old; Cove needs $wanted" "rustup update stable"
    fi
}

may_install() {
    [[ ${COVE_TEST_OFFLINE:-0} != 1 ]]
}

# apt_install PACKAGE...: those that are missing.
apt_install() {
    local missing=()
    for package in "$@"; do
        [[ $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null) == "install ok installed" ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    echo "missing packages: ${missing[*]}"
    may_install || fail "packages are missing and COVE_TEST_OFFLINE is set"
    command -v apt-get >/dev/null || fail "no apt-get here" "install what these Debian packages hold: ${missing[*]}"
    # an old list names versions that are gone: fetched again when the first try fails
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq --no-install-recommends "${missing[@]}" ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; }
}

# node_env FOLDER LISTS PROGRAMS: installs the packages of LISTS/package-lock.json once, with the npm in PROGRAMS.
node_env() {
    cmp -s "$2/package-lock.json" "$1/package-lock.json" && [[ -d $1/node_modules ]] && return
    may_install || fail "$1 is missing and COVE_TEST_OFFLINE is set"
    echo "installing $2/package.json into $1"
    mkdir -p "$1"
    cp "$2/package.json" "$2/package-lock.json" "$1/"
    (cd "$1" && PATH="$3:$PATH" npm ci --no-audit --no-fund --silent)
}

# python_env FOLDER REQUIREMENTS: makes a Python environment once; a changed list of requirements makes it anew.
python_env() {
    cmp -s "$2" "$1/.requirements" && return
    may_install || fail "$1 is missing and COVE_TEST_OFFLINE is set"
    echo "installing $2 into $1"
    python3 -m venv "$1"
    "$1/bin/pip" install --quiet --disable-pip-version-check -r "$2"
    cp "$2" "$1/.requirements"
}
