//! SIGKILL at any moment: what is left is the old state, the new one, or one that the next run repairs.

use std::{
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::support::{Namespace, ROOT, Tools, assert_same, said, state};

const MOMENTS: u32 = 50;

/// Starts a command and kills it after this time, if it still runs then.
fn kill_after(tools: &Tools, pod: &Namespace, command: &str, time: Duration) {
    pod.run(ROOT, || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger-iptables"))
            .args(command.split_whitespace())
            .args(["--backend", tools.backend])
            .env("PATH", tools.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(time);
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

fn killed_at_random(tools: &Tools, user: &str) {
    let pod = &Namespace::new();
    tools.prepare(pod);
    tools.sh(pod, user);
    let seed = std::env::var("KILL_SEED").ok().map_or_else(|| fastrand::u64(..), |text| text.parse().unwrap());
    println!("KILL_SEED={seed} repeats the moments");
    let mut random = fastrand::Rng::with_seed(seed);
    let installs = [
        "install --mode tproxy --dns-port 15053 --close-wait-timeout 1h --exclude-inbound-ports 22,23",
        "install --proxy-uid 7",
    ];
    let nothing = state(pod);
    // How long each takes, and what it makes.
    let mut complete = Vec::new();
    for install in installs {
        let start = Instant::now();
        tools.must(pod, install);
        complete.push((install, start.elapsed(), state(pod)));
        let start = Instant::now();
        tools.must(pod, "remove");
        complete.push(("remove", start.elapsed(), nothing.clone()));
        assert_same(&state(pod), &nothing, "before anything was killed");
    }
    for moment in 0..MOMENTS {
        let (command, takes, _) = &complete[random.usize(..complete.len())];
        let after = takes.mul_f64(random.f64() * 1.1);
        kill_after(tools, pod, command, after);
        let context = || format!("KILL_SEED={seed}: moment {moment}, {command} killed after {after:?} of {takes:?}");
        // Before anything repairs it: what calls itself whole is whole, and what calls itself nothing is nothing.
        let (left, status) = (state(pod), tools.outrigger(pod, "status"));
        match status.status.code() {
            Some(0) => assert!(complete.iter().any(|(_, _, whole)| *whole == left), "{}: {left}", context()),
            Some(10) => assert_same(&left, &nothing, &context()),
            code => assert_eq!(code, Some(9), "{}: {}", context(), said(&status)),
        }
        if random.bool() {
            let (install, _, wanted) = &complete[2 * random.usize(..2)];
            tools.must(pod, install);
            assert_same(&state(pod), wanted, &format!("{}: {install} did not repair it", context()));
            // Half of them are left for the next to be killed on.
            if random.bool() {
                continue;
            }
        }
        tools.must(pod, "remove");
        assert_same(&state(pod), &nothing, &format!("{}: remove did not repair it", context()));
    }
}

#[test]
fn killed_at_random_moments_with_nft() {
    killed_at_random(&Tools::nft(), "nft add table ip mine");
}

#[test]
fn killed_at_random_moments_with_iptables_nft() {
    killed_at_random(
        &Tools::iptables("iptables-nft"),
        "iptables -t nat -A PREROUTING -p tcp --dport 8088 -j REDIRECT --to-ports 8080; ip6tables -t raw -N MINE",
    );
}

#[test]
fn killed_at_random_moments_with_iptables_legacy() {
    killed_at_random(
        &Tools::iptables("iptables-legacy"),
        "iptables -t nat -A PREROUTING -p tcp --dport 8088 -j REDIRECT --to-ports 8080",
    );
}
