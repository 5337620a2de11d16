//! The rules of one host, and which of them a request takes.

use std::sync::Arc;

use regex::bytes::Regex;
use rustc_hash::FxHashMap;

use super::{
    conditions::{Asked, Conditions},
    pattern::whole,
    rule::Rule,
};
use crate::{
    config::{GrpcMethodMatch, MethodMatch, PathMatchType, PathNormalization, RouteMatch, ValueMatchType},
    http::path::{Canonical, canonical},
};

/// One match of a rule.
#[derive(Debug)]
struct Entry {
    conditions: Conditions,
    /// Which of the table's rules.
    rule: usize,
    /// Where it stands in the file, for words.
    place: String,
}

/// Which rule a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Which of [`Table::rules`].
    pub rule: usize,
    /// Where it was a prefix that matched: how many bytes of the path, without a final `/`.
    pub prefix: Option<usize>,
}

/// The rules of one host (and port), in the order of Gateway API's precedence: exact paths, regular expressions, prefixes
/// from the longest to the shortest; within one path the more specific conditions first.
///
/// Exact paths and prefixes are found by hash, one look-up for each different length of a prefix at whose end the path
/// has a `/`: what a request costs does not depend on how many rules there are. Only regular expressions are tried one
/// after another.
#[derive(Debug)]
pub struct Table {
    /// The rules.
    pub rules: Vec<Arc<Rule>>,
    exact: FxHashMap<Box<str>, Vec<Entry>>,
    regexes: Vec<(Regex, Entry)>,
    prefixes: FxHashMap<Box<str>, Vec<Entry>>,
    /// Lengths of prefixes, from the longest.
    lengths: Vec<usize>,
}

/// A path to match, as the table has it.
enum Path {
    Exact(String),
    Prefix(String),
    Regex(Regex),
}

impl Table {
    /// Compiles `rules`, each with its matches and its place in the file.
    pub(super) fn compile<'a>(
        rules: impl Iterator<Item = (Arc<Rule>, &'a [RouteMatch], String)>,
        normal: PathNormalization,
    ) -> Result<Self, String> {
        let mut table = Self {
            rules: Vec::new(),
            exact: FxHashMap::default(),
            regexes: Vec::new(),
            prefixes: FxHashMap::default(),
            lengths: Vec::new(),
        };
        let everything = [RouteMatch::default()];
        for (rule, matches, place) in rules {
            let index = table.rules.len();
            table.rules.push(rule);
            let all = if matches.is_empty() { &everything[..] } else { matches };
            for (i, one) in all.iter().enumerate() {
                let place = if matches.is_empty() { place.clone() } else { format!("{place}.matches[{i}]") };
                let entry = Entry { conditions: Conditions::compile(one)?, rule: index, place };
                match Path::of(one, normal)? {
                    Path::Exact(path) => table.exact.entry(path.into()).or_default().push(entry),
                    Path::Regex(regex) => table.regexes.push((regex, entry)),
                    Path::Prefix(prefix) => {
                        table.lengths.push(prefix.len());
                        table.prefixes.entry(prefix.into()).or_default().push(entry);
                    }
                }
            }
        }
        // All sorts are stable: what ranks alike stays in the order of the file.
        for entries in table.exact.values_mut().chain(table.prefixes.values_mut()) {
            entries.sort_by_key(|e| e.conditions.rank());
        }
        table.regexes.sort_by_key(|(_, e)| e.conditions.rank());
        table.lengths.sort_unstable_by_key(|length| std::cmp::Reverse(*length));
        table.lengths.dedup();
        Ok(table)
    }

    /// The rule that a request takes, if any.
    pub fn take(&self, asked: Asked<'_>) -> Option<Taken> {
        let path = asked.path;
        let first = |entries: &Vec<Entry>| entries.iter().find(|e| e.conditions.met(asked)).map(|e| e.rule);
        if let Some(rule) = self.exact.get(path).and_then(first) {
            return Some(Taken { rule, prefix: None });
        }
        let by_regex =
            self.regexes.iter().find(|(regex, e)| regex.is_match(path.as_bytes()) && e.conditions.met(asked));
        if let Some((_, entry)) = by_regex {
            return Some(Taken { rule: entry.rule, prefix: None });
        }
        for length in &self.lengths {
            // It ends at the end of an element. All of a path that is none ("*") is below the root.
            let at_element = match path.as_bytes().get(*length) {
                Some(b) => *b == b'/' || *length == 0,
                None => path.len() == *length,
            };
            if at_element
                && let Some(prefix) = path.get(..*length)
                && let Some(rule) = self.prefixes.get(prefix).and_then(first)
            {
                return Some(Taken { rule, prefix: Some(*length) });
            }
        }
        None
    }

