//! What a command's failure is called and which exit status it has. Scripts build on both, so they do not change.

use std::{
    error::Error,
    io::{self, Write as _},
};

use outrigger_ca::{
    admin::AdminError,
    attest::CreateError,
    authority::{AuthorityError, OutputError, RequestError, SubjectError},
    inspect::InspectError,
    issue::IssueError,
    server::ServeError,
    store::{ChainFault, StoreError},
};

/// Exit statuses, for `--help`. Each belongs to a group of codes.
pub(crate) const EXIT_STATUSES: &str = "\
Exit status:
  0  done
  1  failed: a file, the database, the network or the system
  2  the command line is wrong
  3  refused: a rule of the CA forbids it, or it would overwrite something
  4  not found: no CA, token or file there
  5  the password is missing or wrong
  6  examined and found wanting (log verify, verify, check)
With --json an error is one line on stderr: {\"error\":{\"code\":…,\"exit\":…,\"message\":…}}";

/// Why a command failed: groups of the same exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file, the database, the network or the system.
    Failed,
    /// The command line is wrong.
    Usage,
    /// A rule forbids it.
    Refused,
    /// It is not there.
    NotFound,
    /// A password is missing or wrong.
    Password,
    /// What was examined is not right.
    Verdict,
}

impl Kind {
    pub(crate) fn exit(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::NotFound => 4,
            Self::Password => 5,
            Self::Verdict => 6,
        }
    }
}

/// A failure, with the words for people and the code for programs.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    /// Lower-case words joined by underscores; says more than the exit status and is as stable.
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// Whoever read our output has read enough (`log list | head`).
    pub(crate) reader_gone: bool,
}

impl Failure {
    pub(crate) fn new(kind: Kind, code: &'static str, message: impl Into<String>) -> Self {
        Self { kind, code, message: message.into(), reader_gone: false }
    }

    fn of(kind: Kind, code: &'static str, error: &dyn Error) -> Self {
        Self::new(kind, code, error.to_string())
    }

    /// Prints it to stderr as a line of text or of JSON.
    pub(crate) fn print(&self, json: bool) {
        if json {
            let error = serde_json::json!({
                "error": { "code": self.code, "exit": self.kind.exit(), "message": self.message }
            });
            say(&error.to_string());
        } else {
            say(&format!("outrigger-ca: {}", self.message));
        }
    }
}

/// The exit status speaks where nobody reads stderr any more.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Errors of writing a result to stdout.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let mut failure =
            Self::new(Kind::Failed, "output", format!("cannot write the result: {error}; check where stdout goes"));
        failure.reader_gone = error.kind() == io::ErrorKind::BrokenPipe;
        failure
    }
}

impl From<AuthorityError> for Failure {
    fn from(error: AuthorityError) -> Self {
        let (kind, code) = match &error {
            AuthorityError::Missing { .. } => (Kind::NotFound, "no_ca"),
            AuthorityError::Exists { .. } => (Kind::Refused, "ca_exists"),
            AuthorityError::Served { .. } => (Kind::Refused, "ca_served"),
            AuthorityError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                (Kind::NotFound, "no_file")
            }
            AuthorityError::File { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
                (Kind::Refused, "file_exists")
            }
            AuthorityError::File { .. } => (Kind::Failed, "file"),
            AuthorityError::Damaged { .. } => (Kind::Failed, "damaged"),
            AuthorityError::IssuerExpired { .. } => (Kind::Refused, "issuer_expired"),
            AuthorityError::Lifetime { .. } => (Kind::Refused, "lifetime"),
            AuthorityError::Subject(_) => (Kind::Refused, "subject"),
            AuthorityError::Locked { .. } => (Kind::Password, "password_missing"),
            AuthorityError::WrongPassword { .. } => (Kind::Password, "password_wrong"),
            AuthorityError::EmptyPassword => (Kind::Password, "password_empty"),
            AuthorityError::OfflineRootInside { .. } => (Kind::Refused, "offline_root_inside"),
            AuthorityError::IntermediateOutlivesRoot { .. } => (Kind::Refused, "lifetime"),
            AuthorityError::NoMemory(_) => (Kind::Failed, "memory"),
            AuthorityError::NotTheRoot { .. } => (Kind::Refused, "root_trust_domain"),
            AuthorityError::RootExpired { .. } => (Kind::Refused, "root_expired"),
            AuthorityError::AlreadyPrepared { .. } => (Kind::Refused, "already_prepared"),
            AuthorityError::NothingPrepared => (Kind::NotFound, "nothing_prepared"),
            AuthorityError::NothingActive => (Kind::Failed, "nothing_active"),
            AuthorityError::RootPrepared { .. } => (Kind::Refused, "root_prepared"),
            AuthorityError::NotPublished { .. } => (Kind::Refused, "not_published"),
            AuthorityError::UnderRetiredRoot { .. } => (Kind::Refused, "under_retired_root"),
            AuthorityError::Retired { .. } => (Kind::Failed, "retired"),
            AuthorityError::ChangedMeanwhile => (Kind::Failed, "changed_meanwhile"),
            AuthorityError::NoAuthority { .. } => (Kind::NotFound, "no_authority"),
            AuthorityError::NotARoot { .. } => (Kind::Refused, "not_a_root"),
            AuthorityError::RootActive { .. } => (Kind::Refused, "root_active"),
            AuthorityError::RootUnused { .. } => (Kind::Refused, "root_unused"),
            AuthorityError::NotTainted { .. } => (Kind::Refused, "not_tainted"),
            AuthorityError::StillSigning { .. } => (Kind::Refused, "still_signing"),
            AuthorityError::IntermediateActive { .. } => (Kind::Refused, "intermediate_active"),
            AuthorityError::StillUsed { .. } => (Kind::Refused, "still_used"),
            AuthorityError::AlreadySo { .. } => (Kind::Refused, "already_so"),
            AuthorityError::Bundle { .. } => (Kind::Refused, "bundle"),
            AuthorityError::NoCertificate { .. } => (Kind::NotFound, "no_certificate"),
            AuthorityError::IsAuthority { .. } => (Kind::Refused, "is_authority"),
            AuthorityError::Expired { .. } => (Kind::Refused, "expired"),
            AuthorityError::UnknownIssuer { .. } => (Kind::Failed, "unknown_issuer"),
            AuthorityError::Store(error) => (Kind::Failed, store_code(error)),
            AuthorityError::Crypto(_) | AuthorityError::Signing(_) => (Kind::Failed, "signing"),
            AuthorityError::Random => (Kind::Failed, "random"),
        };
        Self::of(kind, code, &error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Url(..) => Kind::Usage,
            StoreError::NoCa(_) => Kind::NotFound,
            StoreError::Taken { .. } | StoreError::OtherTrustDomain { .. } => Kind::Refused,
            _ => Kind::Failed,
        };
        Self::of(kind, store_code(&error), &error)
    }
}

