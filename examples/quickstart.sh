#!/usr/bin/env bash
# The whole mission on one machine: pods made of network namespaces, a CA, a sidecar beside every workload, and each
# promise shown with real programs.
#
# Everything lives in private namespaces (mount, network, process, and user where not root) of one process. When that
# process ends, for whatever reason, the kernel removes the pods, their processes, files and mounts; there is no
# clean-up code that could be skipped.
set -Eeuo pipefail
shopt -s inherit_errexit

self=$(readlink -f "${BASH_SOURCE[0]}")
root=$(dirname "$(dirname "$self")")
PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin
profile=e2e
run=/run/outrigger
binaries=(outrigger-sidecar outrigger-ca outrigger-iptables outrigger-workload)

usage() {
    cat <<'TEXT'
Usage: examples/quickstart.sh [--keep] [--bin DIR]
       examples/quickstart.sh --enter POD [COMMAND...]

Builds Outrigger, makes pods out of network namespaces, puts a sidecar beside every workload, and shows what the mesh
does. Needs root, or a kernel that lets a user make namespaces. Leaves nothing behind.

  --keep    after the claims leave everything running until Ctrl-C, and print what to try next
  --bin     use the binaries in DIR and build nothing
  --enter   from another terminal, while it runs: a shell, or COMMAND, in a pod
            (dns, ca, client, orders-1, orders-2, orders-3, stranger; "node" is the network between them)
  --help    this text

Exit status: 0 every claim was shown, 1 one was not, 2 it could not begin.
TEXT
}

# --- words -----------------------------------------------------------------------------------------------------------

green='' red='' dim='' bold='' plain=''
if [[ -t 1 && -z ${NO_COLOR-} ]]; then
    green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' bold=$'\e[1m' plain=$'\e[0m'
fi

step() { printf '%s… %s%s\n' "$dim" "$*" "$plain"; }
note() { printf '    %s%s%s\n' "$dim" "$*" "$plain"; }
cannot_begin() {
    printf '%squickstart cannot begin:%s %s\n' "$red" "$plain" "$1" >&2
    shift
    (($# == 0)) || printf '  %s\n' "$@" >&2
    exit 2
}

# --- outside: what is needed, the build, the namespaces ---------------------------------------------------------------

# A command and the Debian package that has it.
needed() {
    printf '%s\n' ip:iproute2 nft:nftables dnsmasq:dnsmasq-base curl:curl tcpdump:tcpdump jq:jq unshare:util-linux \
        nsenter:util-linux setpriv:util-linux cc:gcc make:make
    [[ $EUID == 0 ]] || echo newuidmap:uidmap
}

missing_packages() {
    local pair
    while read -r pair; do
        command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"
    done < <(needed) | sort -u
    # Only recommended by gcc.
    [[ -e /usr/include/stdio.h ]] || echo libc6-dev
}

install_missing() {
    local -a missing as_root=()
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]})) || return 0
    if ! command -v apt-get >/dev/null; then
        cannot_begin "these are missing (Debian's names): ${missing[*]}" "install them with this system's package manager, then run this again"
    fi
    if [[ $EUID != 0 ]]; then
        if ! sudo -n true 2>/dev/null; then
            cannot_begin "these packages are missing: ${missing[*]}" "run: sudo apt-get install ${missing[*]}"
        fi
        as_root=(sudo)
    fi
    step "installing ${missing[*]}"
    # The package lists of a fresh container are empty, those of an old machine stale.
    "${as_root[@]}" apt-get update -qq </dev/null >/dev/null || note "apt-get update failed; trying with the lists that are there"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${missing[@]}" </dev/null >/dev/null || cannot_begin "apt-get could not install ${missing[*]}"
}