    /// Matches that no request can take, each as a sentence.
    pub fn unreachable(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut within = |entries: &[Entry]| {
            for (i, later) in entries.iter().enumerate() {
                if let Some(first) = entries[..i].iter().find(|e| e.conditions.cover(&later.conditions)) {
                    found.push(format!(
                        "{} can match nothing: {} comes first and matches all of it",
                        later.place, first.place
                    ));
                }
            }
        };
        self.exact.values().chain(self.prefixes.values()).for_each(|entries| within(entries));
        for (i, (regex, later)) in self.regexes.iter().enumerate() {
            let before = &self.regexes[..i];
            if let Some((_, first)) =
                before.iter().find(|(r, e)| r.as_str() == regex.as_str() && e.conditions.cover(&later.conditions))
            {
                found.push(format!(
                    "{} can match nothing: {} comes first and matches all of it",
                    later.place, first.place
                ));
            }
        }
        // A regular expression that matches every path leaves nothing to prefixes.
        let everything = self.regexes.iter().find(|(r, _)| matches!(r.as_str(), "^(?:.*)$" | "^(?:/.*)$"));
        if let Some((_, first)) = everything {
            for later in self.prefixes.values().flatten().filter(|e| first.conditions.cover(&e.conditions)) {
                found.push(format!(
                    "{} can match nothing: {} is a regular expression for every path, which comes before prefixes",
                    later.place, first.place
                ));
            }
        }
        found.sort();
        found
    }
}

impl Path {
    fn of(from: &RouteMatch, normal: PathNormalization) -> Result<Self, String> {
        if let Some(MethodMatch::Grpc(grpc)) = &from.method {
            return Self::of_grpc(grpc);
        }
        let path = from.path.clone().unwrap_or_default();
        Ok(match path.r#type {
            PathMatchType::Exact => Self::Exact(in_canonical_form(&path.value, normal)?),
            PathMatchType::RegularExpression => Self::Regex(whole(&path.value)?),
            PathMatchType::PathPrefix => {
                let path = in_canonical_form(&path.value, normal)?;
                Self::Prefix(path.trim_end_matches('/').to_owned())
            }
        })
    }

    /// gRPC over HTTP/2, "Requests": the path is `/` service `/` method.
    fn of_grpc(grpc: &GrpcMethodMatch) -> Result<Self, String> {
        Ok(match (grpc.r#type, &grpc.service, &grpc.method) {
            (ValueMatchType::Exact, Some(service), Some(method)) => Self::Exact(format!("/{service}/{method}")),
            (ValueMatchType::Exact, Some(service), None) => Self::Prefix(format!("/{service}")),
            (ValueMatchType::Exact, None, Some(method)) => {
                Self::Regex(whole(&format!("/[^/]+/{}", regex::escape(method)))?)
            }
            (_, service, method) => {
                let any = "[^/]+";
                let (service, method) = (service.as_deref().unwrap_or(any), method.as_deref().unwrap_or(any));
                Self::Regex(whole(&format!("/(?:{service})/(?:{method})"))?)
            }
        })
    }
}

/// A path of the configuration as requests have it.
pub fn in_canonical_form(path: &str, normal: PathNormalization) -> Result<String, String> {
    if !path.starts_with('/') {
        return Err(format!("\"{path}\" does not begin with \"/\""));
    }
    if path.len() > 1_024 {
        return Err(format!("a path of {} bytes is longer than 1024", path.len()));
    }
    if path.contains(['?', '#']) {
        return Err(format!("\"{path}\" has a query or a fragment, which is no part of a path"));
    }
    match canonical(path, normal) {
        Canonical::Path(path) => Ok(path.into_owned()),
        Canonical::Redirect(path) => Ok(path),
        Canonical::Refuse => Err(format!(
            "\"{path}\" has an escaped slash, which outbound.path_normalization.path_with_escaped_slashes_action refuses"
        )),
    }
}
