//! Which tool applies the rules, and the little that the tools have in common.

pub mod iptables;
pub mod nft;

use serde::Serialize;

use crate::{Error, plan::Plan};
use iptables::Iptables;
use nft::Nft;

/// Whose choice the backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Ours: nft where it works, else iptables.
    Auto,
    /// The user's.
    Fixed(Kind),
}

/// The backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `nft -f`: both families in one transaction.
    Nft,
    /// `iptables-restore` and `ip6tables-restore`, whichever kernel interface they speak to.
    Iptables,
}

impl Kind {
    /// As the command line spells it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Nft => "nft",
            Kind::Iptables => "iptables",
        }
    }
}

/// A backend whose tools are there.
pub(crate) enum Backend {
    Nft(Nft),
    Iptables(Iptables),
}

impl Backend {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Backend::Nft(_) => Kind::Nft,
            Backend::Iptables(_) => Kind::Iptables,
        }
    }

    /// Makes the plan true. After an error everything is as it was, unless the error says otherwise.
    pub(crate) fn install(&self, plan: &Plan, notices: &mut Vec<String>) -> Result<(), Error> {
        match self {
            Backend::Nft(nft) => nft.install(plan),
            Backend::Iptables(iptables) => iptables.install(plan, notices),
        }
    }

    /// Removes our rules; `false` when there were none.
    pub(crate) fn remove(&self, notices: &mut Vec<String>) -> Result<bool, Error> {
        match self {
            Backend::Nft(nft) => nft.remove(),
            Backend::Iptables(iptables) => iptables.remove(notices),
        }
    }

    /// Whether rules of ours are there.
    pub(crate) fn holds_ours(&self) -> Result<bool, Error> {
        match self {
            Backend::Nft(nft) => nft.holds_ours(),
            Backend::Iptables(iptables) => iptables.holds_ours(),
        }
    }

    /// Removes the rules that an earlier run has put in with another tool. A tool that cannot even read (iptables-nft
    /// gives up on tables that hold rules of native nft) is a notice: it cannot be the one that wrote them.
    pub(crate) fn remove_elsewhere(&self, notices: &mut Vec<String>) -> Result<(), Error> {
        for other in every() {
            let same = match (self, &other) {
                (Backend::Nft(_), Backend::Nft(_)) => true,
                (Backend::Iptables(ours), Backend::Iptables(other)) => ours.speaks_like(other),
                _ => false,
            };
            if same {
                continue;
            }
            match other.holds_ours() {
                Ok(false) => {}
                Ok(true) => {
                    other.remove(notices)?;
                    notices.push(format!("removed an earlier set of ours that {} held", other.describe()));
                }
                Err(error) => {
                    notices
                        .push(format!("could not look for an earlier set of ours with {}: {error}", other.describe()));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn describe(&self) -> String {
        match self {
            Backend::Nft(_) => "nft".to_owned(),
            Backend::Iptables(iptables) => iptables.describe(),
        }
    }
}

/// Every backend whose tools are there. Looking changes nothing in the kernel.
fn every() -> Vec<Backend> {
    let nft = Nft::find().map(Backend::Nft);
    nft.into_iter().chain(Iptables::find_all().into_iter().map(Backend::Iptables)).collect()
}

/// The backends that `remove` must look into.
pub(crate) fn present(choice: Choice) -> Result<Vec<Backend>, Error> {
    let mut backends = every();
    if let Choice::Fixed(kind) = choice {
        backends.retain(|backend| backend.kind() == kind);
    }
    if backends.is_empty() {
        return Err(Error::NoBackend(match choice {
            Choice::Auto => format!("{}; {}", nft::MISSING, iptables::MISSING),
            Choice::Fixed(Kind::Nft) => nft::MISSING.to_owned(),
            Choice::Fixed(Kind::Iptables) => iptables::MISSING.to_owned(),
        }));
    }
    Ok(backends)
}

/// The backend for `install`, and why. The kernel is asked with `nft --check`, which runs the real transaction and
/// takes it back; iptables is not asked at all, since looking at a legacy table registers it.
pub(crate) fn choose(choice: Choice, plan: &Plan) -> Result<(Backend, String), Error> {
    let asked = |kind: Kind| format!("--backend {} was given", kind.name());
    match choice {
        Choice::Fixed(Kind::Nft) => match Nft::find() {
            Some(nft) => Ok((Backend::Nft(nft), asked(Kind::Nft))),
            None => Err(Error::NoBackend(nft::MISSING.to_owned())),
        },
        Choice::Fixed(Kind::Iptables) => match Iptables::find() {
            Some(iptables) => Ok((Backend::Iptables(iptables), asked(Kind::Iptables))),
            None => Err(Error::NoBackend(iptables::MISSING.to_owned())),
        },
        Choice::Auto => {
            let against_nft = match Nft::find() {
                None => nft::MISSING.to_owned(),
                Some(nft) => match nft.check(plan) {
                    Ok(()) => {
                        return Ok((
                            Backend::Nft(nft),
                            "nft is here and the kernel takes the rules from it".to_owned(),
                        ));
                    }
                    Err(error) if Iptables::find().is_none() => return Err(error),
                    Err(error) => format!("nft does not work here ({error})"),
                },
            };
            match Iptables::find() {
                Some(iptables) => {
                    let why = format!("{against_nft}; {} is here", iptables.describe());
                    Ok((Backend::Iptables(iptables), why))
                }
                None => Err(Error::NoBackend(format!("{against_nft}; {}", iptables::MISSING))),
            }
        }
    }
}

/// What `install` would most likely choose, without asking the kernel.
pub(crate) fn choose_unprivileged(choice: Choice) -> (Kind, String) {
    match choice {
        Choice::Fixed(kind) => (kind, format!("--backend {} was given", kind.name())),
        Choice::Auto if Nft::find().is_some() => (Kind::Nft, "nft is here; install also asks the kernel".to_owned()),
        Choice::Auto if iptables::is_here() => (Kind::Iptables, format!("{}; iptables-restore is here", nft::MISSING)),
        Choice::Auto => (Kind::Nft, format!("{}; {}; these are nft's rules", nft::MISSING, iptables::MISSING)),
    }
}