build() {
    local -a as_owner=()
    local wanted have
    # Under sudo the toolchain and the target folder are the user's.
    if [[ $EUID == 0 && -n ${SUDO_USER-} && $SUDO_USER != root && $(stat -c %u "$root") != 0 ]]; then
        as_owner=(runuser -u "$SUDO_USER" -- env "PATH=$(getent passwd "$SUDO_USER" | cut -d: -f6)/.cargo/bin:$PATH")
    fi
    cargo() { "${as_owner[@]}" cargo "$@"; }
    [[ ${#as_owner[@]} == 0 ]] && unset -f cargo
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2) || have=
    if [[ -z $have ]]; then
        cannot_begin "there is no Rust toolchain (cargo)" "https://rustup.rs says how to get one; in short:" \
            "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal"
    fi
    if [[ $(printf '%s\n' "$wanted" "${have%%-*}" | sort -V | head -n 1) != "$wanted" ]]; then
        cannot_begin "cargo is $have and Outrigger needs $wanted" "run: rustup update stable   (or see https://rustup.rs)"
    fi
    cd "$root"
    step "building"
    cargo build --locked --profile "$profile" --workspace </dev/null || cannot_begin "it does not build; cargo's words are above"
    built=$(cargo metadata --no-deps --format-version 1 </dev/null | jq -r .target_directory)/$profile
    unset -f cargo
}

# Instead of `build`.
use_built() {
    local binary
    [[ -d $built ]] || cannot_begin "--bin $built: there is no such folder"
    built=$(readlink -f "$built")
    for binary in "${binaries[@]}"; do
        [[ -x $built/$binary ]] || cannot_begin "--bin $built: there is no executable $binary in it" "it takes: ${binaries[*]}"
    done
}

# Sets `namespaces`, the command that makes them, once it is proved that the kernel lets us.
find_namespaces() {
    local error
    local -a reasons=()
    namespaces=(unshare --mount --net --pid --fork --kill-child --mount-proc)
    [[ $EUID == 0 ]] || namespaces+=(--user --map-root-user --map-auto)
    # shellcheck disable=SC2016
    local probe='mount -t tmpfs none /run && ip link add probe0 type bridge && ip link add probe1 type veth peer name probe2 &&
        nft add table inet probe && setpriv --reuid 1337 --regid 1337 --clear-groups true'
    if error=$("${namespaces[@]}" sh -c "$probe" 2>&1 </dev/null); then return 0; fi
    if [[ $EUID == 0 ]]; then
        cannot_begin "this kernel or container does not let root make namespaces: $error" \
            "in a container it takes CAP_SYS_ADMIN and CAP_NET_ADMIN (docker run --privileged); a virtual machine always works"
    fi
    grep -q "^\($(id -un)\|$EUID\):" /etc/subuid 2>/dev/null ||
        reasons+=("no subordinate ids: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un)")
    unshare --help | grep -q -- --map-auto || reasons+=("this unshare has no --map-auto: util-linux 2.38 or newer is needed")
    [[ $(sysctl -n kernel.apparmor_restrict_unprivileged_userns 2>/dev/null) != 1 ]] ||
        reasons+=("AppArmor forbids it: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0")
    [[ $(sysctl -n kernel.unprivileged_userns_clone 2>/dev/null) != 0 ]] ||
        reasons+=("the kernel forbids it: sudo sysctl kernel.unprivileged_userns_clone=1")
    cannot_begin "without root it needs user namespaces, and this system does not allow them: $error" "${reasons[@]}" \
        "or run it as root: sudo $self"
}

outside() {
    local child signal status=0
    install_missing
    find_namespaces
    if [[ -n $built ]]; then use_built; else build; fi
    # pdeathsig: even when this shell is killed with SIGKILL, the namespaces go with it. Ctrl-C and SIGTERM come here alone,
    # because a background job ignores SIGINT, and end it the same way.
    setpriv --pdeathsig KILL "${namespaces[@]}" bash "$self" --inside "$built" "$keep" "$called" </dev/null &
    child=$!
    for signal in INT TERM HUP; do
        # shellcheck disable=SC2064
        trap "stop_on $signal" "$signal"
    done
    wait "$child" || status=$?
    exit "$status"
}

# Not before everything is gone. The first process of the namespaces is killed with its parent, `child`; the kernel makes a
# zombie of it when all others in there have ended, and who adopts it reaps it sooner or later or, in some containers, never.
stop_on() {
    local pid
    local -a below=()
    trap '' INT TERM HUP
    read -ra below <"/proc/$child/task/$child/children" 2>/dev/null || true
    kill -KILL "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
    for pid in "${below[@]}"; do
        while grep -q '^State:[[:space:]]*[^Z[:space:]]' "/proc/$pid/status" 2>/dev/null; do sleep 0.02; done
    done
    printf '\n%sstopped by SIG%s; everything is removed%s\n' "$dim" "$1" "$plain"
    trap - "$1"
    kill -"$1" $$
}

# --- another terminal -------------------------------------------------------------------------------------------------

# The first process of a running quickstart, as seen from here: no state file, so none can be stale.
running_init() {
    local dir
    for dir in /proc/[0-9]*; do
        [[ $(tr '\0' ' ' 2>/dev/null <"$dir/cmdline") == bash\ *quickstart.sh\ --inside\ * ]] || continue
        [[ $(sed -n 's/^NSpid:.*\t\([0-9]*\)\t\([0-9]*\)$/\2/p' "$dir/status" 2>/dev/null) == 1 ]] && echo "${dir#/proc/}"
    done | sort -n | tail -n 1
}

enter() {
    local pod=$1 pid
    shift
    pid=$(running_init)
    [[ -n $pid ]] || cannot_begin "no quickstart is running" "start one in another terminal: examples/quickstart.sh --keep"
    local -a into=(nsenter --target "$pid" --mount --pid) environment=("PS1=[$pod] # " "PATH=$run/bin:$PATH" "HISTFILE=")
    [[ -r /proc/$pid/ns/user ]] || cannot_begin "the running quickstart (process $pid) is another user's" "run this as that user, or with sudo"
    [[ $(readlink "/proc/$pid/ns/user") == "$(readlink /proc/self/ns/user)" ]] || into+=(--user)
    (($#)) || set -- bash --norc -i
    if [[ $pod == node ]]; then
        exec "${into[@]}" --net -- env "${environment[@]}" "$@"
    fi
    "${into[@]}" test -e "/run/netns/$pod" || cannot_begin "there is no pod \"$pod\"" "$("${into[@]}" ls /run/netns | xargs echo the pods are:)"
    exec "${into[@]}" -- nsenter --net="/run/netns/$pod" env "${environment[@]}" "$@"
}

# --- inside: the pods -------------------------------------------------------------------------------------------------

trust_domain=quickstart.mesh
workloads=(client orders-1 orders-2 orders-3)
declare -A host_of=([dns]=2 [ca]=3 [client]=10 [orders-1]=11 [orders-2]=12 [orders-3]=13 [stranger]=20)
declare -A process=()
address() { echo "10.77.0.${host_of[$1]}"; }
address6() { echo "fd77::${host_of[$1]}"; }

sidecar_uid=1337 app_uid=1000 ca_uid=1500

in_pod() { nsenter --net="/run/netns/$1" "${@:2}"; }

# A command in a pod under a user id, without privileges and with a clean environment.
as() {
    nsenter --net="/run/netns/$2" setpriv --reuid "$1" --regid "$1" --clear-groups --inh-caps=-all --bounding-set=-all \
        --no-new-privs env -i PATH="$PATH" LC_ALL=C.UTF-8 "${@:3}"
}

# start POD NAME UID COMMAND...: in the background, with its log in $run/POD/NAME.log.
start() {
    nsenter --net="/run/netns/$1" setpriv --reuid "$3" --regid "$3" --clear-groups --inh-caps=-all --bounding-set=-all \
        --no-new-privs env -i PATH="$PATH" LC_ALL=C.UTF-8 "${@:4}" </dev/null >>"$run/$1/$2.log" 2>&1 &
    process[$1/$2]=$!
}

curl_app() { as "$app_uid" "$1" curl -q -sS --noproxy '*' --max-time 5 "${@:2}"; }
admin() { in_pod "$1" curl -q -fsS --noproxy '*' --max-time 2 "http://127.0.0.1:15000$2"; }

show_logs() {
    local log
    for log in "$@"; do
        [[ -s $run/$log.log ]] || continue
        printf '%s    --- the end of %s.log%s\n' "$red" "$log" "$plain"
        tail -n 12 "$run/$log.log" | cut -c 1-400 | sed 's/^/    /'
    done
}

give_up() {
    printf '%s✗ %s%s\n' "$red" "$1" "$plain"
    show_logs "${@:2}"
    exit 1
}

# wait_for SECONDS COMMAND...
wait_for() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < until)) || return 1
        sleep 0.1
    done
}

make_node() {
    # A /run of our own: pods' namespaces, logs, keys and copies of the binaries, gone with the mount namespace.
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p /run/netns "$run/bin" "$run/captures"
    local binary
    for binary in "${binaries[@]}"; do
        # Copies, because the uids of the pods may not be able to reach into the home folder of who built them.
        install -m 755 "$built/$binary" "$run/bin/$binary"
    done
    PATH=$run/bin:$PATH
    printf 'nameserver %s\noptions timeout:1 attempts:3\n' "$(address dns)" >"$run/resolv.conf"
    local resolv
    resolv=$(readlink -m /etc/resolv.conf)
    # Under /run it pointed to what our own /run now hides.
    [[ -e $resolv ]] || { mkdir -p "$(dirname "$resolv")" && touch "$resolv"; }
    mount --bind "$run/resolv.conf" "$resolv"
    ip link set lo up
    ip link add br-mesh type bridge
    ip link set br-mesh up
}

make_pod() {
    local pod=$1 n=${host_of[$1]}
    mkdir -p "$run/$pod"
    ip netns add "$pod"
    ip link add "v$n" type veth peer name eth0 netns "$pod"
    ip link set "v$n" master br-mesh up
    # shellcheck disable=SC2016
    in_pod "$pod" sh -ec '
        ip link set lo up
        ip addr add "$1/24" dev eth0
        if [ -d /proc/sys/net/ipv6 ]; then
            echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6
            ip addr add "$2/64" dev eth0 nodad
        fi
        ip link set eth0 up' pod "$(address "$pod")" "$(address6 "$pod")"
}

start_dns() {
    local -a records=("--host-record=ca.mesh,$(address ca)")
    local pod
    for pod in orders-1 orders-2 orders-3; do
        records+=("--host-record=orders.mesh,$(address "$pod")" "--host-record=orders6.mesh,$(address6 "$pod")")
    done
    in_pod dns dnsmasq --keep-in-foreground --conf-file=/dev/null --user=root --group=root --pid-file= --no-hosts \
        --no-resolv --local=/mesh/ --local-ttl=5 --log-facility=- "${records[@]}" </dev/null >>"$run/dns/dnsmasq.log" 2>&1 &
    process[dns/dnsmasq]=$!
    wait_for 5 in_pod client getent ahostsv4 orders.mesh || give_up "the DNS server does not answer" dns/dnsmasq
}

start_ca() {
    chown "$ca_uid:$ca_uid" "$run/ca"
    as "$ca_uid" ca outrigger-ca init --dir "$run/ca/data" --trust-domain "$trust_domain" --name ca.mesh >>"$run/ca/ca.log" 2>&1 ||
        give_up "the CA could not be made" ca/ca
    as "$ca_uid" ca outrigger-ca bundle show --dir "$run/ca/data" >"$run/ca-bundle.pem" 2>>"$run/ca/ca.log" ||
        give_up "the CA does not show its bundle" ca/ca
    start ca ca "$ca_uid" outrigger-ca serve --dir "$run/ca/data" --listen '[::]:15012'
    wait_for 5 in_pod client bash -c "exec 3<>/dev/tcp/ca.mesh/15012" || give_up "the CA does not listen" ca/ca
}

# A single-use join token for one id and its DNS names, and a configuration that says where to take it.
enrol_and_configure() {
    local pod=$1 home=$run/$1 id dns=()
    case $pod in
        client) id=spiffe://$trust_domain/client ;;
        orders-*) id=spiffe://$trust_domain/orders dns=(--dns orders.mesh --dns orders6.mesh) ;;
    esac
    (umask 077 && as "$ca_uid" ca outrigger-ca token create --dir "$run/ca/data" --id "$id" "${dns[@]}" --ttl 10m \
        >"$home/token" 2>>"$run/ca/ca.log") || give_up "the CA makes no token for $pod" ca/ca
    mkdir -m 700 "$home/identity"
    cat >"$home/sidecar.yaml" <<YAML
