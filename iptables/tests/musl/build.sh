#!/usr/bin/env bash
# Builds the program, and the probe of panics, for x86_64-unknown-linux-musl, and prints their folder last. Where rustup
# has that target, with it. Else std is compiled from its source, which Debian has for one version of the compiler, with
# musl-gcc and the unwinder of gcc; the toolchain is left alone. Everything is kept in target/musl.
set -Eeuo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../.."

target=x86_64-unknown-linux-musl
version=1.95.0
deb=http://deb.debian.org/debian/pool/main/r/rustc/rust-src_1.95.0+dfsg1-2~bpo13+1_all.deb
sha256=7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b

folder=$PWD/target/musl
[[ -z ${CARGO_TARGET_DIR-} ]] || folder=$(realpath -m "$CARGO_TARGET_DIR")/musl
build=(cargo build --locked --profile e2e -p outrigger-iptables --bins --example panic_probe --target "$target" --target-dir "$folder")
result=$folder/$target/e2e

fail() {
    echo "nothing was built for $target: $1; \"rustup target add $target\" makes it possible" >&2
    exit 1
}

sysroot=$(rustc --print sysroot)
host=$(rustc -vV | sed -n 's/^host: //p')
if [[ -d $sysroot/lib/rustlib/$target/lib ]]; then
    "${build[@]}" >&2
    echo "$result"
    exit
fi

release=$(rustc -vV | sed -n 's/^release: //p')
[[ $release == "$version" && $host == x86_64-unknown-linux-gnu ]] ||
    fail "the toolchain has no std for it, and the source of std is pinned for rustc $version on x86-64, not $release on $host"
for tool in musl-gcc:musl-tools dpkg-deb:dpkg curl:curl; do
    command -v "${tool%%:*}" >/dev/null || fail "${tool%%:*} is missing (Debian's package ${tool##*:})"
done

mkdir -p "$folder"
source=$folder/std-$version
if [[ ! -d $source ]]; then
    echo "downloading $deb, SHA-256 $sha256" >&2
    curl -fsSL --retry 2 --max-time 120 -o "$folder/rust-src.deb" "$deb" || fail "the source of std cannot be downloaded"
    sha256sum --quiet --check <<<"$sha256  $folder/rust-src.deb" >&2
    rm -rf "$source.part"
    mkdir "$source.part"
    dpkg-deb --fsys-tarfile "$folder/rust-src.deb" |
        tar -x -C "$source.part" --strip-components=4 "./usr/src/rustc-$version/library"
    mv "$source.part" "$source"
    rm "$folder/rust-src.deb"
fi

# A root of the toolchain that has the source too: links, and a compiler that calls it its own.
mkdir -p "$folder/sysroot/lib/rustlib/src/rust" "$folder/native"
ln -sfn "$sysroot/lib/rustlib/$host" "$folder/sysroot/lib/rustlib/$host"
ln -sfn "$source/library" "$folder/sysroot/lib/rustlib/src/rust/library"
printf '#!/bin/sh\nexec "%s" --sysroot "%s" "$@"\n' "$sysroot/bin/rustc" "$folder/sysroot" >"$folder/rustc"
chmod +x "$folder/rustc"

# What std calls libunwind is gcc's here.
musl-gcc -O2 -Wall -Wextra -Werror -c iptables/tests/musl/dl_find_object.c -o "$folder/native/dl_find_object.o"
cp "$(gcc -print-file-name=libgcc_eh.a)" "$folder/native/libunwind.a"
ar r "$folder/native/libunwind.a" "$folder/native/dl_find_object.o" 2>/dev/null

export RUSTC_BOOTSTRAP=1 RUSTC=$folder/rustc CARGO_INCREMENTAL=0 CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER=musl-gcc
# No position-independent executable: the start code and gcc's archive are made for one that is not.
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS="-C link-self-contained=no -C relocation-model=static -L native=$folder/native"
# The unwinder refers to these weakly, which does not bring them in from an archive: it would call address 0 at a panic.
for symbol in pthread_{mutex_lock,mutex_unlock,once,getspecific,setspecific}; do
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS+=" -C link-arg=-Wl,--undefined=$symbol"
done
"${build[@]}" -Zbuild-std=std,panic_unwind >&2
echo "$result"
