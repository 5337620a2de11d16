#!/usr/bin/env bash
# Runs the fuzzers with libFuzzer on a stable toolchain.
set -Eeuo pipefail

usage() {
    cat <<'TEXT'
Usage: tests/fuzz/run.sh [--seconds N] [TARGET...]

Runs each fuzzer, or those that are named, for N seconds (10). New inputs stay in target/fuzz/TARGET, so that a longer run
goes on where the last one ended; an input that breaks an invariant is written to target/fuzz/TARGET-crash-….
Put such an input into tests/fuzz/corpus/TARGET together with what mends it: every test run checks those.

  --seconds N   seconds a fuzzer, from 1
  --help        this text
TEXT
}

seconds=10
all=(spiffe_id authorization csr enrolment certificates)
chosen=()
while (($#)); do
    case $1 in
        --seconds)
            [[ ${2-} =~ ^[1-9][0-9]*$ ]] || { echo "--seconds takes a number from 1, not \"${2-}\"" >&2; exit 2; }
            seconds=$2
            shift
            ;;
        --help | -h) usage; exit ;;
        *)
            [[ " ${all[*]} " == *" $1 "* ]] || { echo "there is no fuzzer \"$1\"; there are ${all[*]}" >&2; exit 2; }
            chosen+=("$1")
            ;;
    esac
    shift
done
((${#chosen[@]})) || chosen=("${all[@]}")

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
cd "$here/../.."
export CARGO_INCREMENTAL=0
# Our own crates count their branches; those of others are the ones that the other tests have compiled.
RUSTC_WORKSPACE_WRAPPER=$here/instrument.sh \
    cargo build --locked --profile e2e --workspace --features outrigger-fuzz/libfuzzer "${all[@]/#/--bin=}" \
    --config 'profile.e2e.package.outrigger-ca.debug-assertions=true'
for target in "${chosen[@]}"; do
    mkdir -p "target/fuzz/$target"
    log=target/fuzz/$target.log
    if ! "target/e2e/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 -verbosity=0 \
        -print_final_stats=1 -artifact_prefix="target/fuzz/$target-" "target/fuzz/$target" "tests/fuzz/corpus/$target" \
        >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        echo "$target: an input breaks an invariant; see above, and target/fuzz/$target-…" >&2
        exit 1
    fi
    inputs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    # A fuzzer that counts no branches guesses blindly.
    [[ $inputs =~ ^[0-9]+$ ]] && ! grep -q 'no interesting inputs' "$log" || { cat "$log" >&2; echo "$target did not fuzz" >&2; exit 1; }
    echo "$target: $inputs inputs in $seconds s, every invariant held"
done
