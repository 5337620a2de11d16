//! The command line's grammar; its doc comments are the help.

mod attestation;
mod rotate;
mod serve;

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Parser, Subcommand};
use outrigger_ca::{
    admin::AdminSocket,
    authority::{Algorithm, Password, ServerNameText},
    store::{ChainHash, PostgresUrl},
};
use outrigger_identity::{SpiffeId, TrustDomain};

pub(crate) use attestation::AttestationArgs;
pub(crate) use rotate::{BundleCommand, RevokeArgs, RotateCommand};
pub(crate) use serve::ServeArgs;

use crate::commands::{self, Ca, EXIT_STATUSES, Failure, Kind};

#[derive(Parser)]
#[command(
    name = "outrigger-ca",
    version,
    about = "The bundled certificate authority of Outrigger",
    after_help = EXIT_STATUSES,
    max_term_width = 100
)]
pub(crate) struct Cli {
    /// Results as JSON on stdout, one object a line; an error as one on stderr
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args)]
pub(crate) struct PasswordArgs {
    /// File with the password of the CA's keys [default: the variable OUTRIGGER_CA_PASSWORD]
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
}

impl PasswordArgs {
    pub(crate) fn read(&self) -> Result<Option<Password>, Failure> {
        commands::password(self.password_file.as_deref())
    }
}

/// The CA's folder, or a CA that runs.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct WhereArgs {
    /// Directory of the CA
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Admin socket of a running CA instead: needs no password, but to be root or the CA's user
    #[arg(long, value_name = "PATH")]
    pub(crate) admin_socket: Option<PathBuf>,
}

impl WhereArgs {
    /// Where to have it done; `password` is of use with the folder alone.
    pub(crate) fn read(self, password: Option<&PasswordArgs>) -> Result<Ca, Failure> {
        match (self.dir, self.admin_socket) {
            (_, Some(path)) if password.is_none_or(|password| password.password_file.is_none()) => {
                Ok(Ca::Running(AdminSocket::at(&path)))
            }
            (_, Some(_)) => {
                let message =
                    "--password-file is of no use with --admin-socket: the running CA has its keys; leave it out";
                Err(Failure::new(Kind::Usage, "usage", message))
            }
            (Some(dir), None) => Ok(Ca::Folder(dir)),
            // The grammar asks for one of them.
            (None, None) => Err(Failure::new(Kind::Usage, "usage", "say which CA: --dir or --admin-socket")),
        }
    }
}

