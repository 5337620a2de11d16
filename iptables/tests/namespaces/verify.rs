//! `verify` passes where the redirection works, and names the rule at fault where it does not.

use std::{thread, time::Instant};

use crate::support::{Namespace, Pair, Tools, assert_same, said, state};

const ALL: &str = "--dns-port 15053 --close-wait-timeout 1h --exclude-outbound-cidrs 192.0.2.0/24,2001:db8::/32";

/// Before the sidecar runs, and beside it; in an empty namespace without any route, and in a pod.
#[test]
fn it_works_with_every_backend_and_mode_and_leaves_no_trace() {
    thread::scope(|scope| {
        for mode in ["redirect", "tproxy"] {
            for tools in Tools::all() {
                scope.spawn(move || {
                    let (empty, pair) = (Namespace::new(), Pair::new());
                    for pod in [&empty, &pair.pod] {
                        let options = format!("--mode {mode} {ALL}");
                        tools.must(pod, &format!("install {options}"));
                        let before = state(pod);
                        let start = Instant::now();
                        let output = tools.outrigger(pod, &format!("verify {options}"));
                        let took = start.elapsed();
                        let words = said(&output);
                        assert_eq!(output.status.code(), Some(0), "{} {mode}: {words}", tools.backend);
                        assert!(took.as_secs_f64() < 2.0 || cfg!(debug_assertions), "it took {took:?}");
                        // Three kinds of connections and DNS, two families, and the three comparisons.
                        assert_eq!(words.matches('✓').count(), 11, "{words}");
                        assert_eq!(state(pod), before, "{} {mode}: verify left something", tools.backend);
                    }
                });
            }
        }
    });
}

/// Every rule of the table, one after the other; what fails has to be waited for, so several at once.
#[test]
fn a_missing_rule_is_named() {
    const OPTIONS: &str = "--mode tproxy --dns-port 15053";
    let (pod, tools) = (Namespace::new(), &Tools::nft());
    tools.must(&pod, &format!("install {OPTIONS}"));
    let listing = pod.sh("nft list table inet outrigger");
    let (mut chain, mut rules) = (String::new(), Vec::new());
    for line in listing.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("chain ") {
            chain = rest.split(' ').next().unwrap().to_owned();
        } else if let Some((_, comment)) = line.split_once("comment ") {
            rules.push((chain.clone(), comment.trim_matches('"').to_owned()));
        }
    }
    assert!(rules.len() > 30, "{listing}");
    let rules = std::sync::Mutex::new(rules);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let pod = &Namespace::new();
                loop {
                    let Some((chain, comment)) = rules.lock().unwrap().pop() else { break };
                    tools.must(pod, &format!("install {OPTIONS}"));
                    let listing = pod.sh(&format!("nft -a list chain inet outrigger {chain}"));
                    let line = listing.lines().find(|line| line.contains(&format!("comment \"{comment}\""))).unwrap();
                    let handle = line.rsplit(' ').next().unwrap();
                    pod.sh(&format!("nft delete rule inet outrigger {chain} handle {handle}"));
                    let output = tools.outrigger(pod, &format!("verify {OPTIONS}"));
                    let words = said(&output);
                    assert_eq!(output.status.code(), Some(9), "without {chain}/{comment}: {words}");
                    let wanted = format!("the rule at fault: {chain}: ");
                    assert!(words.contains(&wanted), "without {chain}/{comment}: {words}");
                }
            });
        }
    });
}

