//! The redirection as the kernel carries it out: real rules, real connections, both families, every backend.
//!
//! Runs as root; fails, and says so, when it is not.

use std::{os::unix::process::CommandExt, process::Command, thread};

use crate::support::{APP, Namespace, PROXY, Pair, ROOT, Tools, said, state};
use nix::unistd::{Gid, Uid};
use socket2::{Domain, Protocol, Socket, Type};

/// With more ports than one `multiport` can hold, and edges on both sides of ranges.
fn options() -> String {
    let many = (0..20).map(|n| (4000 + 2 * n).to_string()).collect::<Vec<_>>().join(",");
    format!(
        "--exclude-inbound-ports 22,9000-9010 --exclude-outbound-ports 25,3000-3009,{many} \
         --exclude-outbound-cidrs 192.0.2.0/24,2001:db8::/32"
    )
}

/// Every journey lands where the plan says.
fn matrix(tools: &Tools) {
    let Pair { pod, peer } = &Pair::new();
    tools.must(pod, &format!("install {}", options()));
    let mut wrong = Vec::new();
    let mut expect = |from: &Namespace, uid: u32, source: Option<&str>, to: &str, port: u16, wanted: &str| {
        let landed = from.dial(uid, source, to, port).landed;
        if landed != wanted && !landed.starts_with(&format!("{wanted} from ")) {
            wrong.push(format!("uid {uid} from {source:?} to {to} port {port}: wanted {wanted:?}, got {landed:?}"));
        }
    };
    for (own, other, loopback, leg) in
        [("10.77.1.2", "10.77.1.1", "127.0.0.1", "127.0.0.6"), ("fd77:1::2", "fd77:1::1", "::1", "::6")]
    {
        let at = |ip: &str, port: u16| std::net::SocketAddr::new(ip.parse().unwrap(), port).to_string();
        for port in [8080, 8999, 9011, 15000, 15001, 15006] {
            expect(peer, ROOT, None, own, port, &format!("inbound {}", at(own, port)));
        }
        for port in [22, 9000, 9010, 15020] {
            expect(peer, ROOT, None, own, port, &format!("direct {port} from {other}"));
        }
        for uid in [APP, ROOT] {
            expect(pod, uid, None, other, 80, &format!("outbound {} from {own}", at(other, 80)));
        }
        expect(pod, PROXY, None, other, 80, &format!("direct 80 from {own}"));
        for uid in [APP, PROXY] {
            expect(pod, uid, None, loopback, 8080, &format!("direct 8080 from {loopback}"));
        }
        expect(pod, APP, None, own, 8080, &format!("direct 8080 from {own}"));
        expect(pod, PROXY, None, own, 8080, &format!("inbound {} from {own}", at(own, 8080)));
        expect(pod, PROXY, None, own, 15001, &format!("inbound {} from {own}", at(own, 15001)));
        expect(pod, PROXY, None, own, 22, &format!("direct 22 from {own}"));
        expect(pod, PROXY, Some(leg), own, 8080, &format!("direct 8080 from {leg}"));
        for port in [25, 3000, 3009, 4038] {
            expect(pod, APP, None, other, port, &format!("direct {port} from {own}"));
        }
        expect(pod, APP, None, other, 3010, &format!("outbound {}", at(other, 3010)));
    }
    for (excluded, wanted) in [("192.0.2.1", "direct 80"), ("198.51.100.1", "outbound 198.51.100.1:80")] {
        expect(pod, APP, None, excluded, 80, wanted);
    }
    for (excluded, wanted) in [("2001:db8::1", "direct 80"), ("2001:db9::1", "outbound [2001:db9::1]:80")] {
        expect(pod, APP, None, excluded, 80, wanted);
    }
    // Link-local: taken when it arrives, left alone when it leaves.
    expect(peer, ROOT, None, "fe80::2", 8080, "inbound [fe80::2]:8080 from fe80::1");
    expect(pod, APP, None, "fe80::1", 80, "direct 80 from fe80::2");
    expect(pod, APP, None, "fe80::2", 8080, "direct 8080 from fe80::2");
    expect(pod, PROXY, None, "fe80::2", 8080, "direct 8080 from fe80::2");
    assert!(wrong.is_empty(), "{} of the journeys went wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_journey_with_nft() {
    matrix(&Tools::nft());
}

#[test]
fn every_journey_with_iptables_nft() {
    matrix(&Tools::iptables("iptables-nft"));
}

#[test]
fn every_journey_with_iptables_legacy() {
    matrix(&Tools::iptables("iptables-legacy"));
}

/// Open connections, direct and redirected, live through every install; repeating changes nothing; a user's own DNAT
/// stays, behind ours; remove leaves every table, address, route and rule as it was.
fn lifecycle(tools: &Tools, own_rule: &str) {
    let Pair { pod, peer } = &Pair::new();
    tools.sh(pod, own_rule);
    let before = state(pod);
    let mut calls = vec![
        ("peer to pod, before", peer.dial(ROOT, None, "10.77.1.2", 8080)),
        ("peer to pod by IPv6, before", peer.dial(ROOT, None, "fd77:1::2", 8080)),
        ("app to peer, before", pod.dial(APP, None, "10.77.1.1", 80)),
        ("app to peer by IPv6, before", pod.dial(APP, None, "fd77:1::1", 80)),
    ];
    assert_eq!(peer.dial(ROOT, None, "10.77.1.2", 8088).landed, "direct 8080 from 10.77.1.1", "the user's own DNAT");
    let alive = |calls: &mut Vec<(&str, crate::support::Call)>, when: &str| {
        for (name, call) in calls {
            assert!(call.is_alive(), "the connection {name:?} (landed {:?}) died {when}", call.landed);
        }
    };
    alive(&mut calls, "before anything was done");

    tools.must(pod, "install");
    alive(&mut calls, "by the first install");
    let first = state(pod);
    assert_ne!(first, before);
    let redirected = [
        ("peer to pod", peer.dial(ROOT, None, "10.77.1.2", 8080), "inbound 10.77.1.2:8080 from 10.77.1.1"),
        ("peer to pod by IPv6", peer.dial(ROOT, None, "fd77:1::2", 8080), "inbound [fd77:1::2]:8080 from fd77:1::1"),
        ("app to peer", pod.dial(APP, None, "10.77.1.1", 80), "outbound 10.77.1.1:80 from 10.77.1.2"),
        ("app to peer by IPv6", pod.dial(APP, None, "fd77:1::1", 80), "outbound [fd77:1::1]:80 from fd77:1::2"),
        ("past the user's DNAT", peer.dial(ROOT, None, "10.77.1.2", 8088), "inbound 10.77.1.2:8088 from 10.77.1.1"),
    ];
    for (name, call, wanted) in redirected {
        assert_eq!(call.landed, wanted, "{name}");
        calls.push((name, call));
    }

    tools.must(pod, "install");
    alive(&mut calls, "by the second install");
    assert_eq!(state(pod), first, "the second install changed something");
    tools.must(pod, "install --exclude-inbound-ports 22 --exclude-outbound-cidrs 192.0.2.0/24,2001:db8::/32");
    alive(&mut calls, "by an install with other options");
    assert_ne!(state(pod), first, "new options changed nothing");
    tools.must(pod, "install");
    assert_eq!(state(pod), first, "going back to the first options did not");

    // Twelve at once, half of them with other options: still one set, no doubled jump.
    thread::scope(|scope| {
        for n in 0..12 {
            scope.spawn(move || {
                tools.must(pod, if n % 2 == 0 { "install" } else { "install --exclude-inbound-ports 22" })
            });
        }
    });
    tools.must(pod, "install");
    assert_eq!(state(pod), first, "parallel installs left something behind");
    alive(&mut calls, "by parallel installs");

    tools.must(pod, "remove");
    assert_eq!(state(pod), before, "remove left something behind");
    let again = tools.must(pod, "remove");
    assert!(again.contains("nothing to do"), "{again}");
    assert_eq!(peer.dial(ROOT, None, "10.77.1.2", 8088).landed, "direct 8080 from 10.77.1.1", "the user's own DNAT");
    calls.truncate(4);
    alive(&mut calls, "by remove, though it was never redirected");
}

#[test]
fn a_life_with_nft() {
    let rule = "nft add table ip mine; nft 'add chain ip mine pre { type nat hook prerouting priority dstnat; }'
                nft add rule ip mine pre tcp dport 8088 redirect to :8080";
    lifecycle(&Tools::nft(), rule);
}

#[test]
fn a_life_with_iptables_nft() {
    // `nat PREROUTING` exists before, `nat OUTPUT` and `mangle` do not.
    let rule = "iptables -t nat -A PREROUTING -p tcp --dport 8088 -j DNAT --to-destination 10.77.1.2:8080";
    lifecycle(&Tools::iptables("iptables-nft"), rule);
}

#[test]
fn a_life_with_iptables_legacy() {
    // A legacy table cannot be unregistered by anything, so all that are used are there before.
    let rule = "iptables -t nat -A PREROUTING -p tcp --dport 8088 -j DNAT --to-destination 10.77.1.2:8080
                iptables -t mangle -S; ip6tables -t mangle -S; ip6tables -t nat -S";
    lifecycle(&Tools::iptables("iptables-legacy"), rule);
}

#[test]
fn a_refusal_for_ipv6_undoes_ipv4_and_names_the_rule() {
    for multi in ["iptables-nft", "iptables-legacy"] {
        let (pod, tools) = (Namespace::new(), Tools::iptables(multi));
        tools.sh(
            &pod,
            "if [ $(iptables --version | grep -c nf_tables) = 0 ]; then iptables -t nat -S; iptables -t mangle -S; fi",
        );
        let broken = Tools::iptables(multi);
        let refuse =
            "line=$(grep -n -m1 REDIRECT | cut -d: -f1); echo \"ip6tables-restore: line $line failed\" >&2; exit 1";
        broken.replace("ip6tables-restore", refuse);
        for earlier in [None, Some("install --exclude-inbound-ports 22,23 --proxy-uid 7")] {
            if let Some(command) = earlier {
                tools.must(&pod, command);
            }
            let before = state(&pod);
            let output = broken.outrigger(&pod, &format!("install --backend {multi}"));
            let words = said(&output);
            assert_eq!(output.status.code(), Some(5), "{words}");
            assert!(
                words.contains("ip6tables-restore --noflush -w 30") && words.contains("rule at fault: -"),
                "{words}"
            );
            assert_eq!(state(&pod), before, "IPv4 was not undone with {multi}, earlier install: {earlier:?}");
        }
    }
}

#[test]
fn auto_says_what_it_chose_and_why_and_cleans_up_after_another_backend() {
    let (pod, tools) = (Namespace::new(), Tools::iptables("iptables-nft"));
    let before = state(&pod);
    let output = tools.outrigger(&pod, "install");
    assert!(output.status.success() && said(&output).contains("done with nft: nft is here"), "{}", said(&output));
    let with_nft = state(&pod);

    // With an nft that does not work, iptables takes over; the next run with a working one takes it back.
    let broken = Tools::iptables("iptables-nft");
    broken.replace("nft", "echo 'nft: cannot work today' >&2; exit 1");
    let output = broken.outrigger(&pod, "install");
    let words = said(&output);
    assert!(output.status.success() && words.contains("done with iptables"), "{words}");
    assert!(words.contains("cannot work today") && words.contains("(nf_tables)"), "{words}");
    let output = tools.outrigger(&pod, "install --json");
    let report = said(&output);
    assert!(report.contains(r#""backends":["nft"]"#) && report.contains("removed an earlier set"), "{report}");
    let ours = state(&pod);
    assert!(!ours.contains("OUTRIGGER_"), "rules of iptables remain:\n{ours}");
    assert!(ours.contains(with_nft.split("table ip").next().unwrap()), "{ours}");

    // Legacy rules are found too, without asking legacy tables into being when there are none.
    assert!(!ours.contains("*nat"), "looking has registered a legacy table:\n{ours}");
    Tools::iptables("iptables-legacy").must(&pod, "install");
    assert!(state(&pod).contains("-j OUTRIGGER_INBOUND") && !state(&pod).contains("table inet outrigger"));
    let output = tools.outrigger(&pod, "remove");
    assert!(output.status.success(), "{}", said(&output));
    let after = state(&pod);
    assert!(!after.contains("OUTRIGGER") && !after.contains("outrigger") && !after.contains("::6"), "{after}");
    assert!(!before.contains("::6"));

    // Where there is nothing of ours, an address that somebody else has added is theirs.
    pod.sh("ip -6 addr add ::6/128 dev lo");
    let output = tools.outrigger(&pod, "remove");
    assert!(output.status.success() && state(&pod).contains("::6/128"), "{}", said(&output));
}

#[test]
fn a_tool_that_does_not_work_keeps_no_rules_of_another_in_place() {
    let (pod, tools) = (Namespace::new(), Tools::iptables("iptables-nft"));
    tools.replace("nft", "echo 'nft: cannot work today' >&2; exit 1");
    assert!(tools.outrigger(&pod, "install").status.success());
    assert!(state(&pod).contains("OUTRIGGER_") && state(&pod).contains("::6"), "{}", state(&pod));
    let output = tools.outrigger(&pod, "remove");
    let words = said(&output);
    assert!(output.status.success(), "{words}");
    assert!(!state(&pod).contains("OUTRIGGER_") && !state(&pod).contains("::6"), "{}", state(&pod));
    // With rules there that only this tool could remove, it does not claim that nothing is there.
    Tools::nft().must(&pod, "install");
    let output = tools.outrigger(&pod, "remove");
    assert!(!output.status.success() && said(&output).contains("cannot work today"), "{}", said(&output));
    assert!(state(&pod).contains("table inet outrigger"));
}

#[test]
fn without_ipv6_it_says_so_and_ipv4_works() {
    for tools in [Tools::nft(), Tools::iptables("iptables-nft")] {
        let pod = Namespace::new();
        pod.sh("for file in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > $file; done");
        let before = state(&pod);
        for _ in 0..2 {
            let words = tools.must(&pod, "install");
            assert!(words.contains("disable_ipv6 is 1"), "{words}");
        }
        pod.listen(PROXY, 15001, "outbound");
        pod.sh("ip link add eth0 type veth peer name eth1; ip link set eth0 up; ip addr add 10.77.1.2/24 dev eth0");
        assert_eq!(pod.dial(APP, None, "10.77.1.1", 80).landed, "outbound 10.77.1.1:80 from 10.77.1.2");
        pod.sh("ip link del eth0");
        tools.must(&pod, "remove");
        assert_eq!(state(&pod), before);
    }
}

/// A VM that forwards for its containers goes on doing so, even for the ports of the workload.
#[test]
fn what_is_forwarded_for_others_goes_on_to_them() {
    for tools in [Tools::nft(), Tools::iptables("iptables-nft"), Tools::iptables("iptables-legacy")] {
        let Pair { pod, peer } = &Pair::new();
        let beyond = Namespace::new();
        let quick = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad";
        beyond.sh(quick);
        pod.sh(&format!(
            "ip link add eth1 type veth peer name eth0 netns {}
             ip addr add 10.77.2.2/24 dev eth1; ip -6 addr add fd77:2::2/64 dev eth1; ip link set eth1 up
             echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
            beyond.path()
        ));
        beyond.sh("ip addr add 10.77.2.3/24 dev eth0; ip -6 addr add fd77:2::3/64 dev eth0; ip link set eth0 up
             ip route add default via 10.77.2.2; ip -6 route add default via fd77:2::2");
        peer.sh("ip route add 10.77.2.0/24 via 10.77.1.2; ip -6 route add fd77:2::/64 via fd77:1::2");
        beyond.listen(ROOT, 8080, "direct");
        tools.must(pod, "install");
        assert_eq!(peer.dial(ROOT, None, "10.77.2.3", 8080).landed, "direct 8080 from 10.77.1.1");
        assert_eq!(peer.dial(ROOT, None, "fd77:2::3", 8080).landed, "direct 8080 from fd77:1::1");
        assert_eq!(peer.dial(ROOT, None, "10.77.1.2", 8080).landed, "inbound 10.77.1.2:8080 from 10.77.1.1");
    }
}

/// An init container: read-only root, so no lock file; only NET_ADMIN and NET_RAW.
#[test]
fn a_read_only_root_and_two_capabilities_are_enough() {
    for tools in [Tools::nft(), Tools::iptables("iptables-nft"), Tools::iptables("iptables-legacy")] {
        let pod = Namespace::new();
        let program = env!("CARGO_BIN_EXE_outrigger-iptables");
        let output = pod.sh(&format!(
            "PATH={}; unshare -m sh -ec 'mount -t tmpfs -o ro none /run
             exec setpriv --bounding-set=-all,+net_admin,+net_raw --inh-caps=-all,+net_admin,+net_raw \
                {program} install --backend {} 2>&1'",
            tools.path(),
            tools.backend
        ));
        assert!(output.contains("install: done"), "{output}");
        assert!(state(&pod).to_lowercase().contains("outrigger") && state(&pod).contains("::6/128"));
    }
}

/// Both locks: ours on the namespace, and the one that every legacy iptables on the machine shares.
#[test]
fn a_lock_that_is_held_for_too_long_is_named() {
    let (pod, tools) = (&Namespace::new(), &Tools::iptables("iptables-legacy"));
    let other = &Namespace::new();
    let before = (state(pod), state(other));
    // A lock file of this test's own: the machine's is shared with the tests beside.
    let file = tools.folder.path().join("xtables.lock");
    tools.replace(
        "iptables-restore",
        &format!("XTABLES_LOCKFILE={} exec /usr/sbin/iptables-legacy-restore \"$@\"", file.display()),
    );
    let held = |path: &str| {
        let file = std::fs::OpenOptions::new().read(true).open(path).unwrap();
        nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno).unwrap()
    };
    std::fs::write(&file, "").unwrap();
    let _locks = (held(&pod.path()), held(file.to_str().unwrap()));
    thread::scope(|scope| {
        for (namespace, words) in [(pod, "another outrigger-iptables"), (other, "xtables lock")] {
            scope.spawn(move || {
                let output = tools.outrigger(namespace, &format!("install --wait 1 --backend {}", tools.backend));
                assert_eq!(output.status.code(), Some(8), "{}", said(&output));
                assert!(said(&output).contains(words), "{}", said(&output));
            });
        }
    });
    assert_eq!((state(pod), state(other)), before);
}

#[test]
fn another_namespace_is_entered_and_this_one_left_alone() {
    let (here, there, tools) = (Namespace::new(), Namespace::new(), Tools::nft());
    let before = (state(&here), state(&there));
    tools.must(&here, &format!("install --netns {}", there.path()));
    assert_eq!(state(&here), before.0);
    assert!(state(&there).contains("table inet outrigger"));
    tools.must(&here, &format!("remove --netns {}", there.path()));
    assert_eq!(state(&there), before.1);
    let output = tools.outrigger(&here, "install --netns /dev/null");
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
}

#[test]
fn without_privilege_print_works_and_install_says_what_is_missing() {
    let pod = Namespace::new();
    let before = state(&pod);
    let nobody = |command: &str| {
        pod.run(ROOT, || {
            // setuid in the child drops its capabilities; the path must be reachable for nobody, so a copy is run.
            let folder =
                tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir();
            let copy = folder.as_ref().unwrap().path().join("outrigger-iptables");
            std::fs::copy(env!("CARGO_BIN_EXE_outrigger-iptables"), &copy).unwrap();
            let (uid, gid) = (Uid::from_raw(65534).as_raw(), Gid::from_raw(65534).as_raw());
            Command::new(copy).args(command.split(' ')).uid(uid).gid(gid).output().unwrap()
        })
    };
    for backend in ["auto", "nft", "iptables-nft", "iptables-legacy"] {
        let output = nobody(&format!("install --backend {backend}"));
        let words = said(&output);
        assert_eq!(output.status.code(), Some(3), "{backend}: {words}");
        assert!(words.contains("NET_ADMIN"), "{backend}: {words}");
        let output = nobody(&format!("print --backend {backend} --exclude-outbound-ports 3306"));
        assert!(
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("3306"),
            "{}",
            said(&output)
        );
    }
    assert_eq!(state(&pod), before);
}

/// What `print` shows is what the tools take: the printed script alone does what `install` does.
#[test]
fn what_is_printed_is_what_is_installed() {
    let (printed, installed, tools) = (Namespace::new(), Namespace::new(), Tools::nft());
    let output = tools.outrigger(&printed, &format!("print --backend nft {}", options()));
    let script = tools.folder.path().join("script");
    std::fs::write(&script, &output.stdout).unwrap();
    printed.sh(&format!("nft -f {}", script.display()));
    tools.must(&installed, &format!("install {}", options()));
    assert_eq!(printed.sh("nft list ruleset"), installed.sh("nft list ruleset"));
    assert!(printed.sh("nft list ruleset").contains("table inet outrigger"));
}

/// A segment out of the window of a redirected connection passes NAT untouched, and the application's port would answer
/// it with a reset. The pod's own counter of resets sent tells.
#[test]
fn a_stray_segment_is_answered_with_silence() {
    let Pair { pod, peer } = &Pair::new();
    let resets = || {
        let text = pod.sh("cat /proc/thread-self/net/snmp");
        let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let index = names.split(' ').position(|name| name == "OutRsts").unwrap();
        values.split(' ').nth(index).unwrap().parse::<u64>().unwrap()
    };
    Tools::nft().must(pod, "install");
    let mut call = peer.dial(ROOT, None, "10.77.1.2", 8080);
    assert_eq!(call.landed, "inbound 10.77.1.2:8080 from 10.77.1.1");
    let before = resets();
    send_stray(peer, call.local_port());
    assert!(call.is_alive());
    assert_eq!(resets(), before, "the pod has reset the stray segment's connection");
    // The same without that rule, to know that this test can fail.
    pod.sh("nft flush chain inet outrigger invalid");
    send_stray(peer, call.local_port());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(3);
    while resets() == before && std::time::Instant::now() < deadline {
        thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(resets() > before, "without the rule nothing was reset either: the segment was not stray");
}

/// ACKs all over the sequence space, from 10.77.1.1:`port` to 10.77.1.2:8080. One would do, but whether it lies before
/// the window (then connection tracking lets it be) or beyond depends on the connection's random start.
fn send_stray(peer: &Namespace, port: u16) {
    peer.run(ROOT, || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
        let to: std::net::SocketAddr = "10.77.1.2:0".parse().unwrap();
        for step in 0..64_u32 {
            let (sequence, acknowledged) = ((step % 8) << 29, (step / 8) << 29);
            socket.send_to(&ack_segment(port, sequence, acknowledged), &to.into()).unwrap();
        }
    });
}

fn ack_segment(port: u16, sequence: u32, acknowledged: u32) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(port.to_be_bytes());
    segment.extend(8080_u16.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([5 << 4, 0x10, 0xff, 0xff, 0, 0, 0, 0]); // header length, ACK, window, checksum, urgent
    let pseudo = [10, 77, 1, 1, 10, 77, 1, 2, 0, 6, 0, 20];
    let words = pseudo.iter().chain(&segment).copied().collect::<Vec<u8>>();
    let mut sum: u32 = words.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    segment[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    segment
}
