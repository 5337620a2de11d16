//! The grammar of "rotate", "bundle" and "revoke".

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Subcommand};
use outrigger_ca::{authority::Algorithm, store::RevocationReason};
use outrigger_identity::SpiffeId;

use super::PasswordArgs;
use crate::commands::{self, Format};

#[derive(Subcommand)]
pub(crate) enum BundleCommand {
    /// Print the roots that verifiers must trust, as PEM
    Show {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
    },
    /// Write the roots, for verifiers that do not ask the CA
    Export {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        /// pem, or spiffe for a SPIFFE bundle document (JSON)
        #[arg(long, value_name = "FORMAT", default_value = "pem")]
        format: Format,
        /// File for the bundle [default: stdout]
        #[arg(long)]
        out: Option<PathBuf>,
        /// Replace the file if it is already there
        #[arg(long)]
        force: bool,
    },
    /// Add roots of this trust domain that were made elsewhere; they sign nothing yet
    Set {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        /// The roots: PEM, or a SPIFFE bundle document
        file: Option<PathBuf>,
        /// Take prepared roots that are not in the file out
        #[arg(long, requires = "file")]
        replace: bool,
        /// How often verifiers shall look for a new bundle, as 60s; from 5s to 1h
        #[arg(long, value_name = "SPAN", value_parser = commands::refresh_hint)]
        refresh_hint: Option<Duration>,
    },
}

#[derive(Subcommand)]
pub(crate) enum RotateCommand {
    /// Every root and intermediate, where its rotation stands, and what to do next
    Status {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
    },
    /// Make the next intermediate, with --root under a new root; the current one goes on signing
    Prepare {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        /// Make a new root first; it joins the bundle
        #[arg(long, conflicts_with = "root_key")]
        root: bool,
        /// Lifetime of the new root, as 3650d
        #[arg(long, value_name = "TTL", default_value = "3650d", value_parser = commands::ca_lifetime)]
        root_ttl: Duration,
        /// Write the new root's key into this file and not into the CA's folder
        #[arg(long, value_name = "FILE", requires = "root")]
        offline_root: Option<PathBuf>,
        /// File of the root's key [default: the one in the CA's directory]
        #[arg(long, value_name = "FILE")]
        root_key: Option<PathBuf>,
        /// Kind of the new keys: p256, p384 or ed25519 [default: that of the current intermediate's]
        #[arg(long = "alg", value_name = "KIND")]
        algorithm: Option<Algorithm>,
        /// Lifetime of the intermediate, as 365d; ends with the root's at the latest
        #[arg(long = "int-ttl", value_name = "TTL", default_value = "365d", value_parser = commands::ca_lifetime)]
        ttl: Duration,
        #[command(flatten)]
        password: PasswordArgs,
    },
    /// Let the prepared intermediate sign, and with it its root; a running "serve" takes it up
    Activate {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        /// Do not wait until every verifier has a new root
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        password: PasswordArgs,
    },
    /// Say that an old root is about to go: who has a certificate under it renews at once
    Taint {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        /// The first digits of its fingerprint or serial, at least 8, from "rotate status"
        root: String,
    },
    /// End a tainted root, or put an intermediate on its root's revocation list
    Revoke {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        /// The first digits of its fingerprint or serial, at least 8, from "rotate status"
        authority: String,
        /// End certificates under it that are still good
        #[arg(long)]
        force: bool,
        /// Why an intermediate goes (RFC 5280)
        #[arg(long, default_value = "superseded")]
        reason: RevocationReason,
        /// For an intermediate: file of its root's key [default: the one in the CA's directory]
        #[arg(long, value_name = "FILE")]
        root_key: Option<PathBuf>,
        #[command(flatten)]
        password: PasswordArgs,
    },
}

#[derive(Args)]
#[command(group(ArgGroup::new("which").required(true)))]
pub(crate) struct RevokeArgs {
    /// Directory of the CA
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Serials in hex, from "log list"
    #[arg(value_name = "SERIAL", group = "which")]
    pub(crate) serials: Vec<String>,
    /// Every certificate of this SPIFFE id, and its unused join tokens
    #[arg(long, value_name = "SPIFFE", group = "which")]
    pub(crate) id: Option<SpiffeId>,
    /// What came of a join token, with every renewal; the first digits of its hash, at least 8, from "token list"
    #[arg(long, value_name = "REF", group = "which")]
    pub(crate) token: Option<String>,
    /// With --id: issue nothing for it any more
    #[arg(long, requires = "id")]
    pub(crate) block: bool,
    /// With --id: take --block back, and revoke nothing
    #[arg(long, requires = "id", conflicts_with_all = ["block", "reason"])]
    pub(crate) unblock: bool,
    /// Why, as in RFC 5280: unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation …
    #[arg(long, default_value = "unspecified")]
    pub(crate) reason: RevocationReason,
    #[command(flatten)]
    pub(crate) password: PasswordArgs,
}
