//! From one mode to the other over live rules: each table of iptables is a commit of its own, and between any two of them
//! a peer still lands on the sidecar.

use crate::support::{Pair, Tools, said};

const PEERS: [(&str, &str); 2] = [("10.77.1.2", "10.77.1.1"), ("fd77:1::2", "fd77:1::1")];

/// Puts in the place of both restore programs one that hands over a table at a time, and after each waits until the test
/// has looked: it makes the file `reached`, and goes on when that is gone.
fn stop_between_tables(tools: &Tools) {
    let multi = if tools.backend == "iptables-nft" { "xtables-nft-multi" } else { "xtables-legacy-multi" };
    for name in ["iptables-restore", "ip6tables-restore"] {
        let (real, folder) = (format!("/usr/sbin/{multi} {name}"), tools.folder.path().display());
        tools.replace(
            name,
            &format!(
                "case \"$*\" in *noflush*) ;; *) exec {real} \"$@\";; esac
                 script=
                 while IFS= read -r line; do
                     script=\"$script$line
\"
                     [ \"$line\" = COMMIT ] || continue
                     printf %s \"$script\" | {real} \"$@\" || exit 1
                     echo \"$script\" | head -1 >{folder}/table; mv {folder}/table {folder}/reached
                     while [ -e {folder}/reached ]; do sleep 0.01; done
                     script=
                 done"
            ),
        );
    }
}

fn change(backend: &'static str, from: &str, to: &str) {
    let (pair, tools) = (Pair::new(), Tools::iptables(backend));
    tools.must(&pair.pod, &format!("install --mode {from}"));
    let stepwise = Tools::iptables(backend);
    stop_between_tables(&stepwise);
    let reached = stepwise.folder.path().join("reached");
    let mut tables = Vec::new();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| stepwise.outrigger(&pair.pod, &format!("install --mode {to} --backend {backend}")));
        while !run.is_finished() {
            let Ok(table) = std::fs::read_to_string(&reached) else {
                std::thread::sleep(std::time::Duration::from_millis(5));
                continue;
            };
            let calls = PEERS.map(|(pod, peer)| (pair.peer.dial(0, None, pod, 8080).landed, pod, peer));
            // It must go on whatever we have seen, or the test would hang.
            std::fs::remove_file(&reached).unwrap();
            tables.push((table.trim().to_owned(), calls));
        }
        let output = run.join().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    });
    for (commit, (table, calls)) in tables.iter().enumerate() {
        for (landed, pod, peer) in calls {
            let place = std::net::SocketAddr::new(pod.parse().unwrap(), 8080);
            let context = format!("{backend}, {from} to {to}, after commit {commit} ({table})");
            assert_eq!(*landed, format!("inbound {place} from {peer}"), "{context}");
        }
    }
    let names: Vec<_> = tables.iter().map(|(table, _)| table.as_str()).collect();
    assert_eq!(names, ["*nat", "*mangle", "*nat"].repeat(2), "{backend}, {from} to {to}");
}

#[test]
fn no_peer_passes_between_the_tables_with_iptables_nft() {
    change("iptables-nft", "tproxy", "redirect");
    change("iptables-nft", "redirect", "tproxy");
}

#[test]
fn no_peer_passes_between_the_tables_with_iptables_legacy() {
    change("iptables-legacy", "tproxy", "redirect");
    change("iptables-legacy", "redirect", "tproxy");
}
