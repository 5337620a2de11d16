//! From the first install to the last remove: nothing that is open breaks, and nothing remains.

use std::thread;

use crate::support::{APP, Call, Pair, ROOT, Tools, state};

/// Open connections, direct and redirected, live through every install; repeating changes nothing; a user's own DNAT
/// stays, behind ours; remove leaves every table, address, route and rule as it was.
fn lifecycle(tools: &Tools, mode: &str, own_rule: &str) {
    let Pair { pod, peer } = &Pair::new();
    tools.prepare(pod);
    tools.sh(pod, own_rule);
    let install = &format!("install --mode {mode}");
    let before = state(pod);
    let mut calls = vec![
        ("peer to pod, before", peer.dial(ROOT, None, "10.77.1.2", 8080)),
        ("peer to pod by IPv6, before", peer.dial(ROOT, None, "fd77:1::2", 8080)),
        ("app to peer, before", pod.dial(APP, None, "10.77.1.1", 80)),
        ("app to peer by IPv6, before", pod.dial(APP, None, "fd77:1::1", 80)),
    ];
    assert_eq!(peer.dial(ROOT, None, "10.77.1.2", 8088).landed, "direct 8080 from 10.77.1.1", "the user's own DNAT");
    let alive = |calls: &mut Vec<(&str, Call)>, when: &str| {
        for (name, call) in calls {
            assert!(call.is_alive(), "the connection {name:?} (landed {:?}) died {when}", call.landed);
        }
    };
    alive(&mut calls, "before anything was done");

    tools.must(pod, install);
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

    tools.must(pod, install);
    alive(&mut calls, "by the second install");
    assert_eq!(state(pod), first, "the second install changed something");
    tools.must(
        pod,
        &format!("{install} --exclude-inbound-ports 22 --exclude-outbound-cidrs 192.0.2.0/24,2001:db8::/32"),
    );
    alive(&mut calls, "by an install with other options");
    assert_ne!(state(pod), first, "new options changed nothing");
    tools.must(pod, install);
    assert_eq!(state(pod), first, "going back to the first options did not");

    // Twelve at once, half of them with other options: still one set, no doubled jump.
    thread::scope(|scope| {
        for n in 0..12 {
            scope.spawn(move || {
                tools.must(
                    pod,
                    &if n % 2 == 0 { install.clone() } else { format!("{install} --exclude-inbound-ports 22") },
                )
            });
        }
    });
    tools.must(pod, install);
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

/// Of the user's own: a redirection of 8088 to 8080.
const NFT: &str = "nft add table ip mine; nft 'add chain ip mine pre { type nat hook prerouting priority dstnat; }'
                   nft add rule ip mine pre tcp dport 8088 redirect to :8080";
/// `nat PREROUTING` exists before, `nat OUTPUT`, `mangle` and `raw` do not.
const IPTABLES: &str = "iptables -t nat -A PREROUTING -p tcp --dport 8088 -j DNAT --to-destination 10.77.1.2:8080";

#[test]
fn a_life_with_nft() {
    lifecycle(&Tools::nft(), "redirect", NFT);
}

#[test]
fn a_life_with_iptables_nft() {
    lifecycle(&Tools::iptables("iptables-nft"), "redirect", IPTABLES);
}

#[test]
fn a_life_with_iptables_legacy() {
    lifecycle(&Tools::iptables("iptables-legacy"), "redirect", IPTABLES);
}

#[test]
fn a_life_with_nft_and_tproxy() {
    lifecycle(&Tools::nft(), "tproxy --dns-port 15053 --close-wait-timeout 1h", NFT);
}

#[test]
fn a_life_with_iptables_nft_and_tproxy() {
    lifecycle(&Tools::iptables("iptables-nft"), "tproxy --dns-port 15053 --close-wait-timeout 1h", IPTABLES);
}

#[test]
fn a_life_with_iptables_legacy_and_tproxy() {
    lifecycle(&Tools::iptables("iptables-legacy"), "tproxy --dns-port 15053 --close-wait-timeout 1h", IPTABLES);
}
