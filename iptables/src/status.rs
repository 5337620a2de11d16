//! `status`: what of ours is there. Reads and changes nothing.

use std::time::Duration;

use serde::Serialize;

use crate::{
    Error,
    backend::{self, Choice, Held, Kind, iptables},
    ground::Ground,
    netlink::address::LEG_ADDRESS_V6,
    plan::{ChainName, Family},
    verify,
};

/// Chains that hold a rule in every set that takes connections, whatever its options and families.
const NEVER_EMPTY: [ChainName; 3] = [ChainName::Inbound, ChainName::Intercept, ChainName::Outbound];

/// How much of the redirection is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// One set of rules, and what it stands on.
    Installed,
    /// Rules that let open connections end and take no new ones.
    Draining,
    /// Something, but not the whole of one set.
    Partial,
    /// Nothing.
    Absent,
}

/// The rules that one backend holds.
#[derive(Debug, Serialize)]
pub struct Rules {
    /// The backend.
    pub backend: Kind,
    /// How many rules of IPv4, or of both versions in nft's one table.
    pub rules: usize,
    /// How many of IPv6 alone, where the backend keeps them apart.
    pub rules_v6: usize,
    /// The ports of this host to which they lead, in order.
    pub ports: Vec<u16>,
    /// Whether inbound connections go by TPROXY.
    pub tproxy: bool,
    /// Whether connections get time-outs of their own.
    pub timeouts: bool,
}

/// What `status` found.
#[derive(Debug, Serialize)]
pub struct Status {
    /// `status`.
    pub command: &'static str,
    /// How much is there.
    pub state: State,
    /// Who holds rules.
    pub backends: Vec<Rules>,
    /// What is there besides rules.
    pub traces: Vec<String>,
    /// Why it is not whole, and what could not be looked at.
    pub notices: Vec<String>,
}

impl Status {
    /// The exit code of the program, stable; see the crate's documentation.
    pub fn exit_code(&self) -> u8 {
        match self.state {
            State::Installed => 0,
            State::Draining | State::Partial => 9,
            State::Absent => 10,
        }
    }
}

/// What of ours is in the current network namespace. Waits for nobody: beside another run it may see that half done. It is no proof that it works: that is [`crate::verify()`]'s.
///
/// # Errors
/// When no tool is there that could look, or none of them may.
pub fn status(choice: Choice, wait: Duration) -> Result<Status, Error> {
    let (mut backends, mut notices, mut first_error, mut looked) = (Vec::new(), Vec::new(), None, false);
    let (mut draining, mut cut_off, mut emptied) = (false, false, Vec::new());
    for backend in backend::present(choice, wait)? {
        match backend.held() {
            Ok(held) => {
                looked = true;
                let empty = backend.empty_chains()?;
                if held.0.is_empty() {
                    if !empty.is_empty() {
                        emptied.push(format!("chains of ours in {} that hold no rule", backend.kind()));
                    }
                    continue;
                }
                if held.decides() {
                    let names =
                        empty.into_iter().filter(|(_, chain)| NEVER_EMPTY.contains(chain)).map(|(name, _)| name);
                    for name in names {
                        cut_off = true;
                        notices
                            .push(format!("the chain {name} holds no rule: somebody emptied it; install repairs it"));
                    }
                } else {
                    draining = true;
                }
                if is_one_sided(&held) {
                    cut_off = true;
                    notices.push("IPv4 and IPv6 are entered differently: a run was cut off".to_owned());
                }
                backends.push(rules(backend.kind(), &held));
            }
            Err(error) => {
                notices.push(format!("could not look with {}: {error}", backend.describe()));
                first_error = first_error.or(Some(error));
            }
        }
    }
    if let (false, Some(error)) = (looked, first_error) {
        return Err(error);
    }
    notices.extend(backend::legacy_out_of_reach(wait));
    let mut traces = emptied;
    traces.extend(Ground::traces()?);
    traces.extend(iptables::policies()?);
    traces.extend(verify::traces()?);
    if let [only] = backends.as_slice()
        && only.backend != Kind::Nft
        && only.rules_v6 == 0
    {
        // `--ipv6 off` takes away what the rules of IPv6 stand on.
        let address = LEG_ADDRESS_V6.to_string();
        match traces.iter().find(|trace| trace.contains(&address) || trace.contains("IPv6 rule 15006")) {
            Some(trace) => {
                cut_off = true;
                notices.push(format!(
                    "no rules of IPv6, but what they stand on ({trace}): a run was cut off; install or remove repairs it"
                ));
            }
            None => notices.push("IPv4 only: connections over IPv6 go past the sidecar".to_owned()),
        }
    }
    let mut state = match (backends.len(), traces.is_empty()) {
        (0, true) => State::Absent,
        (1, _) if draining => State::Draining,
        (1, _) if !cut_off => State::Installed,
        _ => State::Partial,
    };
    if backends.len() > 1 {
        notices
            .push("several backends hold rules of ours: they decide differently as soon as options change".to_owned());
    }
    if backends.is_empty() && !traces.is_empty() {
        notices.push("no rules, but what they stand on: a run was cut off; install or remove repairs it".to_owned());
    }
    let tproxy = backends.iter().any(|rules| rules.tproxy);
    if tproxy && !traces.iter().any(|trace| trace.contains("rule 15006")) {
        notices.push("TPROXY without the rule that routes marked packets: install repairs it".to_owned());
        state = State::Partial;
    }
    let unused = traces.iter().find(|trace| {
        (trace.contains(" 15006") && !tproxy)
            || (trace.contains("time-out policy") && !backends.iter().any(|r| r.timeouts))
    });
    if let (State::Installed, Some(trace)) = (state, unused) {
        notices.push(format!("no rule needs {trace}: a run was cut off; install or remove repairs it"));
        state = State::Partial;
    }
    Ok(Status { command: "status", state, backends, traces, notices })
}

fn rules(backend: Kind, held: &Held) -> Rules {
    let v6 = held.0.iter().filter(|rule| rule.family == Some(Family::V6)).count();
    let tproxy = held.0.iter().any(|rule| rule.words.to_ascii_lowercase().contains("tproxy"));
    let timeouts = held.0.iter().any(|rule| rule.words.contains("timeout"));
    Rules { backend, rules: held.0.len() - v6, rules_v6: v6, ports: held.ports(), tproxy, timeouts }
}

/// iptables keeps the families apart: of a set that was cut off, one may be entered where the other is not.
fn is_one_sided(held: &Held) -> bool {
    // Only the entries: a chain of ours may be empty where no rule in it speaks of its family.
    let entries = |family: Family| {
        let rules = held.0.iter().filter(move |rule| rule.family == Some(family) && !rule.chain.contains("OUTRIGGER_"));
        rules.map(|rule| (&rule.chain, rule.name())).collect::<Vec<_>>()
    };
    let (v4, v6) = (entries(Family::V4), entries(Family::V6));
    !v6.is_empty() && v4 != v6
}
