//! Outrigger beside its peers on one machine: `tests/bench/run.sh` says how to run it.
//!
//! Every system is a pair of sidecars in two pods behind the same redirection, with certificates of the same CA, one
//! worker thread each, in front of the same application. All systems take their turn within each round, so that
//! whatever else the machine does meets them all; what counts is the median of the rounds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod instructions;
mod paced;
mod report;
mod scenarios;
mod systems;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use outrigger_e2e::harness::{Mesh, pki::Ca};

use self::{
    report::Figures,
    scenarios::Scenario,
    systems::{Bed, System},
};

#[derive(Debug, Parser)]
struct Options {
    /// Rounds; the median of them counts
    #[arg(long, default_value_t = 5, overrides_with = "rounds")]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5, overrides_with = "seconds")]
    seconds: u32,
    /// Only these scenarios, by their short names, with commas
    #[arg(long, value_delimiter = ',')]
    scenarios: Vec<String>,
    /// Only these systems, by their short names, with commas
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// Where the table and the plots go
    #[arg(long, default_value = "target/bench", overrides_with = "out")]
    out: PathBuf,
    /// Count the instructions of a request instead, and compare them with this file
    #[arg(long)]
    instructions: Option<String>,
    /// Only carry each kind of traffic through our own pair once and let it end in good order, for an instrumented build
    /// to write its profile
    #[arg(long)]
    train: bool,
    /// Write that file
    #[arg(long, requires = "instructions")]
    record: bool,
    /// cargo bench says so; it means nothing here
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(recorded) = &options.instructions {
        return match outrigger_e2e::harness::run(instructions::check(recorded, options.record, &options.scenarios)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("{why}");
                ExitCode::FAILURE
            }
        };
    }
    if options.train {
        return outrigger_e2e::harness::run(train());
    }
    let scenarios: Vec<_> = chosen(&options.scenarios, &Scenario::ALL, |s| s.key().to_owned());
    let systems: Vec<_> = chosen(&options.systems, &System::ALL, |s| s.key());
    match (scenarios, systems) {
        (scenarios, systems) if scenarios.is_empty() || systems.is_empty() => {
            eprintln!("no such scenario or system");
            ExitCode::from(2)
        }
        (scenarios, systems) => outrigger_e2e::harness::run(measure(options, scenarios, systems)),
    }
}

fn chosen<T: Copy>(wanted: &[String], all: &[T], key: impl Fn(&T) -> String) -> Vec<T> {
    all.iter().copied().filter(|t| wanted.is_empty() || wanted.contains(&key(t))).collect()
}

async fn train() -> ExitCode {
    let mesh = Mesh::alone();
    let ca = Ca::init(&mesh);
    let mut bed = Bed::make(&mesh, &ca, System::Outrigger).await;
    bed.ends_in_order = true;
    for scenario in Scenario::TRAINING {
        println!("{}", scenario.title());
        if let Err(why) = scenario.run(&bed, 3).await {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

async fn measure(options: Options, scenarios: Vec<Scenario>, systems: Vec<System>) -> ExitCode {
    let mesh = Mesh::alone();
    let ca = Ca::init(&mesh);
    let mut beds = Vec::new();
    for system in systems {
        beds.push(Bed::make(&mesh, &ca, system).await);
    }
    let mut figures = Figures::default();
    let mut failed = false;
    for round in 1..=options.rounds {
        for scenario in &scenarios {
            for bed in beds.iter().filter(|bed| scenario.fits(bed.system)) {
                let what =
                    format!("round {round}/{}  {:<13} {:<11}", options.rounds, scenario.key(), bed.system.name());
                match scenario.run(bed, options.seconds).await {
                    Ok(of_it) => {
                        let words: Vec<_> = of_it.iter().map(|(name, value)| format!("{name} {value:.2}")).collect();
                        println!("{what}  {}", words.join("  "));
                        figures.add(*scenario, bed.system, &of_it);
                    }
                    Err(why) => {
                        failed = true;
                        println!("{what}  FAILED: {why}");
                    }
                }
            }
        }
    }
    let table = figures.table();
    println!("{table}");
    let written = figures.plots(&options.out).and_then(|()| std::fs::write(options.out.join("table.md"), &table));
    if let Err(e) = written {
        eprintln!("cannot write to {}: {e}", options.out.display());
        return ExitCode::FAILURE;
    }
    println!("table and plots: {}", options.out.display());
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
