//! What `install` costs beside what other tools do: the same rules, one `iptables` for each.
//!
//! `cargo bench -p outrigger-iptables`, as root: medians of 15 rounds, each in a new network namespace. It measures whole
//! processes as an init container starts them, so the machine should be quiet.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};
use outrigger_iptables::{
    Options, Script,
    backend::{Choice, Kind},
    print,
};

const ROUNDS: usize = 15;
const PROGRAM: &str = env!("CARGO_BIN_EXE_outrigger-iptables");

/// In a network namespace of its own, for as long as it takes.
fn alone<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let inside = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("run this as root: it makes network namespaces");
        run("ip", &["link", "set", "lo", "up"]);
        work()
    });
    inside.join().unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{program} {}", arguments.join(" "));
}

/// One command for each line of a restore script, as `iptables` itself is called.
fn one_by_one(scripts: &[Script], suffix: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    for script in scripts {
        let program = format!("{}{suffix}", script.command.split('-').next().unwrap());
        let mut table = String::new();
        for line in script.text.lines() {
            let words: Vec<&str> = match (line.strip_prefix('*'), line.strip_prefix(':')) {
                (Some(name), _) => {
                    table = name.to_owned();
                    continue;
                }
                (_, Some(chain)) => vec!["-N", chain.split(' ').next().unwrap()],
                _ if line == "COMMIT" => continue,
                _ => line.split(' ').collect(),
            };
            let command = [program.as_str(), "-w", "-t", &table].into_iter().chain(words);
            commands.push(command.map(str::to_owned).collect());
        }
    }
    commands
}

fn median(name: &str, work: impl Fn() -> Duration) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| work()).collect();
    times.sort_unstable();
    let (median, worst) = (times[ROUNDS / 2], times[ROUNDS - 1]);
    println!("{name:<54} {:>8.1} ms   (worst {:>6.1})", milliseconds(median), milliseconds(worst));
    median
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

fn main() {
    println!("medians of {ROUNDS} rounds, IPv4 and IPv6, into an empty namespace\n");
    for (kind, suffix) in [(Kind::Nft, "-nft"), (Kind::IptablesNft, "-nft"), (Kind::IptablesLegacy, "-legacy")] {
        let install = || {
            alone(move || {
                let start = Instant::now();
                run(PROGRAM, &["install", "--backend", kind.name()]);
                start.elapsed()
            })
        };
        let again = || {
            alone(move || {
                run(PROGRAM, &["install", "--backend", kind.name()]);
                let start = Instant::now();
                run(PROGRAM, &["install", "--backend", kind.name()]);
                start.elapsed()
            })
        };
        let ours = median(&format!("outrigger-iptables install --backend {kind}"), install);
        median("  the second time", again);
        if kind == Kind::Nft {
            continue;
        }
        let scripts = print(&Options::default(), Choice::Fixed(kind), Duration::ZERO).unwrap().scripts;
        let commands = one_by_one(&scripts, suffix);
        let count = commands.len();
        let plain = || {
            let commands = commands.clone();
            alone(move || {
                let start = Instant::now();
                for command in &commands {
                    let words: Vec<&str> = command.iter().skip(1).map(String::as_str).collect();
                    run(&command[0], &words);
                }
                start.elapsed()
            })
        };
        let theirs = median(&format!("the same by {count} calls of iptables{suffix}"), plain);
        println!("{:<54} {:>8.1} times as long\n", "", theirs.as_secs_f64() / ours.as_secs_f64());
    }
}