fn store_code(error: &StoreError) -> &'static str {
    match error {
        StoreError::Sqlite(_) | StoreError::NoWal(_) | StoreError::Postgres { .. } => "database",
        StoreError::Unknown(_) => "database_unknown",
        StoreError::Url(..) => "database_url",
        StoreError::Tls(_) => "database_tls",
        StoreError::NoCa(_) => "database_empty",
        StoreError::Taken { .. } => "database_taken",
        StoreError::OtherTrustDomain { .. } => "database_trust_domain",
        StoreError::Newer { .. } => "database_newer",
        StoreError::Older { .. } => "database_older",
        StoreError::Damaged(_) => "database_damaged",
    }
}

impl From<ChainFault> for Failure {
    fn from(error: ChainFault) -> Self {
        let code = match error {
            // A row that cannot be one of ours is a verdict too.
            ChainFault::Store(StoreError::Damaged(_)) => "log_damaged",
            ChainFault::Store(error) => return error.into(),
            ChainFault::Broken { .. } => "log_broken",
            ChainFault::Cut { .. } => "log_cut",
            ChainFault::RevocationBroken { .. } => "revocations_broken",
            ChainFault::RevocationCut { .. } => "revocations_cut",
            ChainFault::HeadMissing(_) => "log_head_missing",
        };
        Self::of(Kind::Verdict, code, &error)
    }
}

impl From<CreateError> for Failure {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Authority(error) => error.into(),
            CreateError::Store(error) => error.into(),
        }
    }
}

impl From<IssueError> for Failure {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Refused(refusal) => Self::of(Kind::Refused, "credential", &refusal),
            IssueError::Authority(error) => error.into(),
            IssueError::Store(error) => error.into(),
        }
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        match &error {
            AdminError::Connect { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Self::of(Kind::NotFound, "no_socket", &error)
            }
            AdminError::Connect { .. } | AdminError::Answer { .. } => Self::of(Kind::Failed, "admin_socket", &error),
            AdminError::Refused(fault) => {
                let (kind, code) = match fault.code.as_str() {
                    "peer" => (Kind::Refused, "peer"),
                    "subject" => (Kind::Refused, "subject"),
                    "lifetime" => (Kind::Refused, "lifetime"),
                    "request" => (Kind::Refused, "request"),
                    "issuer_expired" => (Kind::Refused, "issuer_expired"),
                    "database" => (Kind::Failed, "database"),
                    _ => (Kind::Failed, "admin_socket"),
                };
                Self::of(kind, code, &error)
            }
        }
    }
}

impl From<SubjectError> for Failure {
    fn from(error: SubjectError) -> Self {
        AuthorityError::from(error).into()
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::of(Kind::Refused, "request", &error)
    }
}

impl From<InspectError> for Failure {
    fn from(error: InspectError) -> Self {
        let (kind, code) = match &error {
            InspectError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                (Kind::NotFound, "no_file")
            }
            InspectError::File { .. } => (Kind::Failed, "file"),
            InspectError::NotCrls { .. } => (Kind::Failed, "not_crls"),
            InspectError::NotCertificates { .. } | InspectError::TooLong { .. } => (Kind::Failed, "not_certificates"),
            InspectError::Peer { .. } => (Kind::Failed, "peer"),
        };
        Self::of(kind, code, &error)
    }
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        Self::of(Kind::Failed, "file", &error)
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        let code = match error {
            // As the same failure of "issue".
            ServeError::OwnCertificate(error) => return error.into(),
            ServeError::Listen { .. } => "listen",
            ServeError::AdminSocket { .. } => "admin_socket",
            ServeError::System(..) => "system",
            ServeError::OwnKey(_) => "own_certificate",
            ServeError::Tls(_) => "tls",
            ServeError::Store(_) => "database",
        };
        Self::of(Kind::Failed, code, &error)
    }
}
