//! Which tool applies the rules, and the little that the tools have in common.

pub mod iptables;
pub mod nft;

use std::{fmt, str::FromStr, time::Duration};

use serde::Serialize;

use crate::{
    Error, InvalidOption,
    netlink::{nf_tables, refused},
    plan::{ChainName, Family, Plan},
};
use iptables::{Iptables, Variant};
use nft::Nft;

/// The chains that decide about new connections; without their rules, open connections are carried on.
pub(crate) const DECIDING: [ChainName; 8] = [
    ChainName::Peers,
    ChainName::PeersFrom,
    ChainName::Intercept,
    ChainName::Inbound,
    ChainName::Outbound,
    ChainName::OutboundTo,
    ChainName::OutboundPorts,
    ChainName::Dns,
];

/// What [`Error::HalfApplied`] says of rules that were to be taken out.
pub(crate) const PART_IS_GONE: &str = "a part of our rules has been taken out already, the rest is still there";

/// Whose choice the backend is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// Ours: nft where it works, else what the host uses of iptables.
    #[default]
    Auto,
    /// The user's.
    Fixed(Kind),
}

/// The backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `nft -f`: both families in one transaction.
    Nft,
    /// `iptables-restore` and `ip6tables-restore` that speak to nf_tables.
    IptablesNft,
    /// The same that speak to the kernel's older interface.
    IptablesLegacy,
}

impl Kind {
    /// All, the best first.
    pub const ALL: [Kind; 3] = [Kind::Nft, Kind::IptablesNft, Kind::IptablesLegacy];

    /// As the command line spells it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Nft => "nft",
            Kind::IptablesNft => "iptables-nft",
            Kind::IptablesLegacy => "iptables-legacy",
        }
    }

    fn missing(self) -> &'static str {
        match self {
            Kind::Nft => nft::MISSING,
            Kind::IptablesNft => Variant::Nft.missing(),
            Kind::IptablesLegacy => Variant::Legacy.missing(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Auto => f.write_str("auto"),
            Choice::Fixed(kind) => kind.fmt(f),
        }
    }
}

impl FromStr for Choice {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        if text == "auto" {
            return Ok(Choice::Auto);
        }
        Kind::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .map(Choice::Fixed)
            .ok_or_else(|| InvalidOption(format!("{text:?} is none of auto, nft, iptables-nft, iptables-legacy")))
    }
}

/// A backend whose tools are there.
pub(crate) enum Backend {
    Nft(Nft),
    Iptables(Box<Iptables>),
}

