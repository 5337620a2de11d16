//! `outrigger-workload`: the application and its load. `serve` is an origin that speaks every protocol under test;
//! `load` sends requests and prints one JSON line of what came back.

pub mod body;
pub mod grpc;
pub mod load;
pub mod routes;
pub mod serve;
pub mod websocket;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "outrigger-workload", about = "The workload of Outrigger's tests and quickstart")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// An origin: HTTP/1.1, HTTP/2 with prior knowledge, gRPC, WebSocket, raw TCP
    Serve(serve::ServeOptions),
    /// A load generator: prints one JSON line; exits 1 if anything failed
    Load(load::LoadOptions),
}

/// Runs a command to its end.
pub fn main(cli: Cli) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("outrigger-workload: cannot start the runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    match cli.command {
        Command::Serve(options) => match runtime.block_on(serve::serve(options)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("outrigger-workload serve: {e}");
                ExitCode::FAILURE
            }
        },
        Command::Load(options) => match runtime.block_on(load::run(options)) {
            Ok(report) => {
                println!("{}", report.to_json());
                if report.failed == 0 && report.ok > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(e) => {
                eprintln!("outrigger-workload load: {e}");
                ExitCode::FAILURE
            }
        },
    }
}
