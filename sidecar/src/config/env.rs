//! Single values from the environment: `OUTRIGGER_` and the value's path in upper case, `.` written as `_`.
//!
//! They win over the file. Lists are comma-separated; an empty variable is as good as none. An `OUTRIGGER_` variable
//! that names nothing is an error, but for those that Kubernetes and Docker put there for a service that happens to
//! be called `outrigger-…` (`OUTRIGGER_CA_SERVICE_HOST`, `OUTRIGGER_CA_PORT_15012_TCP_ADDR` …).

use std::{collections::BTreeMap, path::PathBuf, str::FromStr};

use serde::{Deserialize, de::IntoDeserializer, de::value};

use super::{
    CaAddress, CaConfig, Config, HumanDuration,
    problem::{ConfigError, Place, Problem, nearest},
};

const PREFIX: &str = "OUTRIGGER_";

/// The configuration file's path: read by the command line, so it is known and ignored here.
const CONFIG_FILE: &str = "OUTRIGGER_CONFIG";

/// `identity.ca`, which needs two values before it can exist.
#[derive(Default)]
struct Ca {
    address: Option<CaAddress>,
    bundle: Option<PathBuf>,
    token_file: Option<PathBuf>,
    ttl: Option<HumanDuration>,
    cluster_id: Option<String>,
}

type Set = fn(&mut Config, &mut Ca, &str) -> Result<(), String>;

/// Every value that can be given by a variable, by its path.
const TABLE: &[(&str, Set)] = &[
    ("workers", |c, _, v| set(&mut c.workers, number(v).map(Some))),
    ("log.level", |c, _, v| set(&mut c.log.level, Ok(v.to_owned()))),
    ("log.format", |c, _, v| set(&mut c.log.format, word(v))),
    ("identity.dir", |c, _, v| set(&mut c.identity.dir, Ok(v.into()))),
    ("identity.trust_domain", |c, _, v| set(&mut c.identity.trust_domain, word(v).map(Some))),
    ("identity.workload_api", |c, _, v| set(&mut c.identity.workload_api, word(v).map(Some))),
    ("identity.id", |c, _, v| set(&mut c.identity.id, word(v).map(Some))),
    ("identity.ca.address", |_, ca, v| set(&mut ca.address, word(v).map(Some))),
    ("identity.ca.bundle", |_, ca, v| set(&mut ca.bundle, Ok(Some(v.into())))),
    ("identity.ca.token_file", |_, ca, v| set(&mut ca.token_file, Ok(Some(v.into())))),
    ("identity.ca.ttl", |_, ca, v| set(&mut ca.ttl, word(v).map(Some))),
    ("identity.ca.cluster_id", |_, ca, v| set(&mut ca.cluster_id, Ok(Some(v.to_owned())))),
    ("inbound.port", |c, _, v| set(&mut c.inbound.port, number(v))),
    ("inbound.interception", |c, _, v| set(&mut c.inbound.interception, word(v))),
    ("inbound.mode", |c, _, v| set(&mut c.inbound.mode, word(v))),
    ("inbound.allow", |c, _, v| set(&mut c.inbound.allow, list(v))),
    ("inbound.application", |c, _, v| set(&mut c.inbound.application, word(v))),
    ("inbound.max_connections", |c, _, v| set(&mut c.inbound.max_connections, number(v))),
    ("inbound.max_handshakes", |c, _, v| set(&mut c.inbound.max_handshakes, number(v))),
    ("outbound.port", |c, _, v| set(&mut c.outbound.port, number(v))),
    ("outbound.unmatched", |c, _, v| set(&mut c.outbound.unmatched, word(v))),
    ("outbound.mesh_domains", |c, _, v| set(&mut c.outbound.mesh_domains, list(v))),
    ("outbound.detect_delay", |c, _, v| set(&mut c.outbound.detect_delay, word(v))),
    ("outbound.max_connections", |c, _, v| set(&mut c.outbound.max_connections, number(v))),
    ("dns.servers", |c, _, v| set(&mut c.dns.servers, list(v))),
    ("dns.timeout", |c, _, v| set(&mut c.dns.timeout, word(v))),
    ("dns.min_ttl", |c, _, v| set(&mut c.dns.min_ttl, word(v))),
    ("dns.max_ttl", |c, _, v| set(&mut c.dns.max_ttl, word(v))),
    ("admin.address", |c, _, v| set(&mut c.admin.address, word(v))),
    ("admin.telemetry_address", |c, _, v| set(&mut c.admin.telemetry_address, word(v))),
    ("drain.minimum", |c, _, v| set(&mut c.drain.minimum, word(v))),
    ("drain.timeout", |c, _, v| set(&mut c.drain.timeout, word(v))),
];

/// The variables that can be set and the paths of the values that they stand for.
pub fn variables() -> impl Iterator<Item = (String, &'static str)> {
    TABLE.iter().map(|(path, _)| (variable(path), *path))
}

fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "_").to_ascii_uppercase())
}

fn set<T>(to: &mut T, value: Result<T, String>) -> Result<(), String> {
    *to = value?;
    Ok(())
}