impl Backend {
    fn find(kind: Kind, wait: Duration) -> Option<Self> {
        match kind {
            Kind::Nft => Nft::find().map(Backend::Nft),
            Kind::IptablesNft => Iptables::find(Variant::Nft, wait).map(Box::new).map(Backend::Iptables),
            Kind::IptablesLegacy => Iptables::find(Variant::Legacy, wait).map(Box::new).map(Backend::Iptables),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self {
            Backend::Nft(_) => Kind::Nft,
            Backend::Iptables(iptables) => match iptables.variant {
                Variant::Nft => Kind::IptablesNft,
                Variant::Legacy => Kind::IptablesLegacy,
            },
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

    /// Lets new connections go their own way, and carries the open ones on.
    pub(crate) fn let_drain(&self, notices: &mut Vec<String>) -> Result<(), Error> {
        match self {
            Backend::Nft(nft) => nft.let_drain(),
            Backend::Iptables(iptables) => iptables.let_drain(notices),
        }
    }

    /// Whether rules of ours are there.
    pub(crate) fn holds_ours(&self) -> Result<bool, Error> {
        match self {
            Backend::Nft(nft) => nft.holds_ours(),
            Backend::Iptables(iptables) => iptables.holds_ours(),
        }
    }

    /// Our rules as the kernel has them.
    pub(crate) fn held(&self) -> Result<Held, Error> {
        match self {
            Backend::Nft(nft) => Ok(Held::of_nft(&nft.listing()?)),
            Backend::Iptables(iptables) => Ok(Held::of_iptables(&iptables.rules()?)),
        }
    }

    /// The chains of ours that hold no rule, those of DECIDING alone, each by the tool's name for it too.
    pub(crate) fn empty_chains(&self) -> Result<Vec<(String, ChainName)>, Error> {
        let names = match self {
            Backend::Nft(nft) => nft::empty_chains(&nft.listing()?),
            Backend::Iptables(iptables) => iptables.empty_chains()?,
        };
        let known = |name: String| {
            let plain = name.rsplit(' ').next().unwrap_or_default();
            let plain = plain.strip_prefix(iptables::PREFIX).unwrap_or(plain);
            let chain = DECIDING.into_iter().find(|chain| chain.name().eq_ignore_ascii_case(plain))?;
            Some((name, chain))
        };
        Ok(names.into_iter().filter_map(known).collect())
    }

    /// Our rules as the plan wants them.
    pub(crate) fn wanted(&self, plan: &Plan) -> Held {
        match self {
            Backend::Nft(_) => Held::of_nft(&nft::render(plan)),
            Backend::Iptables(iptables) => Held::of_iptables(&iptables.wanted(plan)),
        }
    }

    /// Removes the rules that an earlier run has put in with another tool. A tool that cannot even read (iptables-nft
    /// gives up on tables that hold rules of native nft) is a notice: it cannot be the one that wrote them.
    pub(crate) fn remove_elsewhere(&self, wait: Duration, notices: &mut Vec<String>) -> Result<(), Error> {
        for kind in holders()?.into_iter().filter(|kind| *kind != self.kind()) {
            let Some(other) = Backend::find(kind, wait) else {
                if kind != Kind::IptablesLegacy {
                    notices.push(format!("{kind} may hold an earlier set of ours, but {}", kind.missing()));
                }
                continue;
            };
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

/// The comment of a rule: its name, and a hash of what it says, by which `verify` sees that a rule of that name says
/// something else. Letters, digits, `-` and `_` alone, or iptables-save would put it in quotes.
pub(crate) fn comment(name: &str, words: &str) -> String {
    // FNV-1a of 32 bits (draft-eastlake-fnv): rules outlive the program that has made them, so the hash must be the same
    // in every version of it. It guards against mistakes, not against somebody who may write rules anyway.
    let hash = words.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{name}_{hash:08x}")
}

/// One rule of ours: the chain it stands in, its comment, and its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldRule {
    pub(crate) family: Option<Family>,
    pub(crate) chain: String,
    pub(crate) comment: String,
    pub(crate) words: String,
}

impl HeldRule {
    /// What it is for, as the plan calls it.
    pub(crate) fn name(&self) -> &str {
        self.comment.rsplit_once('_').map_or(self.comment.as_str(), |(name, _)| name)
    }
}

/// The rules of ours that are somewhere, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held(pub(crate) Vec<HeldRule>);

impl Held {
    fn of_nft(text: &str) -> Self {
        let mut rules = Vec::new();
        for (chain, lines) in nft::rules(text) {
            rules.extend(lines.into_iter().map(|(words, comment)| HeldRule {
                family: None,
                chain: chain.clone(),
                comment,
                words,
            }));
        }
        Self(rules)
    }

    fn of_iptables(rules: &[(Family, String)]) -> Self {
        let read = |(family, rule): &(Family, String)| {
            let mut words = rule.split(' ');
            let (table, _, chain) = (words.next()?, words.next()?, words.next()?);
            let mut words = words.skip_while(|word| *word != "--comment").skip(1);
            let comment = words.next().unwrap_or_default().trim_matches('"').to_owned();
            Some(HeldRule { family: Some(*family), chain: format!("{table} {chain}"), comment, words: rule.clone() })
        };
        Self(rules.iter().filter_map(read).collect())
    }

    /// Whether there are rules that decide about new connections.
    pub(crate) fn decides(&self) -> bool {
        self.0.iter().any(|rule| {
            let chain = rule.chain.split(' ').next_back().unwrap_or_default();
            let chain = chain.strip_prefix(iptables::PREFIX).unwrap_or(chain);
            DECIDING.iter().any(|deciding| deciding.name().eq_ignore_ascii_case(chain))
        })
    }

    /// The ports of this host to which they lead.
    pub(crate) fn ports(&self) -> Vec<u16> {
        let port = |words: &str| {
            let after = ["to :", "--to-ports ", "--on-port "].iter().find_map(|flag| words.split_once(flag))?.1;
            after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let mut ports: Vec<u16> = self.0.iter().filter_map(|rule| port(&rule.words)).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

/// Which backends may hold rules of ours. Of those that speak to nf_tables the kernel itself tells; of the legacy ones it
/// tells whether there are tables at all, and so looking changes nothing.
fn holders() -> Result<Vec<Kind>, Error> {
    let legacy = Family::ALL.into_iter().any(iptables::has_legacy_tables);
    let look = "run as root or with the capability NET_ADMIN";
    let sets = nf_tables::sets(iptables::PREFIX).map_err(refused("list the chains of nf_tables", look))?;
    let sets = sets.unwrap_or_default();
    let may_hold = |kind: &Kind| match kind {
        Kind::Nft => sets.native,
        Kind::IptablesNft => sets.iptables,
        Kind::IptablesLegacy => legacy,
    };
    Ok(Kind::ALL.into_iter().filter(may_hold).collect())
}

/// A word about legacy tables in which nobody can look: they may be somebody else's alone, and nothing but their own tool
/// can tell.
pub(crate) fn legacy_out_of_reach(wait: Duration) -> Option<String> {
    let legacy = Family::ALL.into_iter().any(iptables::has_legacy_tables);
    (legacy && Backend::find(Kind::IptablesLegacy, wait).is_none()).then(|| {
        format!(
            "legacy tables are in use here, but {}: whether rules of ours are in them is not known",
            Variant::Legacy.missing()
        )
    })
}

/// The backends that may hold rules of ours, of those that are asked for.
pub(crate) fn present(choice: Choice, wait: Duration) -> Result<Vec<Backend>, Error> {
    let asked = |kind: &Kind| choice == Choice::Auto || choice == Choice::Fixed(*kind);
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for kind in holders()?.into_iter().filter(asked) {
        match Backend::find(kind, wait) {
            Some(backend) => found.push(backend),
            None if kind == Kind::IptablesLegacy && choice == Choice::Auto => {}
            None => missing.push(format!("rules of ours may be in {kind}, but {}", kind.missing())),
        }
    }
    if missing.is_empty() { Ok(found) } else { Err(Error::NoBackend(missing.join("; "))) }
}

/// The backend for `install`, and why.
///
/// nft is asked with `nft --check`, which runs the real transaction and takes it back. iptables is not asked at all,
/// since looking at a legacy table registers it: which tables are registered is read from `/proc`, and whether the
/// kernel has nf_tables is asked of the kernel itself.
pub(crate) fn choose(choice: Choice, plan: &Plan, wait: Duration) -> Result<(Backend, String), Error> {
    if let Choice::Fixed(kind) = choice {
        let backend = Backend::find(kind, wait).ok_or_else(|| Error::NoBackend(kind.missing().to_owned()))?;
        return Ok((backend, format!("--backend {kind} was given")));
    }
    let against_nft = match Nft::find() {
        None => nft::MISSING.to_owned(),
        Some(nft) => match nft.check(plan) {
            Ok(()) => {
                return Ok((Backend::Nft(nft), "nft is here and the kernel takes the rules from it".to_owned()));
            }
            // What passes is no reason to hold rules in another place from now on.
            Err(error) if matches!(error, Error::NotPermitted { .. }) || error.is_passing() => return Err(error),
            Err(error) => {
                if Kind::ALL.into_iter().skip(1).all(|kind| Backend::find(kind, wait).is_none()) {
                    return Err(error);
                }
                format!("nft does not work here ({error})")
            }
        },
    };
    let (order, reason) = iptables_order();
    for kind in order {
        if let Some(backend) = Backend::find(kind, wait) {
            let why = format!("{against_nft}; {reason}; {} is here", backend.describe());
            return Ok((backend, why));
        }
    }
    Err(Error::NoBackend(format!("{against_nft}; {}; {}", Variant::Nft.missing(), Variant::Legacy.missing())))
}

/// Which iptables to look for first, and why.
fn iptables_order() -> ([Kind; 2], &'static str) {
    let (nft_first, legacy_first) =
        ([Kind::IptablesNft, Kind::IptablesLegacy], [Kind::IptablesLegacy, Kind::IptablesNft]);
    if Family::ALL.into_iter().any(iptables::has_legacy_tables) {
        return (legacy_first, "legacy tables are in use in this network namespace");
    }
    match nf_tables::sets(iptables::PREFIX).map(|sets| sets.is_some()) {
        Ok(true) => (nft_first, "no legacy tables are in use, and the kernel has nf_tables"),
        Ok(false) => (legacy_first, "the kernel has no nf_tables"),
        Err(_) => (nft_first, "no legacy tables are in use"),
    }
}

/// What `install` would most likely choose, without asking the kernel for what needs a privilege.
pub(crate) fn choose_unprivileged(choice: Choice, wait: Duration) -> (Kind, String) {
    match choice {
        Choice::Fixed(kind) => (kind, format!("--backend {kind} was given")),
        Choice::Auto if Nft::find().is_some() => (Kind::Nft, "nft is here; install also asks the kernel".to_owned()),
        Choice::Auto => {
            let (order, reason) = iptables_order();
            match order.into_iter().find(|kind| Backend::find(*kind, wait).is_some()) {
                Some(kind) => (kind, format!("{}; {reason}", nft::MISSING)),
                None => (Kind::Nft, format!("{}, and no iptables-restore; these are nft's rules", nft::MISSING)),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Options;

    #[test]
    fn the_hash_in_a_comment_is_fnv_1a_in_every_version() {
        // The vectors of draft-eastlake-fnv.
        for (words, hash) in [("", "811c9dc5"), ("a", "e40c292c"), ("foobar", "bf9cf968")] {
            assert_eq!(comment("zones_in", words), format!("zones_in_{hash}"));
        }
        let rule = |comment| HeldRule { family: None, chain: String::new(), comment, words: String::new() };
        assert_eq!(rule(comment("zones_in", "x")).name(), "zones_in");
    }

    #[test]
    fn the_ports_of_a_set_are_found_in_every_language() {
        let plan = Plan::new(&Options { dns_port: Some(15053), ..Options::default() }).unwrap();
        let nft = Held::of_nft(&nft::render(&plan));
        assert_eq!(nft.ports(), [15001, 15006, 15053]);
        assert!(nft.0.iter().all(|rule| !rule.comment.is_empty()), "{nft:?}");
        let rules =
            [(Family::V6, "nat -A OUTRIGGER_X -p tcp -m comment --comment \"a-b\" -j REDIRECT --to-ports 7".into())];
        let held = Held::of_iptables(&rules);
        assert_eq!(
            (held.ports(), held.0[0].comment.as_str(), held.0[0].chain.as_str()),
            (vec![7], "a-b", "nat OUTRIGGER_X")
        );
    }
}
