#!/bin/sh
# cargo's RUSTC_WORKSPACE_WRAPPER: counts branches for libFuzzer in the crates of this workspace, build scripts and macros excepted.
rustc=$1
shift
case " $* " in
    *" --crate-type proc-macro "* | *" build_script_build "*) exec "$rustc" "$@" ;;
esac
exec "$rustc" "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
