//! The command line of `outrigger-iptables`; no logic.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use outrigger_iptables::{
    Error, Outcome, Place, Printed, Report, Run, Settings, State, Status, Time, Verified, enter_netns, install, print,
    remove, status, verify,
};
use serde::Serialize;

const AFTER: &str = "\
Every option is also a variable (--proxy-uid: OUTRIGGER_IPTABLES_PROXY_UID) and a key of the file that --config names
(proxy-uid: 1337). The command line wins over the variable, the variable over the file.

Exit codes: 0 done; 2 wrong options; 3 not permitted; 4 no usable backend; 5 refused, nothing changed;
6 refused and could not be undone (run `remove`); 7 --netns cannot be entered; 8 locked for longer than --wait;
9 verify: it does not work; status: only a part is there; 10 status: nothing is there.";

#[derive(Parser)]
#[command(version, about = "Redirects a workload's TCP connections to its sidecar", after_help = AFTER)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the redirection, IPv4 and IPv6; repeating it is harmless
    #[command(after_help = AFTER)]
    Install(Box<Settings>),
    /// Remove every trace of it, whichever backend holds it
    #[command(after_help = AFTER)]
    Remove(Remove),
    /// Prove with connections, in both directions, that it does what the options say; leaves nothing behind
    #[command(after_help = AFTER)]
    Verify(Box<Settings>),
    /// Print what install would do; needs no privilege, changes nothing
    #[command(after_help = AFTER)]
    Print(Box<Settings>),
    /// Say what of it is there
    #[command(after_help = AFTER)]
    Status(Place),
}

#[derive(Args)]
struct Remove {
    /// Let connections that are open finish, for at most this long; without it they end
    #[arg(long, value_name = "DURATION")]
    drain: Option<Time>,
    #[command(flatten)]
    place: Place,
}

fn main() -> ExitCode {
    let (command, settings) = match Cli::parse().command {
        Command::Install(settings) => (Work::Install, *settings),
        Command::Verify(settings) => (Work::Verify, *settings),
        Command::Print(settings) => (Work::Print, *settings),
        Command::Remove(Remove { drain, place }) => (Work::Remove, Settings::of(place, drain)),
        Command::Status(place) => (Work::Status, Settings::of(place, None)),
    };
    let mut json = settings.wants_json();
    let outcome = settings.resolve().and_then(|run| {
        json = run.json;
        work(command, &run)
    });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if json {
                println!("{}", serde_json::json!({ "error": error.to_string(), "exit_code": error.exit_code() }));
            } else {
                eprintln!("outrigger-iptables: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

enum Work {
    Install,
    Remove,
    Verify,
    Print,
    Status,
}

fn work(work: Work, run: &Run) -> Result<u8, Error> {
    if !matches!(work, Work::Print) {
        run.netns.as_deref().map_or(Ok(()), enter_netns)?;
    }
    let (options, backend, wait) = (&run.options, run.backend, run.wait);
    Ok(match work {
        Work::Install => say(&install(options, backend, wait)?, run.json, tell),
        Work::Remove => say(&remove(backend, wait, run.drain)?, run.json, tell),
        Work::Print => say(&print(options, backend, wait)?, run.json, tell_scripts),
        Work::Verify => {
            let verified = verify(options, backend, wait)?;
            say(&verified, run.json, tell_checks);
            verified.exit_code()
        }
        Work::Status => {
            let status = status(backend, wait)?;
            say(&status, run.json, tell_status);
            status.exit_code()
        }
    })
}

fn say<T: Serialize>(outcome: &T, json: bool, in_words: fn(&T)) -> u8 {
    if json {
        println!("{}", serde_json::json!(outcome));
    } else {
        in_words(outcome);
    }
    0
}

fn note(notices: &[String]) {
    for notice in notices {
        eprintln!("outrigger-iptables: note: {notice}");
    }
}

fn tell(report: &Report) {
    note(&report.notices);
    let backends: Vec<_> = report.backends.iter().map(|kind| kind.name()).collect();
    match backends.as_slice() {
        [] => println!("{}: nothing to do: {}", report.command, report.why),
        _ => println!("{}: done with {}: {}", report.command, backends.join(", "), report.why),
    }
}

fn tell_scripts(printed: &Printed) {
    note(&printed.notices);
    eprintln!("outrigger-iptables: note: {}", printed.why);
    for command in &printed.before {
        println!("# before: {command}");
    }
    for script in &printed.scripts {
        print!("# for: {}\n{}", script.command, script.text);
    }
}

fn tell_checks(verified: &Verified) {
    for check in &verified.checks {
        let sign = match check.outcome {
            Outcome::Passed => "✓",
            Outcome::Failed => "✗",
            Outcome::Skipped => "-",
        };
        println!("{sign} {}: {}", check.name, check.detail);
        if let Some(rule) = &check.rule {
            println!("  the rule at fault: {rule}");
        }
    }
    if verified.proven {
        println!("verify: the redirection works ({} ms)", verified.milliseconds);
    } else if verified.works {
        println!(
            "verify: the rules are right, but no connection could be made to prove it ({} ms)",
            verified.milliseconds
        );
    } else {
        println!("verify: the redirection does not work ({} ms)", verified.milliseconds);
        println!("run `outrigger-iptables install` with the same options, then verify again");
    }
}

fn tell_status(status: &Status) {
    note(&status.notices);
    println!(
        "status: {}",
        match status.state {
            State::Installed => "installed",
            State::Draining => "draining: open connections are carried on, new ones are not redirected",
            State::Partial => "partial: run `outrigger-iptables install` or `remove`",
            State::Absent => "absent",
        }
    );
    for rules in &status.backends {
        let ports: Vec<_> = rules.ports.iter().map(ToString::to_string).collect();
        let mode = if rules.tproxy { "tproxy" } else { "redirect" };
        let v6 = if rules.rules_v6 > 0 { format!(" and {} of IPv6", rules.rules_v6) } else { String::new() };
        println!("  {}: {} rules{v6}, {mode}, to the ports {}", rules.backend, rules.rules, ports.join(", "));
    }
    for trace in &status.traces {
        println!("  {trace}");
    }
}
