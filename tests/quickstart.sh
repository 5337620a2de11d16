#!/usr/bin/env bash
# What examples/quickstart.sh promises and one good run does not show: that it leaves nothing behind however it ends, that
# a claim that fails is named and fails it, that --keep and the commands it prints work, and that it needs no root.
#
# It runs in namespaces of its own, so that "nothing is left" can be checked to the last process, mount and file however
# busy the machine is, and so that a test that fails leaves nothing either.
set -Eeuo pipefail
shopt -s inherit_errexit

self=$(readlink -f "${BASH_SOURCE[0]}")
root=$(dirname "$(dirname "$self")")
export PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin
binaries=(outrigger-sidecar outrigger-ca outrigger-iptables outrigger-workload)
# Where the script and the binaries are copied to; a tmpfs of our own.
place=/mnt
# Our own notes; all else in there is looked at.
notes=$place/notes
user=quickstart-test uid=4711
claims=9
# The promise is a minute after the build.
most_seconds=60

usage() {
    cat <<'TEXT'
Usage: tests/quickstart.sh [--bin DIR]

Tests examples/quickstart.sh as root, in about two minutes.

  --bin    the binaries to run it with (default: what `cargo build --profile e2e` made)
  --help   this text
TEXT
}

say() { printf '… %s\n' "$*"; }
# What is right, and what is not: the end, with the run's own words.
right() { printf '✓ %s\n' "$*"; }
wrong() {
    printf '✗ %s\n' "$*"
    [[ ! -s $notes/log ]] || { echo '--- the end of what it said'; tail -n 40 "$notes/log" | cut -c 1-300; }
    exit 1
}

# --- the stage --------------------------------------------------------------------------------------------------------

make_stage() {
    local file binary staging
    staging=$(mktemp -d)
    mount -t tmpfs -o mode=755 tmpfs "$staging"
    mkdir "$staging/examples" "$staging/bin" "$staging/etc" "$staging/broken" "$staging/notes"
    cp "$root/examples/quickstart.sh" "$staging/examples/"
    for binary in "${binaries[@]}"; do install -m 755 "$built/$binary" "$staging/bin/"; done
    # Moved there last: the checkout itself may be in /tmp.
    mount --move "$staging" "$place"
    rmdir "$staging"
    for file in /tmp /run /var/tmp /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs "$file"; done
    ip link set lo up

    # An ordinary user with subordinate ids, for this mount namespace alone.
    for file in passwd group subuid subgid; do
        touch -a "/etc/$file"
        cp "/etc/$file" "$place/etc/$file"
    done
    echo "$user:x:$uid:$uid::$place/home:/bin/bash" >>"$place/etc/passwd"
    echo "$user:x:$uid:" >>"$place/etc/group"
    for file in passwd group; do mount --bind "$place/etc/$file" "/etc/$file"; done
    install -d -o "$uid" -g "$uid" "$place/home"
    cd "$place"
}

give_subordinate_ids() {
    local file
    for file in subuid subgid; do
        echo "$user:700000:65536" >>"$place/etc/$file"
        mount --bind "$place/etc/$file" "/etc/$file"
    done
}

# Become what they start, so that a background job is that program itself. Otherwise in a subshell.
become_user() {
    exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --inh-caps=-all env -i HOME="$place/home" USER="$user" LC_ALL=C.UTF-8 \
        PATH="${user_path-/usr/local/bin:/usr/bin:/bin}" "$@"
}
become_root() { exec "$@"; }
as_user() { (become_user "$@"); }
as_root() { (become_root "$@"); }