identity:
  dir: $home/identity
  ca: { address: "ca.mesh:15012", bundle: $run/ca-bundle.pem, token_file: $home/token$([[ $pod != client ]] || echo ', ttl: 1m') }
YAML
    if [[ $pod == client ]]; then
        # Shorter times than the defaults, so that the ejection and its end can be watched. Two workers, so that it is known
        # how many of them learn of a failing replica, each for itself.
        cat >>"$home/sidecar.yaml" <<'YAML'
workers: 2
services:
- name: orders.mesh
  port: 8080
  outlier_detection: { base_ejection_time: 5s, interval: 1s }
YAML
    fi
    chown -R "$sidecar_uid:$sidecar_uid" "$home/token" "$home/identity"
}

start_sidecar() {
    start "$1" sidecar "$sidecar_uid" outrigger-sidecar run --config "$run/$1/sidecar.yaml"
}

sidecar_ready() { admin "$1" /readyz; }

# --- inside: load -----------------------------------------------------------------------------------------------------

# load NAME SECONDS: the client's application calls orders.mesh over 16 connections; the sum goes to load-NAME.json.
load() {
    local file=$run/client/load-$1.json
    # It exits 1 when a request failed; whether that is wrong is for the claim to say.
    as "$app_uid" client outrigger-workload load --url http://orders.mesh:8080/ --duration "${2}s" --connections 16 --rate 800 \
        --timeout 10s >"$file" 2>>"$run/client/load.log" || true
    jq -e .total "$file" >/dev/null 2>&1
}
sum() { jq -r "$2" "$run/client/load-$1.json"; }
total() { sum "$1" .total; }
failed() { sum "$1" .failed; }
answers_of() { sum "$1" ".replicas[\"$2\"] // 0"; }
errors_500() { sum "$1" '.statuses["500"] // 0'; }

