//! What can go wrong, in words that name the command, the rule and the remedy. The exit codes are in the crate's doc.

use std::{io, path::PathBuf};

use nix::errno::Errno;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Options that contradict each other.
    #[error("{0}")]
    Options(#[from] crate::InvalidOption),
    /// The kernel does not let us.
    #[error(
        "`{command}` was not permitted: {said}\nrun as root or with the capability NET_ADMIN in the user namespace that \
         owns this network namespace; nothing was changed"
    )]
    NotPermitted {
        /// The command, or the system call.
        command: String,
        /// Its own words.
        said: String,
    },
    /// No tool that could apply rules.
    #[error("no backend is usable: {0}\ninstall the package `nftables` (preferred) or `iptables`")]
    NoBackend(String),
    /// A tool refused; everything is as before.
    #[error("`{command}` refused: {said}{}\n{remedy}; the rules are as they were", at(.line))]
    Refused {
        /// The command.
        command: String,
        /// Its standard error.
        said: String,
        /// The line of the script that it complains about.
        line: Option<String>,
        /// What to do next.
        remedy: String,
    },
    /// A tool refused, and so did the attempt to put things back.
    #[error("{}\nAND THIS COULD NOT BE UNDONE: {}\nrun `outrigger-iptables remove`, then install again", without_assurance(&.error.to_string()), without_assurance(.undo))]
    HalfApplied {
        /// The first failure.
        error: Box<Error>,
        /// What stopped the undoing.
        undo: String,
    },
    /// The configuration file or an environment variable is wrong.
    #[error("{place}: {said}")]
    Settings {
        /// The file, or "the environment".
        place: String,
        /// What is wrong with it.
        said: String,
    },
    /// `--ipv6 on`, and there is none.
    #[error("--ipv6 on, but {0}\nswitch IPv6 on here, or give --ipv6 auto; the rules are as they were")]
    NoIpv6(String),
    /// The namespace of `--netns`.
    #[error(
        "cannot enter the network namespace {}: {source}\ngive a path such as /run/netns/NAME or /proc/PID/ns/net, and run \
         as root (or with the capability SYS_ADMIN)", path.display()
    )]
    Netns {
        /// The path as given.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The lock was not to be had.
    #[error("{0}\nwait for that program to end, or end it, then run this again; nothing was changed")]
    Busy(String),
    /// A file or socket of the system that must be there is not.
    #[error("cannot {what}: {source}\n{remedy}")]
    System {
        /// What we wanted, as "open the routing socket".
        what: String,
        /// What the kernel said.
        source: io::Error,
        /// What to do next.
        remedy: &'static str,
    },
}

impl Error {
    /// The exit code of the program, stable; see the crate's documentation.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Options(_) | Error::Settings { .. } => 2,
            Error::NotPermitted { .. } => 3,
            Error::NoBackend(_) => 4,
            Error::Refused { .. } | Error::System { .. } | Error::NoIpv6(_) => 5,
            Error::HalfApplied { .. } => 6,
            Error::Netns { .. } => 7,
            Error::Busy(_) => 8,
        }
    }

    /// Whether a tool failed for want of something that may be there a moment later, rather than of a feature.
    pub(crate) fn is_passing(&self) -> bool {
        const SIGNS: [&str; 7] = [
            "Cannot allocate memory",
            "No buffer space available",
            "Resource busy",
            "Resource temporarily unavailable",
            "Too many open files",
            "Interrupted system call",
            crate::command::BY_A_SIGNAL,
        ];
        match self {
            Error::Refused { said, .. } => SIGNS.iter().any(|sign| said.contains(sign)),
            Error::System { source, .. } => source.raw_os_error().is_some_and(|raw| {
                [Errno::ENOMEM, Errno::EAGAIN, Errno::EMFILE, Errno::ENFILE].contains(&Errno::from_raw(raw))
            }),
            Error::Busy(_) => true,
            _ => false,
        }
    }

    /// The same failure, made worse: it could not be undone.
    pub(crate) fn with_undo_failure(self, undo: String) -> Self {
        Error::HalfApplied { error: Box::new(self), undo }
    }
}

/// The words of an error that is part of a worse one, without that nothing has changed.
fn without_assurance(words: &str) -> String {
    words.replace("; the rules are as they were", "").replace("; nothing was changed", "")
}

fn at(line: &Option<String>) -> String {
    line.as_ref().map(|line| format!("\nthe rule at fault: {line}")).unwrap_or_default()
}