# Everything that could be left: what runs, namespaces, mounts, links, rules, files. Written by builtins where processes
# are concerned, so as not to see itself.
snapshot() {
    local dir comm link
    {
        for dir in /proc/[0-9]*; do
            [[ $dir != "/proc/$$" ]] || continue
            comm=
            read -r comm 2>/dev/null <"$dir/comm" || continue
            echo "process $comm"
        done
        echo "--- namespaces"
        for link in /proc/[0-9]*/ns/*; do readlink "$link" || true; done | sort -u
        echo "--- mounts"
        cat /proc/self/mountinfo
        echo "--- network"
        ip -o link show | cut -d: -f2
        ip netns list
        nft list ruleset
        echo "--- files"
        find /tmp /run /var/tmp /dev/shm "$place" -path "$notes" -prune -o -printf '%p %M %s\n' | sort
        find /etc/netns /etc/resolv.conf /etc/hosts -printf '%p %M %s %T@\n' 2>/dev/null || true
    } >"$notes/snapshot.$1"
}

nothing_left() {
    snapshot now
    diff -U 0 "$notes/snapshot.before" "$notes/snapshot.now" >"$notes/snapshot.diff"
}

# Right after its end for one that was asked to end; after a moment for one that was killed.
leaves_nothing() {
    local until=$((SECONDS + ${1-0}))
    until nothing_left; do
        ((SECONDS < until)) || { cat "$notes/snapshot.diff"; wrong "something is left (+)"; }
        sleep 0.1
    done
}

# --- one run ----------------------------------------------------------------------------------------------------------

# begin WHO ARGUMENT...: in a process group of its own, as from a terminal.
begin() {
    snapshot before
    began=$SECONDS
    : >"$notes/log"
    # A background job of a script ignores SIGINT; one of a terminal does not.
    "become_$1" env --default-signal=INT setsid examples/quickstart.sh "${@:2}" </dev/null >>"$notes/log" 2>&1 &
    running=$!
}

# reaches SECONDS WORDS: until the run has said so.
reaches() {
    local until=$((SECONDS + $1))
    until grep -qF -- "$2" "$notes/log"; do
        kill -0 "$running" 2>/dev/null || wrong "it ended before it said \"$2\""
        ((SECONDS < until)) || wrong "after $1 s it has not said \"$2\""
        sleep 0.05
    done
}

# Otherwise the later comparison would prove nothing.
is_at_work() {
    local processes namespaces
    snapshot work
    processes=$(grep -c '^process' "$notes/snapshot.work")
    namespaces=$(grep -c '^net:' "$notes/snapshot.work")
    ((processes >= $1 && namespaces >= 2)) || wrong "only $processes processes in $namespaces network namespaces: nothing to clean up"
    found="$processes processes"
}

# ends SECONDS STATUS
ends() {
    local status=0 until=$((SECONDS + $1))
    while kill -0 "$running" 2>/dev/null; do
        ((SECONDS < until)) || wrong "it still runs after $1 s"
        sleep 0.05
    done
    wait "$running" || status=$?
    ((status == $2)) || wrong "exit status $status, not $2"
}

# fails STATUS WORDS COMMAND...: it says so and ends so.
says() {
    local status=0
    "${@:3}" </dev/null >"$notes/log" 2>&1 || status=$?
    ((status == $1)) || wrong "${*:3}: exit status $status, not $1"
    grep -qF -- "$2" "$notes/log" || wrong "${*:3}: does not say \"$2\""
}

# --- the promises -----------------------------------------------------------------------------------------------------

test_flags() {
    local quickstart=examples/quickstart.sh
    snapshot before
    says 0 'Usage: ' $quickstart --help
    says 2 'Usage: ' $quickstart --kep
    says 2 'Usage: ' $quickstart --keep now
    says 2 'Usage: ' $quickstart --help me
    says 2 'Usage: ' $quickstart --bin
    says 2 'Usage: ' $quickstart --enter
    says 2 'no such folder' $quickstart --bin /nowhere
    says 2 'no executable outrigger-sidecar' $quickstart --bin "$place/broken"
    says 2 'no quickstart is running' $quickstart --enter client true
    says 2 'its own namespaces' $quickstart --inside "$place/bin" no
    leaves_nothing
    right "wrong flags and folders get the usage or the reason, and exit status 2"
}

# Without root it says what it needs, one thing after the other.
test_needs() {
    mkdir "$place/nojq"
    ln -sf /bin/* /usr/bin/* "$place/nojq/" 2>/dev/null || true # one is often a link to the other
    rm -f "$place/nojq/jq" "$place/nojq/sudo"
    user_path=$place/nojq says 2 'run: sudo apt-get install jq' as_user examples/quickstart.sh --bin "$place/bin"
    rm -r "$place/nojq"
    says 2 'usermod --add-subuids' as_user examples/quickstart.sh --bin "$place/bin"
    says 2 'or run it as root: sudo' as_user examples/quickstart.sh --bin "$place/bin"
    right "without root and without what it needs, it says what to run"
}

# stopped WHO WORDS PROCESSES SIGNAL STATUS: at these words.
stopped() {
    local target
    begin "$1" --bin "$place/bin"
    reaches 30 "$2"
    sleep 0.3
    is_at_work "$3"
    # Ctrl-C goes to all of the terminal's process group, any other signal to whom it is sent.
    target=$running
    [[ $4 != INT ]] || target=-$running
    # Without the shell's own announcement that a job was killed.
    { kill "-$4" -- "$target" && ends 5 "$5"; } 2>/dev/null
    if [[ $4 == KILL ]]; then
        leaves_nothing 5
    else
        leaves_nothing
        grep -qF "stopped by SIG$4; everything is removed" "$notes/log" || wrong "it does not say that it was stopped"
    fi
    ! grep -qF '✗' "$notes/log" || wrong "it blames a claim for its own end"
    right "SIG$4 ($1, at \"$2\", $found) leaves no process, namespace, mount or file"
}

# The whole run, by an ordinary user where the kernel allows that.
test_whole() {
    local who=user took
    if ! as_user unshare --user --map-root-user --map-auto --mount true 2>/dev/null; then
        says 2 'without root it needs user namespaces' as_user examples/quickstart.sh --bin "$place/bin"
        right "this kernel gives an ordinary user no namespaces, and the script says so; going on as root"
        who=root
    else
        stopped user '✓ a request to' 12 KILL 137
    fi
    say "the whole run (as $who), with --keep"
    begin "$who" --keep --bin "$place/bin"
    reaches 100 'Ctrl-C here ends it and removes everything.'
    took=$((SECONDS - began))
    grep -qF "$claims claims shown, 0 failed" "$notes/log" || wrong "not $claims claims shown and 0 failed"
    [[ $(grep -c '^✓' "$notes/log") == "$claims" ]] || wrong "not $claims ticks"
    ((took < most_seconds)) || wrong "it took $took s; under $most_seconds are promised"
    right "$claims claims shown (as $who) in $took s"
    printed_commands "$who"
    kill -INT -- "-$running"
    ends 5 130
    leaves_nothing
    right "Ctrl-C after --keep ends it and leaves nothing"
}

# Each command that --keep prints, as printed, must do something to the point.
printed_commands() {
    local line wanted end status count=0 input
    local -a lines
    mapfile -t lines < <(sed -n 's/^  \(.*quickstart\.sh --enter .*\)/\1/p' "$notes/log")
    for line in "${lines[@]}"; do
        end=0 input=/dev/null
        case $line in
            *' --enter client curl '*/whoami) wanted='spiffe://quickstart.mesh/client' ;;
            *' --enter client curl '*/certs) wanted='spiffe://quickstart.mesh/client' ;;
            *' --enter client curl '*/endpoints) wanted='10.77.0.13:8080' ;;
            *' --enter client curl '*/metrics) wanted='outrigger_requests_total{' ;;
            *' --enter orders-1 outrigger-iptables print') wanted='15006' ;;
            *' --enter orders-1 nft list ruleset') wanted='15006' ;;
            *' --enter node tcpdump '*) wanted='10.77.0.10.' end=124 ;;
            *' --enter node tail '*) wanted='outrigger' end=124 ;;
            *' --enter stranger')
                wanted='mesh_only' input=$notes/typed
                echo 'curl -s http://10.77.0.11:8080/' >"$input"
                ;;
            *) wrong "it prints a command that this test does not know: $line" ;;
        esac
        # So that there is something to be seen on the wire.
        [[ $line != *tcpdump* ]] || { sleep 1; "as_$1" examples/quickstart.sh --enter client curl -s http://orders.mesh:8080/; } >/dev/null &
        status=0
        "as_$1" timeout 3 bash -c "$line" <"$input" >"$notes/said" 2>&1 || status=$?
        ((status == end)) || { cat "$notes/said"; wrong "$line: exit status $status"; }
        grep -qF -- "$wanted" "$notes/said" || { cat "$notes/said"; wrong "$line: nothing of \"$wanted\" in its output"; }
        ! grep -q 'PRIVATE KEY' "$notes/said" || wrong "$line: shows a private key"
        count=$((count + 1))
    done
    wait_for_others
    ((count >= 5)) || wrong "only $count commands are printed"
    "as_$1" examples/quickstart.sh --enter nowhere true >"$notes/said" 2>&1 && wrong "there is a pod \"nowhere\""
    grep -qF 'the pods are: ca client dns' "$notes/said" || wrong "it does not say which pods there are"
    right "each of the $count commands that --keep prints works"
}

