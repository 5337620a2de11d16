//! The command line of the bundled CA. Results go to stdout, one plain line each; everything else to stderr.

mod commands;

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use outrigger_ca::authority::ServerNameText;
use outrigger_identity::TrustDomain;

#[derive(Parser)]
#[command(
    name = "outrigger-ca",
    version,
    about = "The bundled certificate authority of Outrigger",
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a CA: a root, an intermediate and an empty log
    Init {
        /// Directory of the CA; created with mode 0700 if it is missing
        #[arg(long)]
        dir: PathBuf,
        /// The trust domain, as mesh.example
        #[arg(long, value_name = "NAME")]
        trust_domain: TrustDomain,
        /// DNS name or IP address under which sidecars reach "serve"; repeatable [default: localhost, the loopback
        /// addresses and this machine's name]
        #[arg(long = "name", value_name = "HOST")]
        names: Vec<ServerNameText>,
        /// Replace a CA that is already there; its files are moved aside, not deleted
        #[arg(long)]
        force: bool,
    },
    /// Issue a workload certificate into a directory: cert.pem, key.pem, bundle.pem
    Issue {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        /// SPIFFE id, as spiffe://mesh.example/ns/shop/sa/orders
        #[arg(long, value_name = "SPIFFE")]
        id: String,
        /// DNS name that the workload may serve; repeatable
        #[arg(long, value_name = "NAME")]
        dns: Vec<String>,
        /// Lifetime, as 90s, 15m, 24h or 7d; at most 30d
        #[arg(long, default_value = "24h", value_parser = commands::lifetime)]
        ttl: Duration,
        /// Directory for the three files; created if it is missing
        #[arg(long)]
        out: PathBuf,
        /// Replace files that are already there
        #[arg(long)]
        force: bool,
    },
    /// Join tokens for a workload's first certificate
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Serve enrolment and renewal (Istio's CreateCertificate over TLS)
    Serve {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        /// Address and port; [::] takes IPv4 too
        #[arg(long, default_value = "[::]:15012", value_name = "ADDRESS")]
        listen: SocketAddr,
        /// A further DNS name or IP address for the server's certificate; repeatable
        #[arg(long = "name", value_name = "HOST")]
        names: Vec<ServerNameText>,
    },
    /// The trust bundle
    Bundle {
        #[command(subcommand)]
        command: BundleCommand,
    },
    /// The issuance log
    Log {
        #[command(subcommand)]
        command: LogCommand,
    },
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a join token, good for one enrolment; prints the token alone
    Create {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        /// SPIFFE id that the token stands for
        #[arg(long, value_name = "SPIFFE")]
        id: String,
        /// DNS name that the workload may serve; repeatable
        #[arg(long, value_name = "NAME")]
        dns: Vec<String>,
        /// How long the token may wait to be used, as 90s, 15m, 24h or 7d; at most 30d
        #[arg(long, default_value = "1h", value_parser = commands::lifetime)]
        ttl: Duration,
    },
}

#[derive(Subcommand)]
enum BundleCommand {
    /// Print the roots that verifiers must trust, as PEM
    Show {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Subcommand)]
enum LogCommand {
    /// Print every certificate ever issued, oldest first
    List {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("OUTRIGGER_CA_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let result = match Cli::parse().command {
        Command::Init { dir, trust_domain, names, force } => commands::init(&dir, trust_domain, names, force),
        Command::Issue { dir, id, dns, ttl, out, force } => commands::issue(&dir, &id, &dns, ttl, &out, force),
        Command::Token { command: TokenCommand::Create { dir, id, dns, ttl } } => {
            commands::token_create(&dir, &id, &dns, ttl)
        }
        Command::Serve { dir, listen, names } => commands::serve(&dir, listen, names),
        Command::Bundle { command: BundleCommand::Show { dir } } => commands::bundle_show(&dir),
        Command::Log { command: LogCommand::List { dir, json } } => commands::log_list(&dir, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has read enough (log list | head).
        Err(error) if commands::is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("outrigger-ca: {error}");
            ExitCode::FAILURE
        }
    }
}
