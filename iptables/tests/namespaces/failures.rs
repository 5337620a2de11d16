//! When something refuses, is missing or is killed: all or nothing, and what is left is repaired.

use std::thread;

use crate::support::{APP, Namespace, PROXY, Tools, assert_same, said, state};

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
        broken.replace("ip6tables-restore", &format!("{}; {refuse}", tells_version(multi)));
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

/// Shell words by which what stands in for ip6tables-restore says what it speaks to, as the real one does.
fn tells_version(backend: &str) -> String {
    let multi = if backend == "iptables-nft" { "xtables-nft-multi" } else { "xtables-legacy-multi" };
    format!("[ \"$1\" != --version ] || exec /usr/sbin/{multi} ip6tables-restore --version")
}

/// Debian's alternatives `iptables` and `ip6tables` are apart, and may be of different kinds.
#[test]
fn each_familys_programs_are_of_the_kind_that_was_asked_for() {
    let (pod, tools) = (Namespace::new(), Tools::iptables("iptables-legacy"));
    for name in ["ip6tables", "ip6tables-save", "ip6tables-restore"] {
        tools.replace(name, &format!("exec /usr/sbin/xtables-nft-multi {name} \"$@\""));
    }
    tools.must(&pod, "install");
    for save in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        assert!(pod.sh(save).contains("OUTRIGGER_OUTBOUND"), "{save} has none of our rules: {}", state(&pod));
    }
    assert!(!pod.sh("nft list ruleset").contains("OUTRIGGER_"), "{}", state(&pod));
    tools.must(&pod, "remove");
    // Without any of that kind, IPv6 would go past the sidecar: refused.
    let before = state(&pod);
    tools.replace("ip6tables-legacy-restore", "exec /usr/sbin/xtables-nft-multi ip6tables-restore \"$@\"");
    let output = tools.outrigger(&pod, "install --backend iptables-legacy");
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("without an ip6tables-restore"), "{}", said(&output));
    assert_eq!(state(&pod), before);
}