wait_for_others() {
    local job
    for job in $(jobs -p); do [[ $job == "$running" ]] || wait "$job" || true; done
}

# A sidecar that lets strangers in: one claim must fail, by name, and nothing else.
test_failing_claim() {
    local claim='an unenrolled client is refused and told why' binary
    for binary in "${binaries[@]}"; do ln -s "$place/bin/$binary" "$place/broken/$binary"; done
    rm "$place/broken/outrigger-sidecar"
    printf '#!/bin/sh\nOUTRIGGER_INBOUND_MODE=permissive exec %s "$@"\n' "$place/bin/outrigger-sidecar" >"$place/broken/outrigger-sidecar"
    chmod 755 "$place/broken/outrigger-sidecar"
    say "the whole run (as root), with a sidecar that lets strangers in"
    begin root --bin "$place/broken"
    reaches 30 "✗ $claim"
    examples/quickstart.sh --enter client curl -s http://orders.mesh:8080/whoami >"$notes/said" || wrong "--enter does not work as root"
    grep -qF 'spiffe://quickstart.mesh/client' "$notes/said" || wrong "--enter client is not in the client's pod"
    ends 90 1
    leaves_nothing
    grep -qF "$((claims - 1)) claims shown, 1 failed" "$notes/log" || wrong "not $((claims - 1)) claims shown and 1 failed"
    right "a claim that fails is named, the exit status is 1, and nothing is left"
}

