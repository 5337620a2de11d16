#!/usr/bin/env bash
# Everything that CI runs, in one command. Stops at the first step that fails.
set -Eeuo pipefail

usage() {
    cat <<'TEXT'
Usage: tests/run.sh [--fast]

Installs what is missing (Debian packages, cargo-deny, pkilint from PyPI into target/), then runs: format, clippy, build,
unit and end-to-end tests, pkilint over the CA's certificates, each fuzzer for ten seconds, the redirection as a static
binary, what a request costs in instructions, the quickstart, cargo deny. End-to-end tests,
the tests of the redirection, the count of instructions and the quickstart make network namespaces and need root.

  --fast   without what needs root: end-to-end tests, quickstart, tests of the redirection
  --help   this text
TEXT
}

fast=no
case ${1-} in
    '') ;;
    --fast) fast=yes ;;
    --help | -h) usage; exit ;;
    *) usage >&2; exit 2 ;;
esac
(($# <= 1)) || { usage >&2; exit 2; }

cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
exec </dev/null
export PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin
# One profile for everything, so that what the host runs and what a C compiler makes is compiled once. End-to-end tests,
# gate and quickstart run our code optimised; its unit tests are compiled without, and with debug assertions.
profile=e2e
# Of PyPI.
pkilint=0.13.3
export CARGO_INCREMENTAL=0

bold='' green='' red='' plain=''
if [[ -t 1 && -z ${NO_COLOR-} ]]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
fi

current='' passed=0 step_began=0
trap 'failed $?' EXIT

# The one way out that is not success, so that the last words always name the step.
failed() {
    (($1 != 0)) || return 0
    printf '\n%s✗ FAILED in "%s"%s (exit status %d) after %d s; %d steps had passed\n' "$red" "${current:-the beginning}" "$plain" \
        "$1" "$((SECONDS - step_began))" "$passed"
}

# step NAME COMMAND...
step() {
    current=$1 step_began=$SECONDS
    shift
    printf '\n%s=== %s%s\n' "$bold" "$current" "$plain"
    "$@"
    passed=$((passed + 1))
    printf '%s✓ %s%s in %d s\n' "$green" "$current" "$plain" "$((SECONDS - step_began))"
}

install_tools() {
    local pair
    local -a missing=() as_root=()
    for pair in ip:iproute2 nft:nftables iptables:iptables dnsmasq:dnsmasq-base curl:curl tcpdump:tcpdump openssl:openssl jq:jq \
        valgrind:valgrind python3:python3 g++:g++ unshare:util-linux setpriv:util-linux newuidmap:uidmap ps:procps cc:gcc readelf:binutils make:make musl-gcc:musl-tools; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    # Only recommended by gcc.
    [[ -e /usr/include/stdio.h ]] || missing+=(libc6-dev)
    # The tests of the CA's database start servers of their own.
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
    if ((${#missing[@]})); then
        if ! command -v apt-get >/dev/null; then
            echo "missing (Debian's names): ${missing[*]}; install them with this system's package manager" >&2
            return 1
        fi
        [[ $EUID == 0 ]] || as_root=(sudo -n)
        echo "installing ${missing[*]}"
        "${as_root[@]}" apt-get update -qq || echo "apt-get update failed; trying with the lists that are there"
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
    fi
    if ! command -v cargo >/dev/null; then
        echo "there is no Rust toolchain (cargo); https://rustup.rs says how to get one" >&2
        return 1
    fi
    cargo --version
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        rustup component add rustfmt clippy
    fi
    cargo deny --version 2>/dev/null || cargo install --locked cargo-deny
}

# A linter of certificates, in an environment of its own.
install_pkilint() {
    local home=$PWD/target/pkilint
    [[ ! -x $home/bin/lint_pkix_cert ]] || return 0
    echo "installing pkilint from PyPI into $home"
    if ! python3 -m venv "$home" 2>/dev/null; then
        local -a as_root=()
        [[ $EUID == 0 ]] || as_root=(sudo -n)
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv
        python3 -m venv "$home"
    fi
    "$home/bin/pip" install --quiet --disable-pip-version-check "pkilint==$pkilint"
}

# Sets `all`: cargo test as the unit tests are compiled.
unit_test_command() {
    local package key
    all=(cargo test --locked --profile "$profile")
    for package in sidecar ca identity iptables; do
        key=profile.$profile.package.outrigger-$package
        all+=(--config "$key.opt-level=0" --config "$key.debug-assertions=true")
    done
    all+=(--workspace --exclude outrigger-e2e)
    [[ $fast == no ]] || all+=(--exclude outrigger-iptables)
}

# Those of outrigger-iptables in tests/ make network namespaces.
unit_tests() {
    local -a all
    unit_test_command
    "${all[@]}"
    if [[ $fast == yes ]]; then
        local key=profile.$profile.package.outrigger-iptables
        cargo test --locked --profile "$profile" --config "$key.opt-level=0" --config "$key.debug-assertions=true" \
            -p outrigger-iptables --lib --bins --test property
    fi
}

pkilint_tests() {
    local -a all
    install_pkilint
    unit_test_command
    "${all[@]}" --test binary -- --ignored pkilint
}

namespaces_are_allowed() {
    [[ $EUID == 0 ]] || { echo "end-to-end tests need root; run this as root, or with --fast" >&2; return 1; }
    unshare --mount --net --pid --fork true || { echo "this container does not let root make namespaces: it needs CAP_SYS_ADMIN and CAP_NET_ADMIN; or use --fast" >&2; return 1; }
}

[[ $fast == yes ]] || step "namespaces can be made" namespaces_are_allowed
step "tools" install_tools
step "format" cargo fmt --all --check
step "clippy, warnings denied" cargo clippy --locked --profile "$profile" --workspace --all-targets -- -D warnings
step "unit tests" unit_tests
step "pkilint over every kind of certificate" pkilint_tests
step "the binaries" cargo build --locked --profile "$profile" --workspace
step "fuzzers, ten seconds each" tests/fuzz/run.sh
if [[ $fast == no ]]; then
    step "the redirection from a bare root" iptables/tests/bare-root.sh
    step "the same as a static musl binary" iptables/tests/bare-root.sh --musl
    # Pods have ports, processors and a clock of their own to be judged by: a few at a time on a small machine.
    step "end-to-end tests" cargo test --locked --profile "$profile" -p outrigger-e2e -- --test-threads "${E2E_THREADS:-2}"
    step "instructions a request" cargo bench --locked --profile "$profile" -p outrigger-e2e --bench peers -- \
        --instructions "$PWD/tests/bench/instructions.json"
    step "quickstart" examples/quickstart.sh
    step "the quickstart's promises" tests/quickstart.sh
fi
step "licences, bans, sources" cargo deny check bans licenses sources
printf '\n%s%d steps passed%s in %d min %d s%s\n' "$green" "$passed" "$plain" $((SECONDS / 60)) $((SECONDS % 60)) \
    "$([[ $fast == no ]] || echo ' (without end-to-end tests)')"
