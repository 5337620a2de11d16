//! The command line: `run` and `check`.
//!
//! Exit codes: 0 done, 1 the sidecar could not run, 2 wrong configuration or flags.

use std::{
    env,
    error::Error,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use outrigger_sidecar::{
    config::{self, Config, ConfigError, LogConfig, LogFormat},
    proxy,
};
use tracing_subscriber::EnvFilter;

/// A request makes and drops some dozens of small objects on one thread; this costs a third of what glibc takes for it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Wrong configuration or flags; clap uses the same code.
const BAD_CONFIG: u8 = 2;

/// The Outrigger sidecar: the proxy beside one workload.
#[derive(Parser)]
#[command(name = "outrigger-sidecar", version, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy until SIGTERM.
    Run(Source),
    /// Say whether the configuration is right, and what is missing on this host.
    Check(Source),
}

#[derive(Args)]
struct Source {
    /// YAML file; without it every setting has its default. Also as OUTRIGGER_CONFIG.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Source {
    fn file(self) -> Option<PathBuf> {
        self.config.or_else(|| env::var_os("OUTRIGGER_CONFIG").filter(|file| !file.is_empty()).map(PathBuf::from))
    }
}

fn main() -> ExitCode {
    match command_line().command {
        Command::Run(source) => run(source.file().as_deref()),
        Command::Check(source) => check(source.file().as_deref()),
    }
}

fn command_line() -> Cli {
    let settings: String = config::variables().map(|(name, path)| format!("  {name:36} {path}\n")).collect();
    let help = format!("Environment variables win over the file; lists are comma-separated:\n{settings}");
    let matches = Cli::command().mut_subcommands(|command| command.after_help(help.clone())).get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit())
}

fn run(file: Option<&Path>) -> ExitCode {
    let config = match load(file) {
        Ok(config) => config,
        Err(e) => return refuse(&e),
    };
    start_log(&config.log);
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    match proxy::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let mut message = e.to_string();
            let mut source = e.source();
            while let Some(cause) = source {
                message.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            tracing::error!("the sidecar ends: {message}");
            ExitCode::FAILURE
        }
    }
}

fn check(file: Option<&Path>) -> ExitCode {
    match load(file) {
        Ok(config) => {
            for warning in config.warnings() {
                eprintln!("warning: {warning}");
            }
            let name = file.map_or("defaults".into(), Path::to_string_lossy);
            println!("{name}: ok\n{}", config.summary());
            ExitCode::SUCCESS
        }
        Err(e) => refuse(&e),
    }
}

fn refuse(error: &ConfigError) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(BAD_CONFIG)
}

fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    // A value that is not UTF-8 is wrong wherever it is used, and is then shown with its bad bytes replaced.
    let text = |s: std::ffi::OsString| s.to_string_lossy().into_owned();
    config::load(file, env::vars_os().map(|(name, value)| (text(name), text(value))))
}

fn start_log(log: &LogConfig) {
    // The level was checked with the rest of the configuration; `info` is what remains if the two ever disagree.
    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
