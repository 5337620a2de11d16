//! What can go wrong with a CA's folder and keys, and what to do about it.

use std::io;

use super::{PASSWORD_ENV, SubjectError};

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
        "the intermediate certificate expired at {at}, so nothing can be signed any more; make another under the same root with \"outrigger-ca rotate prepare\" and \"outrigger-ca rotate activate\", and restart \"outrigger-ca serve\""
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
