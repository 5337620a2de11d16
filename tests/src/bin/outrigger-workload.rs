//! The workload of the tests, the quickstart and the benchmarks; see `outrigger_e2e::workload`.

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    outrigger_e2e::workload::main(outrigger_e2e::workload::Cli::parse())
}