/// IPv4 is out when IPv6 refuses: what is left is not as it was, and it does not say so.
#[test]
fn a_removal_that_is_refused_half_way_says_so() {
    for backend in ["iptables-nft", "iptables-legacy"] {
        let (tools, broken) = (Tools::iptables(backend), Tools::iptables(backend));
        let refuse = "case \"$*\" in *noflush*) echo 'cannot work today' >&2; exit 1;; esac";
        broken.replace("ip6tables-restore", &format!("{}; {refuse}", tells_version(backend)));
        for command in ["remove", "remove --drain 1s"] {
            let pod = Namespace::new();
            tools.must(&pod, "install");
            let output = broken.outrigger(&pod, &format!("{command} --backend {backend}"));
            let words = said(&output);
            assert_eq!(output.status.code(), Some(6), "{backend} {command}: {words}");
            assert!(words.contains("cannot work today") && !words.contains("as they were"), "{words}");
            tools.must(&pod, "remove");
            assert!(!state(&pod).contains("OUTRIGGER_"), "{}", state(&pod));
        }
        // Where the first refuses, nothing has changed.
        let pod = Namespace::new();
        tools.must(&pod, "install");
        broken.replace(
            "iptables-restore",
            &format!("{}; {refuse}", tells_version(backend).replace("ip6tables-restore", "iptables-restore")),
        );
        let output = broken.outrigger(&pod, &format!("remove --drain 1s --backend {backend}"));
        assert_eq!(output.status.code(), Some(5), "{backend}: {}", said(&output));
    }
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

/// What may pass in a moment must not move the rules to another backend.
#[test]
fn a_failure_of_nft_that_passes_is_told_and_nothing_else_is_tried() {
    let tools = Tools::iptables("iptables-nft");
    let pod = Namespace::new();
    let before = state(&pod);
    for (script, words) in [
        ("echo 'netlink: Error: Could not process rule: Cannot allocate memory' >&2; exit 1", "Cannot allocate memory"),
        ("kill -9 $$", "a signal ended it"),
    ] {
        tools.replace("nft", script);
        let output = tools.outrigger(&pod, "install");
        assert_eq!(output.status.code(), Some(5), "{}", said(&output));
        assert!(said(&output).contains(words), "{}", said(&output));
        assert_eq!(state(&pod), before);
    }
}

/// `nat` is done when `mangle` is refused. Refused once, `nat` is put back; refused for good, it is told what is left.
#[test]
fn a_refusal_between_two_tables_of_one_family_is_undone_or_told() {
    for (backend, multi) in [("iptables-nft", "xtables-nft-multi"), ("iptables-legacy", "xtables-legacy-multi")] {
        for for_good in [false, true] {
            let (pod, tools, broken) = (Namespace::new(), Tools::iptables(backend), Tools::iptables(backend));
            tools.prepare(&pod);
            tools.must(&pod, "install --mode tproxy");
            let before = state(&pod);
            let (real, folder) = (format!("/usr/sbin/{multi} iptables-restore"), broken.folder.path().display());
            let refuse = if for_good { "" } else { &format!("[ -e {folder}/refused ] ||") };
            broken.replace(
                "iptables-restore",
                &format!(
                    "case \"$*\" in *noflush*) ;; *) exec {real} \"$@\";; esac
                     if [ -e {folder}/refused ] && {again}; then echo 'cannot work today' >&2; exit 1; fi
                     script=
                     while IFS= read -r line; do
                         script=\"$script$line
\"
                         [ \"$line\" = COMMIT ] || continue
                         printf %s \"$script\" | {real} \"$@\" || exit 1
                         {refuse} {{ touch {folder}/refused; echo 'cannot work today' >&2; exit 1; }}
                         script=
                     done",
                    again = for_good
                ),
            );
            let output = broken.outrigger(&pod, &format!("install --backend {backend}"));
            let words = said(&output);
            assert!(words.contains("cannot work today"), "{words}");
            if for_good {
                assert_eq!(output.status.code(), Some(6), "{backend}: {words}");
                assert!(words.contains("COULD NOT BE UNDONE") && !words.contains("as they were"), "{words}");
                assert!(state(&pod) != before, "{backend}: nothing was half done, and so nothing was shown");
                tools.must(&pod, "install --mode tproxy");
            } else {
                assert_eq!(output.status.code(), Some(5), "{backend}: {words}");
            }
            assert_same(&state(&pod), &before, backend);
        }
    }
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
    let us = format!("process {} (", std::process::id());
    thread::scope(|scope| {
        for (namespace, words) in [(pod, &*us), (other, "xtables lock")] {
            scope.spawn(move || {
                let output = tools.outrigger(namespace, &format!("install --wait 1 --backend {}", tools.backend));
                assert_eq!(output.status.code(), Some(8), "{}", said(&output));
                assert!(said(&output).contains(words), "{}", said(&output));
            });
        }
    });
    assert_eq!((state(pod), state(other)), before);
}

/// The last rule of the last script is one that the real tool refuses: everything is as before, whatever was there.
#[test]
fn a_bad_last_rule_changes_nothing() {
    for tools in Tools::all() {
        let pod = Namespace::new();
        tools.prepare(&pod);
        let bad = Tools { backend: tools.backend, folder: Tools::iptables_folder(&tools) };
        // What reads the last script: nft's only one, or that of IPv6.
        let (name, real, spoil) = match tools.backend {
            "nft" => ("nft", "/usr/sbin/nft", r"sed 's/^}$/\tchain last { ct state new jump nowhere; }\n}/'"),
            "iptables-nft" => ("ip6tables-restore", "/usr/sbin/xtables-nft-multi ip6tables-restore", SPOIL),
            _ => ("ip6tables-restore", "/usr/sbin/xtables-legacy-multi ip6tables-restore", SPOIL),
        };
        bad.replace(
            name,
            &format!("case \"$*\" in *-f*|*noflush*) {spoil} | exec {real} \"$@\";; *) exec {real} \"$@\";; esac"),
        );
        for earlier in [None, Some("install --mode tproxy --dns-port 15053 --close-wait-timeout 1h --proxy-uid 7")] {
            if let Some(command) = earlier {
                tools.must(&pod, command);
            }
            let before = state(&pod);
            let command = format!("install --backend {} --mode tproxy --close-wait-timeout 2h", tools.backend);
            let output = bad.outrigger(&pod, &command);
            assert_eq!(output.status.code(), Some(5), "{}: {}", tools.backend, said(&output));
            assert!(said(&output).contains("the rules are as they were"), "{}", said(&output));
            assert_same(&state(&pod), &before, &format!("{} after {earlier:?}", tools.backend));
        }
    }
}

/// Puts a jump to nowhere before the last COMMIT, of every script but one that only removes.
const SPOIL: &str = "awk '{ lines[NR] = $0 } /^-A OUTRIGGER_OUTBOUND .*1337/ { ours = 1 } \
    END { for (i = 1; i < NR; i++) print lines[i]; if (ours) print \"-A OUTPUT -j NOWHERE\"; print lines[NR] }'";

#[test]
fn without_tools_it_says_what_to_install_and_remove_has_nothing_to_do() {
    let pod = Namespace::new();
    let before = state(&pod);
    let run = |path: &std::path::Path, command: &str| {
        pod.run(crate::support::ROOT, || {
            // No folder of tools at all: the usual ones are hidden by an empty root.
            std::process::Command::new("unshare")
                .args(["-m", "sh", "-ec"])
                .arg(format!(
                    "mount -t tmpfs none /usr/local/sbin
                     for tool in {}/*; do [ ! -e \"$tool\" ] || cp -L \"$tool\" /usr/local/sbin/; done
                     mount -t tmpfs none /usr/sbin
                     [ -h /sbin ] || mount -t tmpfs none /sbin
                     PATH=/usr/local/sbin exec {} {command}",
                    path.display(),
                    env!("CARGO_BIN_EXE_outrigger-iptables")
                ))
                .output()
                .unwrap()
        })
    };
    let nothing = tempfile::TempDir::new().unwrap();
    let output = run(nothing.path(), "install");
    let words = said(&output);
    assert_eq!(output.status.code(), Some(4), "{words}");
    assert!(
        words.contains("`nft`") && words.contains("iptables-restore") && words.contains("install the package"),
        "{words}"
    );
    let output = run(nothing.path(), "remove");
    assert!(output.status.success() && said(&output).contains("nothing to do"), "{}", said(&output));
    assert_eq!(state(&pod), before);
    // print still shows what it would be.
    let output = run(nothing.path(), "print");
    assert!(output.status.success() && said(&output).contains("table inet outrigger"), "{}", said(&output));

    // Rules are there, and no tool that could remove them: it does not say that it has.
    Tools::nft().must(&pod, "install");
    let output = run(nothing.path(), "remove");
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    Tools::nft().must(&pod, "remove");

    // No nft, but iptables: which one is decided by what is in use.
    let iptables = Tools::iptables("iptables-nft");
    let output = run(iptables.folder.path(), "install");
    let words = said(&output);
    assert!(output.status.success() && words.contains("done with iptables-nft"), "{words}");
    assert!(words.contains("there is no `nft`") && words.contains("no legacy tables are in use"), "{words}");
    let output = run(iptables.folder.path(), "remove");
    assert!(output.status.success(), "{}", said(&output));

    // No iptables, but nft.
    let nft = tempfile::TempDir::new().unwrap();
    std::fs::copy("/usr/sbin/nft", nft.path().join("nft")).unwrap();
    let output = run(nft.path(), "install");
    assert!(output.status.success() && said(&output).contains("done with nft"), "{}", said(&output));
}

/// In a namespace whose legacy tables are in use, iptables-legacy goes first among the two.
#[test]
fn legacy_tables_in_use_decide_for_legacy() {
    let (pod, tools) = (Namespace::new(), Tools::iptables("iptables-nft"));
    tools.replace("nft", "echo 'nft: cannot work today' >&2; exit 1");
    Tools::iptables("iptables-legacy").sh(&pod, "iptables -t nat -A OUTPUT -p tcp --dport 1 -j ACCEPT");
    let output = tools.outrigger(&pod, "install");
    let words = said(&output);
    assert!(output.status.success() && words.contains("done with iptables-legacy"), "{words}");
    assert!(words.contains("legacy tables are in use in this network namespace"), "{words}");
}

#[test]
fn ipv6_is_as_the_options_say() {
    for tools in Tools::all() {
        let pod = Namespace::new();
        tools.prepare(&pod);
        pod.sh("ip link add eth0 type veth peer name eth1; ip link set eth0 up; ip -6 addr add fd77:1::2/64 dev eth0 nodad");
        let before = state(&pod);
        tools.must(&pod, "install --ipv6 on");
        // Off after on takes the rules of IPv6 away, and says what that means.
        let words = tools.must(&pod, "install --ipv6 off");
        assert!(words.contains("--ipv6 off") && words.contains("fd77:1::2"), "{words}");
        let now = state(&pod);
        assert!(!now.contains("fe80::/10") && !now.contains("::6/128"), "{now}");
        tools.must(&pod, "remove");
        assert_eq!(state(&pod), before);
        pod.sh("for file in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > $file; done");
        let before = state(&pod);
        let output = tools.outrigger(&pod, &format!("install --ipv6 on --backend {}", tools.backend));
        assert_eq!(output.status.code(), Some(5), "{}", said(&output));
        assert!(said(&output).contains("disable_ipv6 is 1"), "{}", said(&output));
        assert_eq!(state(&pod), before);
    }
}