#[derive(Subcommand)]
pub(crate) enum Command {
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
        /// Kind of the root's and the intermediate's key: p256, p384 or ed25519
        #[arg(long = "alg", value_name = "KIND", default_value = "p256")]
        algorithm: Algorithm,
        /// Lifetime of the root, as 3650d
        #[arg(long, value_name = "TTL", default_value = "3650d", value_parser = commands::ca_lifetime)]
        root_ttl: Duration,
        /// Lifetime of the intermediate, as 365d; not longer than the root's
        #[arg(long = "int-ttl", value_name = "TTL", default_value = "365d", value_parser = commands::ca_lifetime)]
        intermediate_ttl: Duration,
        #[command(flatten)]
        password: PasswordArgs,
        /// Leave the keys unencrypted, even if OUTRIGGER_CA_PASSWORD is set
        #[arg(long, conflicts_with = "password_file")]
        no_password: bool,
        /// Write the root's key into this file and not into the CA's folder
        #[arg(long, value_name = "FILE")]
        offline_root: Option<PathBuf>,
        /// PostgreSQL database for the log and the tokens, as postgres://user@host/database, so that replicas can share
        /// them [default: the variable OUTRIGGER_CA_DATABASE, else a file in the CA's directory]
        #[arg(long, value_name = "URL")]
        database: Option<PostgresUrl>,
        /// Make a replica of a CA that is there: an intermediate of its own under the same root, the same database
        #[arg(long, requires_all = ["root", "root_key"], conflicts_with_all = ["offline_root", "root_ttl"])]
        replica: bool,
        /// Certificate of the root that the replicas share
        #[arg(long, value_name = "FILE", requires = "replica")]
        root: Option<PathBuf>,
        /// Key of that root; read once, not copied
        #[arg(long, value_name = "FILE", requires = "replica")]
        root_key: Option<PathBuf>,
    },
    /// Issue a workload certificate into a directory: cert.pem, key.pem, bundle.pem
    Issue {
        #[command(flatten)]
        ca: WhereArgs,
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
        #[command(flatten)]
        password: PasswordArgs,
    },
    /// Sign a workload's certificate request: of it only the key is believed
    Sign {
        #[command(flatten)]
        ca: WhereArgs,
        /// The PKCS#10 request as PEM; - reads stdin
        csr: PathBuf,
        /// SPIFFE id, as spiffe://mesh.example/ns/shop/sa/orders
        #[arg(long, value_name = "SPIFFE")]
        id: String,
        /// DNS name that the workload may serve; repeatable
        #[arg(long, value_name = "NAME")]
        dns: Vec<String>,
        /// Lifetime, as 90s, 15m, 24h or 7d; at most 30d
        #[arg(long, default_value = "24h", value_parser = commands::lifetime)]
        ttl: Duration,
        /// File for the chain, leaf first [default: stdout]
        #[arg(long)]
        out: Option<PathBuf>,
        /// Replace the file if it is already there
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        password: PasswordArgs,
    },
    /// Print what certificates say
    Inspect {
        /// A file of certificates (PEM or DER), or a server
        #[arg(value_name = "FILE|HOST:PORT")]
        target: String,
    },
    /// Judge a workload's certificate: a verdict for each rule of SPIFFE's X509-SVID
    Verify {
        /// A file of certificates (PEM or DER), leaf first, or a server
        #[arg(value_name = "FILE|HOST:PORT")]
        target: String,
        /// The roots that a path must lead to, as PEM
        #[arg(long, value_name = "FILE")]
        bundle: Option<PathBuf>,
        /// Take the roots and the trust domain of the CA in this directory instead
        #[arg(long, conflicts_with = "bundle")]
        dir: Option<PathBuf>,
        /// The trust domain that the id must belong to [default: the one that the roots name]
        #[arg(long, value_name = "NAME")]
        trust_domain: Option<TrustDomain>,
        /// Revocation lists (PEM or DER): nothing of the path may be on one, and each issuer must have one
        #[arg(long, value_name = "FILE")]
        crl: Option<PathBuf>,
    },
    /// Look at the CA itself: keys, permissions, the life left of its certificates, database, log
    Check {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        #[command(flatten)]
        password: PasswordArgs,
    },
    /// How a running CA is
    Status {
        /// Its admin socket
        #[arg(long, value_name = "PATH")]
        admin_socket: PathBuf,
    },
    /// Join tokens for a workload's first certificate
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Serve enrolment and renewal (Istio's CreateCertificate over TLS)
    Serve(Box<ServeArgs>),
    /// The trust bundle
    Bundle {
        #[command(subcommand)]
        command: BundleCommand,
    },
    /// Take certificates back: they renew nothing any more, and verifiers hear of it
    Revoke(RevokeArgs),
    /// Replace the intermediate, or the root, step by step
    Rotate {
        #[command(subcommand)]
        command: RotateCommand,
    },
    /// The issuance log
    Log {
        #[command(subcommand)]
        command: LogCommand,
    },
}

#[derive(Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a join token, good for one enrolment; prints the token alone
    Create {
        #[command(flatten)]
        ca: WhereArgs,
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
    /// Print every join token, oldest first, by its hash: the token itself is not kept
    List {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
    },
    /// Take back a token that was not used yet
    #[command(group(ArgGroup::new("which").required(true)))]
    Revoke {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        /// The first digits of its hash, at least 8, from "token list"
        #[arg(value_name = "REF", group = "which")]
        token_ref: Option<String>,
        /// Every unused token of this SPIFFE id instead
        #[arg(long, value_name = "SPIFFE", group = "which")]
        id: Option<SpiffeId>,
    },
}

#[derive(Subcommand)]
pub(crate) enum LogCommand {
    /// Print every certificate that was issued and not pruned since, oldest first
    List {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
    },
    /// Prove that no record and no revocation was changed, removed or added: compute the hash chains anew
    Verify {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        /// A head that was noted earlier; it must still be part of the chain
        #[arg(long, value_name = "HASH")]
        head: Option<ChainHash>,
    },
    /// Remove the oldest records, of certificates long expired; an anchor keeps the rest provable
    Prune {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        /// How long a certificate must have been expired, as 24h or 90d
        #[arg(long, value_name = "AGE", value_parser = commands::age)]
        older_than: Duration,
    },
}