# --- inside: the claims -----------------------------------------------------------------------------------------------
# Each is a function that leaves its evidence in `proof`, and in `why` what was wrong.

shown=0 broken=0 why=''
proof=() logs=()

claim() {
    local text=$1 check=$2 line
    proof=()
    logs=()
    why=''
    shown=$((shown + 1))
    if "$check"; then
        printf '%s✓%s %s\n' "$green" "$plain" "$text"
        ((${#proof[@]} == 0)) || for line in "${proof[@]}"; do note "$line"; done
    else
        broken=$((broken + 1))
        printf '%s✗ %s%s\n' "$red" "$text" "$plain"
        [[ -z $why ]] || printf '    %s%s%s\n' "$red" "$why" "$plain"
        ((${#proof[@]} == 0)) || for line in "${proof[@]}"; do note "$line"; done
        show_logs "${logs[@]}"
    fi
}

wrong() {
    why=$1
    return 1
}

check_answer() {
    logs=(client/sidecar orders-1/sidecar)
    local answer answer6
    answer=$(curl_app client -f http://orders.mesh:8080/ 2>&1) || wrong "curl: $answer" || return
    proof+=("curl http://orders.mesh:8080/   → $answer")
    [[ $answer == *orders-* ]] || wrong "no replica's name in the answer" || return
    [[ -d /proc/sys/net/ipv6 ]] || return 0
    answer6=$(curl_app client -f http://orders6.mesh:8080/ 2>&1) || wrong "over IPv6, curl: $answer6" || return
    proof+=("curl http://orders6.mesh:8080/  → $answer6, over IPv6")
    [[ $answer6 == *orders-* ]] || wrong "no replica's name in the answer over IPv6"
}

# capture NAME COMMAND... and end_capture NAME: the command is tcpdump's beginning, wherever it shall run.
capture() {
    local name=$1 file=$run/captures/$1.pcap
    shift
    "$@" -Z root -U --immediate-mode -n -w "$file" tcp </dev/null 2>"$run/captures/$name.log" &
    process[capture/$name]=$!
    wait_for 5 grep -q 'listening on' "$run/captures/$name.log" || give_up "tcpdump does not start" "../outrigger/captures/$name"
}
end_capture() {
    sleep 0.3
    kill -TERM "${process[capture/$1]}"
    wait "${process[capture/$1]}" || true
}
# How often bytes occur in a capture; the pattern is Perl's.
occurrences() { { LC_ALL=C grep -aoP "$2" "$run/captures/$1.pcap" || true; } | wc -l; }

check_wire() {
    logs=(client/sidecar captures/wire)
    local marker="marker-$RANDOM$RANDOM$RANDOM" answer packets hellos tls13 data on_wire on_loopback http
    capture loopback in_pod client tcpdump -i lo
    answer=$(curl_app client -f -H "x-marker: $marker" --data "$marker" http://orders.mesh:8080/echo 2>&1) || wrong "curl: $answer" || return
    end_capture loopback
    end_capture wire
    # Between the sidecars alone; the CA speaks TLS as well.
    tcpdump -r "$run/captures/wire.pcap" -w "$run/captures/mesh.pcap" 'tcp port 8080' 2>/dev/null
    packets=$(tcpdump -n -r "$run/captures/mesh.pcap" 2>/dev/null | wc -l)
    hellos=$(occurrences mesh '\x16\x03[\x01\x03]..\x01')
    # supported_versions of a ServerHello that chose TLS 1.3 (RFC 8446 section 4.2.1).
    tls13=$(occurrences mesh '\x00\x2b\x00\x02\x03\x04')
    data=$(occurrences mesh '\x17\x03\x03')
    on_wire=$(occurrences wire "$marker")
    http=$(occurrences wire 'HTTP/1\.1|:authority|x-marker')
    on_loopback=$(occurrences loopback "$marker")
    proof+=("between the pods, on port 8080: $packets packets, $hellos ClientHellos, $tls13 answers that chose TLS 1.3, $data encrypted records")
    proof+=("the request's marker: $on_wire times between the pods, $on_loopback times between the client and its own sidecar")
    ((on_loopback > 0)) || wrong "the search finds nothing even where the plaintext is, so it proves nothing" || return
    ((on_wire == 0 && http == 0)) || wrong "plaintext between the pods (marker $on_wire times, HTTP $http times)" || return
    ((packets > 0 && hellos > 0 && tls13 > 0 && data > 0)) || wrong "no TLS 1.3 between the pods"
}

check_caller() {
    logs=(orders-1/sidecar orders-2/sidecar orders-3/sidecar)
    local answer told
    answer=$(curl_app client -f -H 'x-forwarded-client-cert: By=spiffe://evil/a;URI=spiffe://evil/admin' \
        http://orders.mesh:8080/whoami 2>&1) || wrong "curl: $answer" || return
    told=$(jq -r '.headers["x-forwarded-client-cert"] // "nothing"' <<<"$answer") || wrong "no JSON from /whoami: $answer" || return
    proof+=("the application was told   x-forwarded-client-cert: $told")
    proof+=("the client itself had sent x-forwarded-client-cert: By=spiffe://evil/a;URI=spiffe://evil/admin")
    [[ $told =~ (^|;)URI=\"?spiffe://$trust_domain/client\"?($|;) ]] || wrong "that is not the caller's id" || return
    [[ $answer != *evil* ]] || wrong "the header that the client forged was passed on: $answer"
}

check_stranger() {
    logs=(orders-1/sidecar)
    local answer code
    answer=$(curl_app stranger -w '\n%{http_code}' "http://$(address orders-1):8080/" 2>&1) || true
    code=${answer##*$'\n'}
    answer=$(tr '\n' ' ' <<<"${answer%$'\n'*}")
    proof+=("answer $code: $answer")
    [[ $code == 403 && $answer == *mesh* ]] || wrong "it was not refused with the reason" || return
    grep -q mesh_only "$run/orders-1/sidecar.log" || in_pod orders-1 curl -q -fsS http://127.0.0.1:15020/metrics | grep -q mesh_only ||
        wrong "the sidecar of orders-1 does not count the refusal"
}

check_spread() {
    logs=(client/sidecar)
    local all n pod text='' least=100
    load spread 2 || wrong "the load generator failed" || return
    all=$(total spread)
    ((all >= 300)) || wrong "only $all requests in two seconds" || return
    for pod in orders-1 orders-2 orders-3; do
        n=$(answers_of spread "$pod")
        text+="   $pod $n ($((100 * n / all)) %)"
        ((100 * n / all > least)) || least=$((100 * n / all))
    done
    proof+=("$all requests, $(failed spread) failed:$text")
    ((least >= 15)) || wrong "one replica got only $least %" || return
    (($(failed spread) == 0)) || wrong "requests failed"
}

# Load in the background, something done to it after a second, and the end awaited: under_load NAME SECONDS COMMAND...
under_load() {
    local generator
    load "$1" "$2" &
    generator=$!
    sleep 1
    "${@:3}" || { kill "$generator" 2>/dev/null; return 1; }
    wait "$generator" || wrong "the load generator failed"
}

none_failed() {
    local all bad
    all=$(total "$1")
    bad=$(failed "$1")
    proof+=("$all requests, $bad failed${2:+; $2}")
    ((all >= 300)) || wrong "only $all requests were made" || return
    ((bad == 0)) || wrong "$bad of $all requests failed: $(sum "$1" '(.failures | tostring) + " " + (.messages | join("; "))')"
}

# Whether a replica gets requests again.
answers_again() {
    load again 0.3 && (($(answers_of again "$1") > 0))
}

kill_replica() {
    kill -KILL "${process[$1/app]}" "${process[$1/sidecar]}"
    # So that the shell does not announce their end in the middle of ours.
    wait "${process[$1/app]}" "${process[$1/sidecar]}" 2>/dev/null || true
}

check_kill() {
    logs=(client/sidecar)
    under_load kill 4 kill_replica orders-2 || return
    none_failed kill "orders-2 had answered $(answers_of kill orders-2) of them before its application and its sidecar were killed" || return
    (($(answers_of kill orders-2) > 0)) || wrong "orders-2 had no part in it" || return
    start_app orders-2
    start_sidecar orders-2
    wait_for 5 sidecar_ready orders-2 || { logs=(orders-2/sidecar); wrong "its sidecar does not come back"; } || return
    local began=$SECONDS
    wait_for 12 answers_again orders-2 || { logs=(client/sidecar orders-2/sidecar); wrong "orders-2 was started again and gets no requests"; } || return
    proof+=("started again, it answers again after $((SECONDS - began)) s")
}

# How many workers of the client's sidecar say that a replica is ejected.
ejections_of() {
    admin client /endpoints | jq "[.. | objects | select(.address? == \"$(address "$1"):8080\") | .ejected_by_workers | length] | add // 0"
}

# By the detectors' own count: it goes down on outlier_detection.interval, and until then leaves no room for another.
nobody_ejected() { admin client /metrics | grep -Fx 'outrigger_endpoints_ejected{service="orders.mesh"} 0'; }

# Five in a row for each of two workers, and what was on its way meanwhile: at most one request a connection.
most_errors=30

check_ejection() {
    logs=(client/sidecar)
    # The replica that was killed may still be ejected, and of three replicas only one may be at a time.
    wait_for 15 nobody_ejected || wrong "orders-2 is back and still counts as ejected (/metrics: outrigger_endpoints_ejected)" || return
    tell_app orders-3 /control/fail/500 || wrong "orders-3 cannot be made to fail" || return
    # Mended in any case, or every later claim would fail too.
    failing_is_ejected || { tell_app orders-3 /control/ok || true; return 1; }
    tell_app orders-3 /control/ok || wrong "orders-3 cannot be mended" || return
    local began=$SECONDS
    wait_for 12 answers_again orders-3 || wrong "it is mended and gets no requests again" || return
    proof+=("mended, it is back after $((SECONDS - began)) s")
}

failing_is_ejected() {
    local errors ejected
    load learn 1 || wrong "the load generator failed" || return
    ejected=$(ejections_of orders-3) || wrong "no answer of /endpoints" || return
    load after 1 || wrong "the load generator failed" || return
    errors=$(errors_500 learn)
    proof+=("orders-3 answers 500: $errors of $(total learn) requests saw it, then it was ejected (/endpoints: by $ejected of 2 workers)")
    proof+=("then $(total after) requests: $(errors_500 after) answers 500, $(answers_of after orders-3) from orders-3")
    ((errors > 0)) || wrong "it never answered 500, so there was nothing to eject" || return
    ((ejected > 0)) || wrong "/endpoints does not say that it is ejected" || return
    (($(errors_500 after) == 0)) || wrong "it was not ejected" || return
    ((errors <= most_errors)) || wrong "it was ejected after $errors errors; at most $most_errors were expected"
}

certificate() { admin client /certs | jq -r "[.. | objects | select(has(\"$1\"))][0].$1"; }

# Begins its load two seconds before the renewal is due and ends it two seconds after.
check_renewal() {
    logs=(client/sidecar ca/ca)
    local before after due now=0
    for _ in 1 2 3; do
        due=$(certificate next_renewal) || wrong "no answer of /certs" || return
        due=$(date -d "$due" +%s 2>/dev/null) || wrong "/certs does not say when the next renewal is" || return
        now=$(date +%s)
        ((due - now < 2)) || break
        sleep 3
    done
    ((due - now <= 40)) || wrong "the next renewal is $((due - now)) s away; a certificate of one minute was asked for" || return
    ((due - now <= 3)) || step "the client's certificate lives one minute; its renewal is due in $((due - now)) s"
    ((due - now <= 2)) || sleep $((due - now - 2))
    before=$(certificate serial) || return
    under_load renewal 6 true || return
    after=$(certificate serial) || wrong "no answer of /certs" || return
    proof+=("serial $before → $after")
    [[ $before != "$after" ]] || wrong "the certificate was not renewed" || return
    none_failed renewal
}

terminate_sidecar() {
    local pid=${process[$1/sidecar]} status=0 began=${EPOCHREALTIME//[!0-9]/}
    kill -TERM "$pid"
    if ! wait_for 20 eval "! kill -0 $pid"; then wrong "it still runs after 20 s"; return 1; fi
    wait "$pid" || status=$?
    proof+=("its sidecar ended $(((${EPOCHREALTIME//[!0-9]/} - began) / 1000)) ms after SIGTERM with exit status $status")
    ((status == 0)) || wrong "exit status $status"
}

check_exit() {
    logs=(orders-1/sidecar client/sidecar)
    under_load exit 5 terminate_sidecar orders-1 || return
    none_failed exit
}

# --- inside: what happens ---------------------------------------------------------------------------------------------

start_app() { start "$1" app "$app_uid" outrigger-workload serve --name "$1" --http 8080; }
# Told past its sidecar, as an operator in the pod could.
tell_app() { in_pod "$1" curl -q -fsS --noproxy '*' --max-time 2 "http://127.0.0.1:8080$2" >/dev/null; }

inside() {
    local pod began=$SECONDS
    built=$1 keep=$2
    trap 'printf "%s✗ line %d failed: %s%s\n" "$red" "$LINENO" "$BASH_COMMAND" "$plain" >&2' ERR
    step "making pods of network namespaces: dns, ca, client, orders-1, orders-2, orders-3, stranger"
    make_node
    for pod in dns ca "${workloads[@]}" stranger; do make_pod "$pod"; done
    start_dns
    step "making a CA for the trust domain $trust_domain, with a join token for each workload"
    start_ca
    for pod in "${workloads[@]}"; do enrol_and_configure "$pod"; done
    step "redirecting each workload's TCP with outrigger-iptables; starting the applications (uid $app_uid) and their sidecars (uid $sidecar_uid)"
    # From the first mesh connection on, so that its handshake is there to be seen.
    capture wire tcpdump -i br-mesh
    for pod in "${workloads[@]}"; do
        in_pod "$pod" outrigger-iptables install >>"$run/$pod/iptables.log" 2>&1 || give_up "no redirection in $pod" "$pod/iptables"
        start_sidecar "$pod"
        [[ $pod == client ]] || start_app "$pod"
    done
    for pod in "${workloads[@]}"; do
        if ! wait_for 15 sidecar_ready "$pod"; then
            note "/readyz of $pod: $(in_pod "$pod" curl -q -sS --max-time 2 http://127.0.0.1:15000/readyz 2>&1 | tr '\n' ' ')"
            give_up "the sidecar of $pod does not become ready" "$pod/sidecar" ca/ca
        fi
    done
    echo
    claim "a request to http://orders.mesh:8080/ is answered through the mesh" check_answer
    claim "between the pods there is TLS 1.3 and no plaintext" check_wire
    claim "the application is told which SPIFFE id calls, and a forged one is removed" check_caller
    claim "an unenrolled client is refused and told why" check_stranger
    claim "load is spread over three replicas" check_spread
    claim "a replica's application and sidecar are killed under load and no request fails" check_kill
    claim "a replica that answers 500 is ejected and comes back" check_ejection
    claim "the certificate is renewed under load and no request fails" check_renewal
    claim "a sidecar told to stop under load finishes its work, loses nothing and exits 0" check_exit
    printf '\n%s%d claims shown, %d failed%s, in %d s after the build\n' "$bold" "$((shown - broken))" "$broken" "$plain" "$((SECONDS - began))"
    [[ $keep == no ]] || stay "$3"
    ((broken == 0)) || exit 1
}

stay() {
    local me=$1
    start_sidecar orders-1
    wait_for 5 sidecar_ready orders-1 || note "the sidecar of orders-1, which was told to stop, does not start again"
    cat <<TEXT

Everything is still running. From another terminal, for instance:

  $me --enter client curl -s http://orders.mesh:8080/whoami
  $me --enter client curl -s http://127.0.0.1:15000/certs
  $me --enter client curl -s http://127.0.0.1:15000/endpoints
  $me --enter client curl -s http://127.0.0.1:15020/metrics
  $me --enter orders-1 outrigger-iptables print
  $me --enter orders-1 nft list ruleset
  $me --enter node tcpdump -Z root -ni br-mesh -A tcp port 8080
  $me --enter node tail -F $run/client/sidecar.log
  $me --enter stranger

Ctrl-C here ends it and removes everything.
TEXT
    while :; do sleep 3600; done
}

keep=no built='' called=$0
[[ -z ${SUDO_USER-} ]] || called="sudo $called"
case ${1-} in
    --help | -h)
        (($# == 1)) || { usage >&2; exit 2; }
        usage
        ;;
    --enter)
        (($# >= 2)) || { usage >&2; exit 2; }
        shift
        enter "$@"
        ;;
    --inside)
        [[ $$ == 1 ]] || cannot_begin "--inside is how the script calls itself in its own namespaces"
        inside "$2" "$3" "${4-$called}"
        ;;
    *)
        while (($#)); do
            case $1 in
                --keep) keep=yes ;;
                --bin)
                    [[ -n ${2-} ]] || { usage >&2; exit 2; }
                    built=$2
                    shift
                    ;;
                *) usage >&2; exit 2 ;;
            esac
            shift
        done
        outside
        ;;
esac