# A program that ends at once: the run cannot even begin to show claims.
test_failing_program() {
    ln -sf /bin/false "$place/broken/outrigger-ca"
    begin root --bin "$place/broken"
    ends 20 1
    grep -qF '✗ the CA could not be made' "$notes/log" || wrong "it does not say what failed"
    leaves_nothing
    right "a program that fails before the claims is named, the exit status is 1, and nothing is left"
}

inside() {
    built=$1
    trap 'echo "✗ line $LINENO failed: $BASH_COMMAND" >&2' ERR
    make_stage
    test_flags
    test_needs
    give_subordinate_ids
    stopped root 'making a CA' 6 TERM 143
    stopped root '✓ an unenrolled client' 12 INT 130
    stopped root '✓ load is spread' 12 KILL 137
    test_whole
    test_failing_claim
    test_failing_program
    printf '\nthe quickstart keeps its promises; shown in %d s\n' "$SECONDS"
}

# --- outside ----------------------------------------------------------------------------------------------------------

outside() {
    [[ $EUID == 0 ]] || { echo "this test needs root" >&2; exit 2; }
    local binary
    if [[ -z $built ]]; then
        cd "$root"
        built=$(cargo metadata --no-deps --format-version 1 | jq -r .target_directory)/e2e
    fi
    built=$(readlink -f "$built")
    for binary in "${binaries[@]}"; do
        [[ -x $built/$binary ]] || { echo "there is no $built/$binary; build it, or say with --bin where it is" >&2; exit 2; }
    done
    # Only an ordinary user needs it, and this test is one.
    command -v newuidmap >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends uidmap >/dev/null
    exec unshare --mount --net --pid --fork --kill-child --mount-proc bash "$self" --inside "$built" </dev/null
}

built='' running='' began=0 found=''
case ${1-} in
    --help) usage ;;
    '') outside ;;
    --bin)
        (($# == 2)) || { usage >&2; exit 2; }
        built=$2
        outside
        ;;
    --inside) inside "$2" ;;
    *) usage >&2; exit 2 ;;
esac
