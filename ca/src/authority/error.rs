//! What can go wrong with a CA's folder and keys, and what to do about it.

use std::{io, time::Duration};

use super::{PASSWORD_ENV, SubjectError};
use crate::store::StoreError;

/// Why the authority cannot be made, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// No CA in the directory.
    #[error("there is no CA in {dir}; make one with \"outrigger-ca init --dir {dir} --trust-domain <name>\"")]
    Missing {
        /// The directory that was looked into.
        dir: String,
    },
    /// A CA is there already.
    #[error(
        "{dir} already holds a CA ({file}); choose another --dir, or replace it with --force (the old files are kept beside it)"
    )]
    Exists {
        /// The directory.
        dir: String,
        /// The file that shows it.
        file: &'static str,
    },
    /// A server works with the CA that is to be replaced.
    #[error("\"outrigger-ca serve\" runs on {dir}, and would go on with the CA that is to be replaced; stop it first")]
    Served {
        /// The directory.
        dir: String,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {source}; check that it exists and that this user may do so")]
    File {
        /// `read`, `write`, `create` …
        action: &'static str,
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file is there but its content is not what `init` wrote.
    #[error("{path} is damaged: {why}; restore it from a backup")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The key is encrypted and nobody said the password.
    #[error("{path} is encrypted and no password was given; name its file with --password-file, or set {PASSWORD_ENV}")]
    Locked {
        /// The key's file.
        path: String,
    },
    /// The cipher's tag does not fit.
    #[error(
        "cannot decrypt {path}: the password is wrong, or the file was changed; correct --password-file or {PASSWORD_ENV}, or restore the file from a backup"
    )]
    WrongPassword {
        /// The key's file.
        path: String,
    },
    /// A password of no characters protects nothing.
    #[error("the password is empty; write one into the file, or say --no-password if the keys shall not be encrypted")]
    EmptyPassword,
    /// The root's key would lie beside what it is to be kept from.
    #[error(
        "{path} lies in the CA's own folder, where an offline root's key must not be; name a place elsewhere with --offline-root, best on a medium that can be taken away"
    )]
    OfflineRootInside {
        /// The place that was named.
        path: String,
    },
    /// The intermediate would live longer than its issuer.
    #[error(
        "an intermediate of {intermediate} would outlive its root of {root}; give a shorter --int-ttl or a longer --root-ttl"
    )]
    IntermediateOutlivesRoot {
        /// The intermediate's lifetime.
        intermediate: String,
        /// The root's lifetime.
        root: String,
    },
    /// The crypto library refused what it must be able to do.
    #[error("the crypto library failed: {0}; this is a defect, please report it")]
    Crypto(String),
    /// Argon2id needs memory, and there is none.
    #[error(
        "the password's hash needs {0} MiB of memory and there is not so much; raise the memory limit of this process"
    )]
    NoMemory(u32),
    /// The intermediate's life is over.
    #[error(
        "the intermediate certificate expired at {at}, so nothing can be signed any more; make another under the same root with \"outrigger-ca rotate prepare\" and \"outrigger-ca rotate activate\""
    )]
    IssuerExpired {
        /// Its `notAfter`.
        at: String,
    },
    /// The root's life is over.
    #[error(
        "the root expired at {at}, so it can sign no intermediate; make a new CA with \"outrigger-ca init --force\" and hand out its bundle"
    )]
    RootExpired {
        /// Its `notAfter`.
        at: String,
    },
    /// What shall be the shared root is none of this trust domain.
    #[error(
        "{path} is no root of the trust domain {domain}; give the root.pem of the CA that this one shall be a replica of"
    )]
    NotTheRoot {
        /// The file.
        path: String,
        /// The trust domain of the replica.
        domain: String,
    },
    /// The next intermediate is there already.
    #[error("the next intermediate is already prepared ({name}); let it sign with \"outrigger-ca rotate activate\"")]
    AlreadyPrepared {
        /// Its files' name.
        name: String,
    },
    /// There is no next intermediate.
    #[error("no next intermediate is prepared; make one with \"outrigger-ca rotate prepare\"")]
    NothingPrepared,
    /// The database knows of no intermediate that signs.
    #[error("no intermediate of the database signs, or its root is missing; restore ca.db from a backup")]
    NothingActive,
    /// A new root is there already.
    #[error(
        "the root {name} is already prepared; make an intermediate under it with \"outrigger-ca rotate prepare\", or take it out with \"outrigger-ca bundle set --replace\""
    )]
    RootPrepared {
        /// The root.
        name: String,
    },
    /// A new root has not been in the bundle for long enough.
    #[error(
        "the new root {root} joined the bundle at {since}, and verifiers look for a new bundle every {hint:?}: before {ready_at} some may refuse what it signs; run \"outrigger-ca rotate activate\" then, or now with --force if no verifier runs"
    )]
    NotPublished {
        /// The root.
        root: String,
        /// Since when it is in the bundle.
        since: String,
        /// How often verifiers look.
        hint: Duration,
        /// When it may be used.
        ready_at: String,
    },
    /// The prepared intermediate's root does not sign any more.
    #[error(
        "the prepared intermediate {name} is under the root {root}, which is {state}; drop it with \"outrigger-ca rotate revoke {name}\" and make another with \"outrigger-ca rotate prepare\""
    )]
    UnderRetiredRoot {
        /// The intermediate.
        name: String,
        /// Its root.
        root: String,
        /// The root's state.
        state: &'static str,
    },
    /// The intermediate in memory does not sign any more.
    #[error("the intermediate {name} is {state} and signs no more; try again, another one does")]
    Retired {
        /// The intermediate.
        name: String,
        /// Its state.
        state: &'static str,
    },
    /// Another process made a step of the rotation at the same time.
    #[error("another process changed the authorities at the same moment; look with \"outrigger-ca rotate status\"")]
    ChangedMeanwhile,
    /// No authority of that name, or several.
    #[error("\"{named}\" names no root or intermediate: {why}; see them with \"outrigger-ca rotate status\"")]
    NoAuthority {
        /// What was given.
        named: String,
        /// What is wrong with it.
        why: String,
    },
    /// Only a root can be tainted.
    #[error(
        "{name} is an intermediate, and only a root is tainted; put an intermediate on its root's list with \"outrigger-ca rotate revoke {name}\""
    )]
    NotARoot {
        /// The intermediate.
        name: String,
    },
    /// The root signs.
    #[error(
        "the root {name} is the active one, so everything leads to it; let another sign first: \"outrigger-ca rotate prepare --root\", then \"outrigger-ca rotate activate\""
    )]
    RootActive {
        /// The root.
        name: String,
    },
    /// Nothing was ever signed under the root.
    #[error(
        "the root {name} is prepared and nothing leads to it; take it out of the bundle with \"outrigger-ca bundle set --replace\""
    )]
    RootUnused {
        /// The root.
        name: String,
    },
    /// A root that was not tainted first.
    #[error(
        "the root {name} is not tainted, so nobody was told to renew; run \"outrigger-ca rotate taint {name}\" first"
    )]
    NotTainted {
        /// The root.
        name: String,
    },
    /// An intermediate of another replica signs under the root.
    #[error(
        "the intermediate {intermediate} still signs under the root {root}; run \"outrigger-ca rotate prepare\" and \"outrigger-ca rotate activate\" on the replica that has it first"
    )]
    StillSigning {
        /// The root.
        root: String,
        /// The intermediate.
        intermediate: String,
    },
    /// The intermediate signs.
    #[error(
        "the intermediate {name} is the active one; let another sign first: \"outrigger-ca rotate prepare\", then \"outrigger-ca rotate activate\""
    )]
    IntermediateActive {
        /// The intermediate.
        name: String,
    },
    /// Certificates under it are in use.
    #[error(
        "{count} certificates under {name} are still good ({not_renewed} of them not renewed since), the last until {last}; wait until then, or end them now with --force"
    )]
    StillUsed {
        /// The root or intermediate.
        name: String,
        /// How many.
        count: u64,
        /// How many have no successor.
        not_renewed: u64,
        /// When the last one ends.
        last: String,
    },
    /// Nothing to do.
    #[error("{name} is already {state}; see \"outrigger-ca rotate status\"")]
    AlreadySo {
        /// The root or intermediate.
        name: String,
        /// Its state.
        state: &'static str,
    },
    /// A bundle that cannot be this trust domain's.
    #[error("{path} cannot be taken into the bundle: {why}")]
    Bundle {
        /// The file.
        path: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// No such serial in the log.
    #[error("the issuance log has no certificate with the serial {serial}; look it up with \"outrigger-ca log list\"")]
    NoCertificate {
        /// What was given.
        serial: String,
    },
    /// The serial of an authority.
    #[error("{serial} is the serial of an authority; revoke it with \"outrigger-ca rotate revoke {name}\"")]
    IsAuthority {
        /// The serial.
        serial: String,
        /// The authority.
        name: String,
    },
    /// The certificate is over.
    #[error("the certificate {serial} expired at {at}, so nobody accepts it any more and there is nothing to revoke")]
    Expired {
        /// The serial.
        serial: String,
        /// Its `notAfter`.
        at: String,
    },
    /// A record whose certificate no known authority signed.
    #[error(
        "no intermediate of the database has signed the certificate {serial} that the log holds; restore ca.db from a backup"
    )]
    UnknownIssuer {
        /// The serial.
        serial: String,
    },
    /// The database failed.
    #[error(transparent)]
    Store(Box<StoreError>),
    /// The wished lifetime cannot be given.
    #[error("a lifetime of {wished} is not possible; choose one from 1s to {max}")]
    Lifetime {
        /// What was asked for.
        wished: String,
        /// The upper limit.
        max: String,
    },
    /// An id outside this trust domain, or a name that is not the workload's to have.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// The crypto library failed.
    #[error("signing failed: {0}; this is a defect, please report it")]
    Signing(#[from] rcgen::Error),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes; check that getrandom(2) works here")]
    Random,
}
