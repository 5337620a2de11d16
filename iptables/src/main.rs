//! The command line of `outrigger-iptables`; no logic.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use outrigger_iptables::{Error, Options, PortRange, Report, backend, enter_netns, install, parse_cidr, print, remove};

const EXIT_CODES: &str = "\
Exit codes: 0 done; 2 wrong command line; 3 not permitted; 4 no usable backend; 5 refused, nothing changed;
6 refused and could not be undone (run `remove`); 7 --netns cannot be entered; 8 locked by another program for 10 s.";

#[derive(Parser)]
#[command(version, about = "Redirects a workload's TCP connections to its sidecar", after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the redirection, IPv4 and IPv6; repeating it is harmless
    Install {
        #[command(flatten)]
        rules: Rules,
        #[command(flatten)]
        place: Place,
    },
    /// Remove every trace of it, whichever backend holds it; connections that are redirected at that moment end
    Remove {
        #[command(flatten)]
        place: Place,
    },
    /// Print what install would apply; needs no privilege, changes nothing
    Print {
        #[command(flatten)]
        rules: Rules,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Args)]
struct Rules {
    /// The sidecar's port for connections from peers
    #[arg(long, value_name = "PORT", default_value_t = 15006, value_parser = clap::value_parser!(u16).range(1..))]
    inbound_port: u16,
    /// The sidecar's port for connections of the application
    #[arg(long, value_name = "PORT", default_value_t = 15001, value_parser = clap::value_parser!(u16).range(1..))]
    outbound_port: u16,
    /// The sidecar's user id, whose own connections are left alone
    #[arg(long, value_name = "UID", default_value_t = 1337)]
    proxy_uid: u32,
    /// Ports that peers reach without the sidecar, as 22,9000-9010; any number (15020 always is one)
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    exclude_inbound_ports: Vec<PortRange>,
    /// Ports of others that the application reaches without the sidecar; any number
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    exclude_outbound_ports: Vec<PortRange>,
    /// Networks that the application reaches without the sidecar, IPv4 and IPv6 mixed; any number
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = parse_cidr)]
    exclude_outbound_cidrs: Vec<IpNet>,
}

#[derive(Args)]
struct Place {
    /// Work in this network namespace, as /run/netns/NAME or /proc/PID/ns/net; default: the current one
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
struct Output {
    /// Which tool applies the rules
    #[arg(long, value_enum, default_value_t = BackendArgument::Auto)]
    backend: BackendArgument,
    /// One JSON object on standard output instead of words, also for a failure
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum BackendArgument {
    /// nft where it works, else iptables; remove: all of them
    Auto,
    /// One table `inet outrigger`, one transaction
    Nft,
    /// iptables-restore and ip6tables-restore
    Iptables,
}

impl From<BackendArgument> for backend::Choice {
    fn from(argument: BackendArgument) -> Self {
        match argument {
            BackendArgument::Auto => backend::Choice::Auto,
            BackendArgument::Nft => backend::Choice::Fixed(backend::Kind::Nft),
            BackendArgument::Iptables => backend::Choice::Fixed(backend::Kind::Iptables),
        }
    }
}

impl From<Rules> for Options {
    fn from(rules: Rules) -> Self {
        Options {
            inbound_port: rules.inbound_port,
            outbound_port: rules.outbound_port,
            proxy_uid: rules.proxy_uid,
            exclude_inbound_ports: rules.exclude_inbound_ports,
            exclude_outbound_ports: rules.exclude_outbound_ports,
            exclude_outbound_cidrs: rules.exclude_outbound_cidrs,
        }
    }
}

fn main() -> ExitCode {
    let (json, outcome) = match Cli::parse().command {
        Command::Install { rules, place } => {
            let work = |place: &Place| {
                enter(place)?;
                install(&rules.into(), place.output.backend.into())
            };
            (place.output.json, work(&place).map(|report| tell(&report, place.output.json)))
        }
        Command::Remove { place } => {
            let work = |place: &Place| {
                enter(place)?;
                remove(place.output.backend.into())
            };
            (place.output.json, work(&place).map(|report| tell(&report, place.output.json)))
        }
        Command::Print { rules, output } => (output.json, print_scripts(&rules.into(), &output)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
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

fn enter(place: &Place) -> Result<(), Error> {
    place.netns.as_deref().map_or(Ok(()), enter_netns)
}

fn tell(report: &Report, json: bool) {
    if json {
        println!("{}", serde_json::json!(report));
        return;
    }
    for notice in &report.notices {
        eprintln!("outrigger-iptables: note: {notice}");
    }
    let backends: Vec<_> = report.backends.iter().map(|kind| kind.name()).collect();
    match backends.as_slice() {
        [] => println!("{}: nothing to do: {}", report.command, report.why),
        _ => println!("{}: done with {}: {}", report.command, backends.join(", "), report.why),
    }
}

fn print_scripts(options: &Options, output: &Output) -> Result<(), Error> {
    let (scripts, why) = print(options, output.backend.into())?;
    if output.json {
        println!("{}", serde_json::json!({ "command": "print", "why": why, "scripts": scripts }));
        return Ok(());
    }
    eprintln!("outrigger-iptables: note: {why}");
    for script in scripts {
        print!("# for: {}\n{}", script.command, script.text);
    }
    Ok(())
}
