#!/usr/bin/env bash
# The program as a static binary: in a root that holds it, nft and what nft needs, and nothing else, read-only, with
# NET_ADMIN and NET_RAW alone. Builds it for this machine's own target with the C library linked in, with --musl for
# x86_64-unknown-linux-musl as for a release (see musl/build.sh).
set -Eeuo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
export PATH=$PATH:/usr/sbin:/sbin

case ${1-} in
    '')
        target=$(rustc -vV | sed -n 's/^host: //p')
        RUSTFLAGS='-C target-feature=+crt-static' cargo build --locked --profile e2e -p outrigger-iptables \
            --bins --example panic_probe --target "$target" --target-dir "${CARGO_TARGET_DIR:-target}/static"
        folder=${CARGO_TARGET_DIR:-target}/static/$target/e2e
        ;;
    --musl) folder=$(iptables/tests/musl/build.sh) ;;
    *) echo "usage: bare-root.sh [--musl]" >&2; exit 2 ;;
esac
program=$folder/outrigger-iptables
# No interpreter is asked for, and no library.
if readelf --wide --program-headers --dynamic "$program" | grep -E 'INTERP|NEEDED' >&2; then
    echo "the program is not static" >&2
    exit 1
fi
# A panic is caught where it is to be caught, and elsewhere it ends the program in words: unwinding works in it.
status=0
said=$("$folder/examples/panic_probe" 2>&1) || status=$?
if [[ $status != 101 || $said != *"the first was caught"*"the second"* ]]; then
    echo "a panic in a static binary ended it with $status, not 101: $said" >&2
    exit 1
fi

# Everything below happens in namespaces of one process, and is gone with it.
unshare --net --mount --pid --fork --kill-child bash -euo pipefail -s "$program" <<'INSIDE'
root=$(mktemp -d)
mount -t tmpfs none "$root"
mkdir -p "$root"/{bin,sbin,proc,lib64}
cp "$1" "$root/bin/outrigger-iptables"
cp "$(command -v nft)" "$root/sbin/nft"
for library in $(ldd "$root/sbin/nft" | grep -o '/[^ ]*'); do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
mount -t proc none "$root/proc"
mount -o remount,ro "$root"
ip link set lo up
before=$(nft list ruleset; ip addr; ip rule; ip -6 rule)
in_root() {
    env -i PATH="$PATH" setpriv --bounding-set=-all,+net_admin,+net_raw,+sys_chroot --inh-caps=-all,+net_admin,+net_raw \
        chroot "$root" /bin/outrigger-iptables "$@"
}
for mode in redirect tproxy; do
    in_root print --mode "$mode" >/dev/null
    in_root install --mode "$mode"
    in_root verify --mode "$mode"
    in_root status
    in_root remove
    [[ $(nft list ruleset; ip addr; ip rule; ip -6 rule) == "$before" ]] || { echo "remove left something" >&2; exit 1; }
done
umount "$root/proc" "$root"
rmdir "$root"
INSIDE
echo "$program: static, $(stat -c %s "$program") bytes, works in a bare read-only root"