/// The connections alone tell, where the rules are all there: a rule of somebody else that decides before ours.
#[test]
fn a_rule_of_somebody_else_that_decides_first_is_found_out_by_connections() {
    let tools = Tools::nft();
    let chain = |hook: &str, rule: &str| {
        format!(
            "nft add table inet theirs; nft 'add chain inet theirs c {{ {hook}; }}'; nft 'add rule inet theirs c {rule}'"
        )
    };
    for (what, script, wanted) in [
        (
            "a redirection of theirs on the way in",
            chain("type nat hook prerouting priority -150", "meta l4proto tcp redirect to :9"),
            [
                "a peer's connection reaches the sidecar",
                "the rule at fault: inbound: meta l4proto tcp redirect to :15006",
            ],
        ),
        (
            "a redirection of theirs on the way out",
            chain("type nat hook output priority -150", "tcp dport != 53 redirect to :9"),
            [
                "the application's connection reaches the sidecar",
                "the rule at fault: outbound: meta l4proto tcp redirect to :15001",
            ],
        ),
        (
            "a firewall",
            chain("type filter hook input priority 0", "tcp dport 15006 drop"),
            ["a peer's connection reaches the sidecar", "a firewall drops it"],
        ),
    ] {
        let pod = Namespace::new();
        tools.must(&pod, "install");
        let output = tools.outrigger(&pod, "verify");
        assert_eq!(output.status.code(), Some(0), "before {what}: {}", said(&output));
        pod.sh(&script);
        let output = tools.outrigger(&pod, "verify");
        let words = said(&output);
        assert_eq!(output.status.code(), Some(9), "{what}: {words}");
        for wanted in wanted {
            assert!(words.contains(wanted), "{what}: {wanted:?} is not in {words}");
        }
        assert!(words.contains("✓ rules"), "{what}: {words}");
    }
}

#[test]
fn other_options_half_a_set_and_none_are_told_apart() {
    for tools in Tools::all() {
        let pod = Namespace::new();
        let run = |command: &str| {
            let output = tools.outrigger(&pod, command);
            (output.status.code().unwrap(), said(&output))
        };
        let (code, words) = run("verify --json");
        assert!(
            code == 9 && words.contains("no rules of ours are here") && words.contains("\"works\":false"),
            "{words}"
        );
        assert_eq!(run("status").0, 10);
        tools.must(&pod, "install");
        assert_eq!(run("status").0, 0);
        let (code, words) = run("verify --dns-port 15053");
        assert!(code == 9 && words.contains("missing"), "{words}");
        let (code, words) = run("verify --exclude-uids 3");
        assert!(code == 9 && words.contains("are missing"), "{words}");
        // As rules of a version that said something else would be.
        let (code, words) = run("verify --proxy-uid 7");
        assert!(code == 9 && words.contains("by another version; install again"), "{words}");
        // What it stands on.
        pod.sh("ip -6 addr del ::6/128 dev lo");
        let (code, words) = run("verify");
        assert!(code == 9 && words.contains("the address ::6/128 on lo"), "{words}");
        let (code, words) = run("status --json");
        assert!(code == 0 && words.contains(tools.backend), "{words}");
        tools.must(&pod, "remove");
        pod.sh("ip -6 addr add ::6/128 dev lo preferred_lft 0");
        let (code, words) = run("status");
        assert!(code == 9 && words.contains("a run was cut off"), "{words}");
    }
}