fn number<T: FromStr<Err: std::fmt::Display>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|e| format!("\"{value}\" is not a number that fits here: {e}"))
}

fn word<T: for<'de> Deserialize<'de>>(value: &str) -> Result<T, String> {
    let read: Result<T, value::Error> = T::deserialize(value.into_deserializer());
    read.map_err(|e| match e.to_string() {
        e if e.contains(value) => e,
        e => format!("\"{value}\": {e}"),
    })
}

fn list<T: for<'de> Deserialize<'de>>(value: &str) -> Result<Vec<T>, String> {
    let items: Vec<_> =
        value.split(',').map(str::trim).filter(|item| !item.is_empty()).map(word).collect::<Result<_, _>>()?;
    // An empty list would replace the file's and, where it says who may call, let everybody in.
    if items.is_empty() { Err(format!("\"{value}\" lists nothing")) } else { Ok(items) }
}

/// Puts the `OUTRIGGER_` variables of `env` into `config`. Gives, for each path that was set, the variable's name.
pub(super) fn apply(
    config: &mut Config,
    env: impl Iterator<Item = (String, String)>,
) -> Result<BTreeMap<&'static str, String>, ConfigError> {
    let (mut done, mut ca, mut problems) = (BTreeMap::new(), Ca::default(), Vec::new());
    // In order of their names, so that the same mistakes always give the same message.
    let env: BTreeMap<_, _> = env.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    for (name, value) in env {
        let value = value.trim();
        let Some((path, setter)) = TABLE.iter().find(|(path, _)| variable(path) == name) else {
            if name != CONFIG_FILE && !is_service_link(&name, value) {
                problems.push(unknown(name));
            }
            continue;
        };
        if value.is_empty() {
            continue;
        }
        match setter(config, &mut ca, value) {
            Ok(()) => drop(done.insert(*path, name)),
            Err(message) => {
                let remedy = format!("set it as {path} would be set in the file, or unset it");
                problems.push(Problem { place: Place::Variable(name), message, remedy });
            }
        }
    }
    if problems.is_empty() {
        problems.extend(ca.merge(config).map(|(path, missing)| Problem {
            place: Place::Variable(variable(path)),
            message: format!("a CA needs an address and a bundle, and {missing} is not given"),
            remedy: format!("set {} too, or identity.ca in the file", variable(missing)),
        }));
    }
    if problems.is_empty() { Ok(done) } else { Err(ConfigError { problems }) }
}

impl Ca {
    /// Puts these values into `config`, or gives the path of one of them and of the one that it needs.
    fn merge(self, config: &mut Config) -> Option<(&'static str, &'static str)> {
        let Self { address, bundle, token_file, ttl, cluster_id } = self;
        if let Some(ca) = &mut config.identity.ca {
            ca.address = address.unwrap_or_else(|| ca.address.clone());
            ca.bundle = bundle.unwrap_or_else(|| ca.bundle.clone());
            ca.token_file = token_file.or_else(|| ca.token_file.take());
            ca.ttl = ttl.or(ca.ttl);
            ca.cluster_id = cluster_id.or_else(|| ca.cluster_id.take());
            return None;
        }
        match (address, bundle) {
            (Some(address), Some(bundle)) => {
                config.identity.ca = Some(CaConfig { address, bundle, token_file, ttl, cluster_id });
                None
            }
            (Some(_), None) => Some(("identity.ca.address", "identity.ca.bundle")),
            (None, Some(_)) => Some(("identity.ca.bundle", "identity.ca.address")),
            (None, None) if token_file.is_some() => Some(("identity.ca.token_file", "identity.ca.address")),
            (None, None) if ttl.is_some() => Some(("identity.ca.ttl", "identity.ca.address")),
            (None, None) if cluster_id.is_some() => Some(("identity.ca.cluster_id", "identity.ca.address")),
            (None, None) => None,
        }
    }
}

fn unknown(name: String) -> Problem {
    let known: Vec<String> = variables().map(|(name, _)| name).collect();
    let remedy = match nearest(&name[PREFIX.len()..], known.iter().map(|k| &k[PREFIX.len()..])) {
        Some(near) => format!("did you mean {PREFIX}{near}?"),
        None => format!("unset it; the variables are {}", known.join(", ")),
    };
    Problem { place: Place::Variable(name), message: "there is no such setting".to_owned(), remedy }
}

/// Whether the variable is one of those that Kubernetes (`enableServiceLinks`, on by default) and Docker links make
/// for a service whose name begins with `outrigger-`.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_port_part = name.rsplit_once("_PORT_").is_some_and(|(_, rest)| {
        let mut parts = rest.split('_');
        parts.next().is_some_and(|p| p.parse::<u16>().is_ok())
            && parts.next().is_some_and(|p| matches!(p, "TCP" | "UDP" | "SCTP"))
    });
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && is_url)
        || is_port_part
        // `…_PORT_15012_TCP_PORT` is split at its last `_PORT_` only when something follows; this is that one.
        || ["_TCP_PORT", "_UDP_PORT", "_SCTP_PORT"].iter().any(|end| name.ends_with(end))
}
