//! Which route a request takes and what the route says: Gateway API's HTTPRoute and GRPCRoute.
//!
//! Everything here is made from the configuration once, is shared by all workers and knows no service: `outbound`
//! connects it with them.

mod conditions;
mod cors;
mod headers;
mod pattern;
mod rule;
mod table;
mod url;

use std::{collections::BTreeMap, sync::Arc};

use rustc_hash::FxHashMap;

pub use self::{
    conditions::Asked,
    cors::{CorsPolicy, is_preflight},
    headers::{HeaderChanges, why_not},
    pattern::{MAX_REGEX, whole},
    rule::{Abort, Backend, Delay, Mirror, Rule, Share},
    table::{Table, Taken, in_canonical_form},
    url::{Redirect, Rewrite, replace_path},
};
use crate::config::{Config, Host, HostPattern};

/// The tables of one host, by port.
#[derive(Debug, Default)]
struct Ports {
    /// Of routes that name no port.
    any: Option<usize>,
    /// Of the ports that a route names, the routes that name none included.
    named: Vec<(u16, usize)>,
}

/// All routes of a configuration.
#[derive(Debug, Default)]
pub struct Routes {
    tables: Vec<Arc<Table>>,
    hosts: FxHashMap<Box<str>, Ports>,
    /// By their suffix.
    wildcards: FxHashMap<Box<str>, Ports>,
}

impl Routes {
    /// Compiles the routes of a configuration that was found right.
    pub fn compile(config: &Config) -> Result<Self, String> {
        let normal = config.outbound.path_normalization;
        let mut by_host: BTreeMap<&HostPattern, Vec<usize>> = BTreeMap::new();
        let mut rules = Vec::with_capacity(config.routes.len());
        for (i, route) in config.routes.iter().enumerate() {
            for host in &route.hostnames {
                by_host.entry(host).or_default().push(i);
            }
            let compiled = route.rules.iter().map(|rule| Rule::compile(&route.name, rule, normal).map(Arc::new));
            rules.push(compiled.collect::<Result<Vec<_>, _>>()?);
        }
        let mut routes = Self::default();
        for (host, indices) in by_host {
            let mut table = |wanted: Option<u16>| {
                let here = indices.iter().filter(|i| {
                    let port = config.routes.get(**i).and_then(|r| r.port);
                    port.is_none() || port == wanted
                });
                let of_table = here.flat_map(|i| {
                    let configured = config.routes.get(*i).map_or(&[][..], |r| &r.rules);
                    let compiled = rules.get(*i).map_or(&[][..], Vec::as_slice);
                    compiled.iter().zip(configured).enumerate().map(move |(r, (rule, from))| {
                        (Arc::clone(rule), from.matches.as_slice(), format!("routes[{i}].rules[{r}]"))
                    })
                });
                let table = Table::compile(of_table, normal)?;
                routes.tables.push(Arc::new(table));
                Ok::<_, String>(routes.tables.len() - 1)
            };
            let ports = || indices.iter().filter_map(|i| config.routes.get(*i)).map(|r| r.port);
            let mut found = Ports::default();
            if ports().any(|port| port.is_none()) {
                found.any = Some(table(None)?);
            }
            for port in ports().flatten() {
                if found.named.iter().all(|(named, _)| *named != port) {
                    found.named.push((port, table(Some(port))?));
                }
            }
            let (hosts, name) = match host {
                HostPattern::Exact(host) => (&mut routes.hosts, host),
                HostPattern::Under(suffix) => (&mut routes.wildcards, suffix),
            };
            hosts.insert(name.as_str().into(), found);
        }
        Ok(routes)
    }

    /// Which table the requests for `host` at `port` take: that of the most specific name alone.
    pub fn find(&self, host: &Host, port: u16) -> Option<usize> {
        if self.tables.is_empty() {
            return None;
        }
        let table = |ports: &Ports| {
            let named = ports.named.iter().find(|(named, _)| *named == port).map(|(_, table)| *table);
            named.or(ports.any)
        };
        if let Some(found) = self.hosts.get(host.as_str()).and_then(table) {
            return Some(found);
        }
        let mut rest = host.as_str();
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(found) = self.wildcards.get(suffix).and_then(table) {
                return Some(found);
            }
            rest = suffix;
        }
        None
    }

    /// All tables, as [`Self::find`] numbers them.
    pub fn tables(&self) -> &[Arc<Table>] {
        &self.tables
    }

    /// Matches that no request can take, each as a sentence.
    pub fn unreachable(&self) -> Vec<String> {
        let mut found: Vec<String> = self.tables.iter().flat_map(|table| table.unreachable()).collect();
        found.sort();
        found.dedup();
        found
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
