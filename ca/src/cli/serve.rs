//! The grammar of `serve`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use outrigger_ca::{
    authority::ServerNameText,
    limits::{Limits, Rate},
};

use super::{AttestationArgs, PasswordArgs};
use crate::commands::{self, PruneAfter};

#[derive(Args)]
pub(crate) struct ServeArgs {
    /// Directory of the CA
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Address and port; [::] takes IPv4 too
    #[arg(long, default_value = "[::]:15012", value_name = "ADDRESS")]
    pub(crate) listen: SocketAddr,
    /// A further DNS name or IP address for the server's certificate; repeatable
    #[arg(long = "name", value_name = "HOST")]
    pub(crate) names: Vec<ServerNameText>,
    /// Address and port of /livez, /readyz and /metrics over plain HTTP, or "off"
    #[arg(long, default_value = "[::]:15014", value_name = "ADDRESS", value_parser = address_or_off)]
    pub(crate) metrics_listen: AddressOrOff,
    /// Socket for the command line of root and of the CA's user, or "off" [default: admin.sock in the CA's directory]
    #[arg(long, value_name = "PATH")]
    pub(crate) admin_socket: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) attestation: AttestationArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Forget records and tokens that expired so long ago, as 90d, or "off"; the rest of the log stays provable
    #[arg(long, value_name = "AGE", default_value = "90d", value_parser = commands::prune_after)]
    pub(crate) prune_after: PruneAfter,
    #[command(flatten)]
    pub(crate) password: PasswordArgs,
}

/// An address, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AddressOrOff(pub(crate) Option<SocketAddr>);

fn address_or_off(text: &str) -> Result<AddressOrOff, String> {
    match text {
        "off" => Ok(AddressOrOff(None)),
        _ => text.parse().map(|address| AddressOrOff(Some(address))).map_err(|e| {
            format!(
                "\"{text}\" is not an address and port ({e}); write it as 127.0.0.1:15014 or [::]:15014, or \"off\""
            )
        }),
    }
}

#[derive(Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Connections at a time; further ones wait
    #[arg(long, value_name = "N", default_value = "2048", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections: u32,
    /// Connections at a time from one address (of IPv6 one /64); further ones are closed
    #[arg(long, value_name = "N", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections_per_source: u32,
    /// Failed attempts of one address without a certificate of ours, as COUNT/UNIT:BURST, or "off"
    #[arg(long, value_name = "RATE", default_value = "1/s:100")]
    failed_attempts: Rate,
    /// Certificates for one SPIFFE id, which all replicas of a workload share
    #[arg(long, value_name = "RATE", default_value = "10/s:2000")]
    id_rate: Rate,
    /// Certificates in total
    #[arg(long, value_name = "RATE", default_value = "500/s:5000")]
    issue_rate: Rate,
    /// The longest lifetime that a caller gets, as 15m, 24h or 7d; at most 30d
    #[arg(long, value_name = "TTL", default_value = "24h", value_parser = commands::lifetime)]
    max_ttl: Duration,
}

impl From<LimitArgs> for Limits {
    fn from(args: LimitArgs) -> Self {
        Self {
            connections: args.max_connections,
            connections_of_one: args.max_connections_per_source,
            failures: args.failed_attempts,
            issuances_of_one: args.id_rate,
            issuances: args.issue_rate,
            max_ttl: args.max_ttl,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser as _;

    use super::{
        super::{Cli, Command},
        *,
    };

    #[test]
    fn the_defaults_of_the_command_line_are_those_of_the_library() {
        let cli = Cli::try_parse_from(["outrigger-ca", "serve", "--dir", "ca"]).unwrap();
        let Command::Serve(args) = cli.command else { unreachable!("serve was asked for") };
        assert_eq!(Limits::from(args.limits), Limits::default());
        assert!(address_or_off("off").unwrap().0.is_none());
        assert!(address_or_off("15014").unwrap_err().contains("[::]:15014"));
    }
}