/// Chains of ours without their rules, and the rule of a verify that was killed after its interface had gone.
#[test]
fn what_is_there_without_its_rules_is_no_redirection_and_not_nothing() {
    for tools in Tools::all() {
        let pod = Namespace::new();
        tools.prepare(&pod);
        let nothing = state(&pod);
        let run = |command: &str| {
            let output = tools.outrigger(&pod, command);
            (output.status.code().unwrap(), said(&output))
        };
        let flush = |chain: &str| match tools.backend {
            "nft" => _ = pod.sh(&format!("nft flush chain inet outrigger {}", chain.to_lowercase())),
            _ => tools.sh(&pod, &format!("iptables -t nat -F OUTRIGGER_{chain}")),
        };
        tools.must(&pod, "install");
        flush("OUTBOUND");
        let (code, words) = run("status");
        assert!(code == 9 && words.to_lowercase().contains("outbound holds no rule"), "{}: {words}", tools.backend);
        tools.must(&pod, "install");
        assert_eq!(run("status").0, 0, "{}", tools.backend);
        if tools.backend == "nft" {
            pod.sh("nft -j list chains inet | jq -r '.nftables[].chain.name | values' | while read chain; do
                    nft flush chain inet outrigger $chain; done; ip -6 addr del ::6/128 dev lo");
            let (code, words) = run("status");
            assert!(code == 9 && words.contains("hold no rule"), "{words}");
        }
        tools.must(&pod, "remove");
        pod.sh("ip rule add pref 15007 from 192.0.2.9 lookup 15007");
        let (code, words) = run("status");
        assert!(code == 9 && words.contains("rule 15007 of a verify"), "{}: {words}", tools.backend);
        run("remove");
        assert_same(&state(&pod), &nothing, tools.backend);
        assert_eq!(run("status").0, 10);
    }
}

/// A run that was killed between the families, beside one that was told to leave IPv6 alone.
#[test]
fn rules_of_ipv4_alone_are_whole_only_where_nothing_of_ipv6_was_begun() {
    for tools in Tools::all() {
        if tools.backend == "nft" {
            continue; // One transaction for both families.
        }
        let pod = Namespace::new();
        let run = || {
            let output = tools.outrigger(&pod, "status");
            (output.status.code().unwrap(), said(&output))
        };
        tools.must(&pod, "install --ipv6 off");
        let (code, words) = run();
        assert!(code == 0 && words.contains("IPv4 only"), "{words}");
        for (begin, end) in [
            ("ip -6 addr add ::6/128 dev lo preferred_lft 0", "ip -6 addr del ::6/128 dev lo"),
            (
                "ip -6 rule add pref 15006 fwmark 0x1000/0x1000 lookup 15006",
                "ip -6 rule del pref 15006 fwmark 0x1000/0x1000 lookup 15006",
            ),
        ] {
            pod.sh(begin);
            let (code, words) = run();
            assert!(code == 9 && words.contains("partial") && words.contains("no rules of IPv6"), "{begin}: {words}");
            pod.sh(end);
        }
        assert_eq!(run().0, 0);
    }
}

#[test]
fn an_address_for_the_leg_that_somebody_else_has_added_will_do() {
    let (pod, tools) = (Namespace::new(), Tools::nft());
    pod.sh("ip -6 addr add ::6/128 dev lo");
    let before = state(&pod);
    tools.must(&pod, "install");
    let output = tools.outrigger(&pod, "verify");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    tools.must(&pod, "remove");
    assert_eq!(state(&pod), before, "it was theirs, and stays");
}

#[test]
fn an_included_interface_that_is_not_here_is_told() {
    let (pod, tools) = (Namespace::new(), Tools::nft());
    let options = "--include-interfaces eth0,cali*";
    let words = tools.must(&pod, &format!("install {options}"));
    assert!(words.contains("names eth0, which is not here now"), "{words}");
    let output = tools.outrigger(&pod, &format!("verify {options}"));
    assert_eq!(output.status.code(), Some(9), "{}", said(&output));
    assert!(said(&output).contains("not here: eth0;"), "{}", said(&output));
    pod.sh("ip link add eth0 type veth peer name eth1");
    let words = tools.must(&pod, &format!("install {options}"));
    assert!(!words.contains("not here now"), "{words}");
    let output = tools.outrigger(&pod, &format!("verify {options}"));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

/// The same rules by name, with one other value in one of them.
#[test]
fn a_list_that_differs_in_one_value_is_found_out() {
    const LISTS: [(&str, &str, &str); 12] = [
        ("exclude-inbound-ports", "22,9000-9010", "22,9000-9011"),
        ("include-inbound-ports", "8080,22", "8080,23"),
        ("exclude-outbound-ports", "25,3000-3009", "25,3000-3008"),
        ("include-outbound-ports", "80,443", "80,444"),
        ("exclude-inbound-cidrs", "192.0.2.0/24", "192.0.2.0/25"),
        ("include-inbound-cidrs", "10.0.0.0/8", "10.0.0.0/9"),
        ("exclude-outbound-cidrs", "2001:db8::/32", "2001:db8::/33"),
        ("include-outbound-cidrs", "10.0.0.0/8,fd00::/8", "10.0.0.0/8,fd00::/9"),
        ("exclude-interfaces", "eth1", "eth2"),
        ("include-interfaces", "cali*", "calo*"),
        ("exclude-uids", "7,1999-2001", "7,1999-2002"),
        ("proxy-uid", "1337", "1338"),
    ];
    thread::scope(|scope| {
        for tools in Tools::all() {
            scope.spawn(move || {
                let pod = Namespace::new();
                for (option, installed, asked) in LISTS {
                    tools.must(&pod, &format!("install --{option} {installed}"));
                    let output = tools.outrigger(&pod, &format!("verify --{option} {asked}"));
                    let words = said(&output);
                    assert_eq!(output.status.code(), Some(9), "{} {option}: {words}", tools.backend);
                    assert!(words.contains("are missing"), "{} {option}: {words}", tools.backend);
                    let output = tools.outrigger(&pod, &format!("verify --{option} {installed}"));
                    assert!(said(&output).contains("✓ rules"), "{} {option}: {}", tools.backend, said(&output));
                }
            });
        }
    });
}

/// As an init container does: root without SETUID, a read-only root, nothing but NET_ADMIN and NET_RAW.
#[test]
fn two_capabilities_are_enough() {
    for (tools, mode) in Tools::all().into_iter().zip(["redirect", "tproxy", "tproxy"]) {
        let pod = Namespace::new();
        let program = env!("CARGO_BIN_EXE_outrigger-iptables");
        let output = pod.sh(&format!(
            "PATH={}; unshare -m sh -ec 'mount -t tmpfs -o ro none /run
             OUTRIGGER_IPTABLES_MODE={mode}; export OUTRIGGER_IPTABLES_MODE
             run() {{ setpriv --bounding-set=-all,+net_admin,+net_raw --inh-caps=-all,+net_admin,+net_raw \\
                {program} \"$@\" 2>&1; }}
             run install --backend {}; run verify || true; run status || true; run remove'",
            tools.path(),
            tools.backend
        ));
        assert!(output.contains("verify: the redirection works"), "{output}");
        assert!(output.contains("status: installed"), "{output}");
        assert!(!state(&pod).to_lowercase().contains("outrigger"), "{output}");
    }
}

#[test]
fn what_cannot_be_tried_is_said() {
    let tools = Tools::nft();
    let run = |pod: &Namespace, options: &str| {
        tools.must(pod, &format!("install {options}"));
        let output = tools.outrigger(pod, &format!("verify {options}"));
        assert_eq!(output.status.code(), Some(0), "{options}: {}", said(&output));
        said(&output)
    };
    let pod = Namespace::new();
    pod.sh("ip link add eth0 type veth peer name eth1");
    let words = run(&pod, "--include-interfaces eth0");
    assert!(words.contains("no connection could be made to prove it"), "{words}");
    // Our own group is the sidecar's: another one is tried.
    let words = run(&Namespace::new(), "--proxy-gid 0");
    assert!(words.contains("the redirection works") && !words.contains("- IPv4"), "{words}");
    // Our own user is left alone: another one is tried.
    let words = run(&Namespace::new(), "--exclude-uids 0-999");
    assert!(words.contains("the redirection works") && !words.contains("- IPv4"), "{words}");
    let pod = Namespace::new();
    pod.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    let words = run(&pod, "");
    assert!(words.contains("- IPv6: net.ipv6.conf.default.disable_ipv6 is 1"), "{words}");
    assert!(words.contains("the redirection works"), "{words}");
}
