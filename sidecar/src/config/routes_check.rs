//! Rules of routes that one value alone cannot see.

use std::collections::BTreeMap;

use super::{
    Config, Host, HostPattern, MethodMatch, PathMatchType, PathNormalization, Protocol, RouteFilterType, RouteMatch,
    RouteRule, ServiceConfig, ValueMatchType, validate::Issue,
};
use crate::route;

/// Gateway API's limits on what a route may have.
const MAX_RULES: usize = 64;
const MAX_MATCHES: usize = 64;
pub(super) const MAX_ITEMS: usize = 16;
/// So that the sum of sixteen weights fits.
const MAX_WEIGHT: u32 = 1_000_000;
/// The longest value of a condition, in bytes.
const MAX_VALUE: usize = 4_096;

/// Every rule of routes that `config` breaks.
pub(super) fn issues(config: &Config) -> Vec<Issue> {
    if config.routes.is_empty() {
        return Vec::new();
    }
    let services = config.services.iter().map(|s| (&s.name, s)).collect();
    let mut hosts: BTreeMap<&Host, Vec<&ServiceConfig>> = BTreeMap::new();
    for service in &config.services {
        let own = std::slice::from_ref(&service.name);
        let given = if service.hosts.is_empty() { own } else { &service.hosts };
        given.iter().for_each(|host| hosts.entry(host).or_default().push(service));
    }
    let mut check = Check { config, services, hosts, issues: Vec::new() };
    let mut names = BTreeMap::new();
    for (i, route) in config.routes.iter().enumerate() {
        let at = format!("routes[{i}]");
        if let Some(first) = names.insert(&route.name, i) {
            let message = format!("the name {} is already that of routes[{first}]", route.name);
            check.issue(format!("{at}.name"), message, "give every route a name of its own");
        }
        check.hostnames(&at, &route.hostnames, route.port);
        check.count(format!("{at}.rules"), route.rules.len(), 1, MAX_RULES);
        for (r, rule) in route.rules.iter().enumerate() {
            check.rule(&format!("{at}.rules[{r}]"), rule);
        }
    }
    check.issues
}

pub(super) struct Check<'a> {
    config: &'a Config,
    services: BTreeMap<&'a Host, &'a ServiceConfig>,
    hosts: BTreeMap<&'a Host, Vec<&'a ServiceConfig>>,
    issues: Vec<Issue>,
}

impl Check<'_> {
    pub(super) fn issue(&mut self, path: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) {
        self.issues.push(Issue { path: path.into(), message: message.into(), remedy: remedy.into() });
    }

    pub(super) fn count(&mut self, path: String, count: usize, least: usize, most: usize) {
        if count < least {
            self.issue(path, "the list is empty", format!("give at least {least}"));
        } else if count > most {
            self.issue(path, format!("{count} entries are too many"), format!("give at most {most}"));
        }
    }

    fn normal(&self) -> PathNormalization {
        self.config.outbound.path_normalization
    }

    fn in_mesh(&self, host: &Host) -> bool {
        self.config.outbound.mesh_domains.iter().any(|domain| host.is_under(domain))
    }

    fn hostnames(&mut self, at: &str, hostnames: &[HostPattern], port: Option<u16>) {
        self.count(format!("{at}.hostnames"), hostnames.len(), 1, MAX_ITEMS);
        if port == Some(0) {
            self.issue(format!("{at}.port"), "0 is not a port that can be dialled", "give a port from 1 to 65535");
        }
        for (h, host) in hostnames.iter().enumerate() {
            let path = format!("{at}.hostnames[{h}]");
            if hostnames[..h].contains(host) {
                self.issue(path, format!("{host} is listed twice"), "list every host once");
                continue;
            }
            let configured: Vec<_> =
                self.hosts.iter().filter(|(h, _)| host.matches(h)).flat_map(|(_, s)| s.iter().copied()).collect();
            let by_name = match host {
                HostPattern::Exact(host) => self.in_mesh(host),
                HostPattern::Under(suffix) => {
                    self.in_mesh(suffix) || self.config.outbound.mesh_domains.iter().any(|d| d.is_under(suffix))
                }
            };
            let at_port = |s: &&ServiceConfig| port.is_none_or(|port| port == s.port);
            if configured.is_empty() && !by_name {
                let message = format!("no service has the host {host}, and it is in no mesh domain");
                self.issue(path, message, "add it to services, or its domain to outbound.mesh_domains");
            } else if !by_name && !configured.iter().any(at_port) {
                let port = port.unwrap_or_default();
                let message = format!("no service has the host {host} at port {port}");
                self.issue(format!("{at}.port"), message, "give the port of the service, or leave it out");
            } else if let Some(opaque) = configured.iter().find(|s| s.protocol == Protocol::Opaque && at_port(s)) {
                let message = format!("the service {} is opaque, so no request is ever looked at", opaque.name);
                self.issue(path, message, "leave out protocol: opaque, or the route");
            }
        }
    }

    fn rule(&mut self, at: &str, rule: &RouteRule) {
        self.count(format!("{at}.matches"), rule.matches.len(), 0, MAX_MATCHES);
        for (m, one) in rule.matches.iter().enumerate() {
            self.route_match(&format!("{at}.matches[{m}]"), one);
        }
        self.count(format!("{at}.filters"), rule.filters.len(), 0, MAX_ITEMS);
        let mut seen = BTreeMap::new();
        for (f, filter) in rule.filters.iter().enumerate() {
            let path = format!("{at}.filters[{f}]");
            let first = seen.insert(filter.r#type, f).filter(|_| filter.r#type != RouteFilterType::RequestMirror);
            if let Some(first) = first {
                self.issue(
                    format!("{path}.type"),
                    format!("{at}.filters[{first}] is of this type"),
                    "put both into one",
                );
            }
            self.filter(&path, filter, rule);
        }
        if seen.contains_key(&RouteFilterType::RequestRedirect) {
            let against = seen.get(&RouteFilterType::UrlRewrite).or(seen.get(&RouteFilterType::RequestMirror));
            if let Some(f) = against {
                let message = "a request that is redirected goes nowhere, so nothing is rewritten or mirrored";
                self.issue(format!("{at}.filters[{f}].type"), message, "leave it out, or RequestRedirect");
            }
            if rule.backend_refs.is_some() {
                let message = "a request that is redirected goes to no backend";
                self.issue(format!("{at}.backendRefs"), message, "leave it out, or RequestRedirect");
            }
        }
        if let Some(refs) = &rule.backend_refs {
            self.count(format!("{at}.backendRefs"), refs.len(), 1, MAX_ITEMS);
            for (b, backend) in refs.iter().enumerate() {
                let path = format!("{at}.backendRefs[{b}]");
                self.backend(&path, &backend.name, backend.port);
                if backend.weight > MAX_WEIGHT {
                    let message = format!("{} is beyond the limit", backend.weight);
                    self.issue(format!("{path}.weight"), message, format!("give at most {MAX_WEIGHT}"));
                }
            }
        }
        self.timeouts_and_retries(at, rule);
    }

    fn timeouts_and_retries(&mut self, at: &str, rule: &RouteRule) {
        let enabled = |d: Option<super::HumanDuration>| d.filter(|d| d.enabled().is_some());
        if let (Some(request), Some(one_try)) = (enabled(rule.timeouts.request), enabled(rule.timeouts.backend_request))
            && one_try > request
        {
            let message = format!("{one_try} for one try is longer than timeouts.request, which is {request}");
            self.issue(format!("{at}.timeouts.backendRequest"), message, "lower it, or raise timeouts.request");
        }
        let retry = &rule.retry;
        if let Some(attempts) = retry.attempts.filter(|attempts| *attempts > 10) {
            self.issue(format!("{at}.retry.attempts"), format!("{attempts} is beyond the limit"), "give at most 10");
        }
        for (i, code) in retry.codes.iter().flatten().enumerate() {
            if !(400..=599).contains(code) {
                let message = format!("{code} is not the status of a failed response");
                self.issue(format!("{at}.retry.codes[{i}]"), message, "give codes from 400 to 599, as 503");
            }
        }
        for (i, code) in retry.grpc_codes.iter().flatten().enumerate() {
            if code.is_ok() {
                let message = format!("{code} is not the status of a failed call");
                self.issue(format!("{at}.retry.grpcCodes[{i}]"), message, "give statuses as UNAVAILABLE");
            }
        }
        if retry.backoff.is_some_and(|b| b.get().is_zero()) {
            let message = "zero: retries would follow one another at once";
            self.issue(format!("{at}.retry.backoff"), message, "give a duration above zero, as 25ms");
        }
    }

    fn route_match(&mut self, at: &str, one: &RouteMatch) {
        if let Some(path) = &one.path {
            let value = format!("{at}.path.value");
            match path.r#type {
                PathMatchType::RegularExpression => self.expression(value, &path.value),
                _ => self.path(value, &path.value),
            }
        }
        self.count(format!("{at}.headers"), one.headers.len(), 0, MAX_ITEMS);
        for (h, header) in one.headers.iter().enumerate() {
            let path = format!("{at}.headers[{h}]");
            if header.name.0 == http::header::HOST {
                let message = "the host is no header to match: HTTP/2 has none";
                self.issue(format!("{path}.name"), message, "name the host in hostnames");
            }
            self.value(format!("{path}.value"), header.r#type, &header.value);
        }
        self.count(format!("{at}.queryParams"), one.query_params.len(), 0, MAX_ITEMS);
        for (q, param) in one.query_params.iter().enumerate() {
            let path = format!("{at}.queryParams[{q}]");
            if param.name.is_empty() || param.name.len() > 256 {
                let message = "the name of a query parameter has 1 to 256 bytes";
                self.issue(format!("{path}.name"), message, "give the name that stands before the \"=\"");
            }
            self.value(format!("{path}.value"), param.r#type, &param.value);
        }
        if let Some(MethodMatch::Grpc(grpc)) = &one.method {
            if one.path.is_some() {
                let message = "the service and method of a gRPC call are its path";
                self.issue(format!("{at}.path"), message, "leave out path, or match a method of HTTP");
            }
            if grpc.service.is_none() && grpc.method.is_none() {
                self.issue(format!("{at}.method"), "nothing is given to match", "give service, method or both");
            }
            for (field, text) in [("service", &grpc.service), ("method", &grpc.method)] {
                let Some(text) = text else { continue };
                let path = format!("{at}.method.{field}");
                let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
                if grpc.r#type == ValueMatchType::RegularExpression {
                    self.expression(path, text);
                } else if text.is_empty() || text.len() > 1_024 || !text.bytes().all(plain) {
                    let message = format!("\"{text}\" is not the name of a {field} of gRPC");
                    self.issue(path, message, "write it as in the .proto file, the service with its package");
                }
            }
        }
    }

    fn expression(&mut self, path: String, text: &str) {
        if let Err(why) = route::whole(text) {
            self.issue(path, why, "correct it; the syntax is that of RE2, and all of the text must match");
        }
    }

    pub(super) fn path(&mut self, path: String, value: &str) {
        if let Err(why) = route::in_canonical_form(value, self.normal()) {
            self.issue(path, why, "give an absolute path as \"/orders\"");
        }
    }

    fn value(&mut self, path: String, kind: ValueMatchType, value: &str) {
        if value.len() > MAX_VALUE {
            self.issue(path, format!("{} bytes are too many", value.len()), format!("give at most {MAX_VALUE}"));
        } else if kind == ValueMatchType::RegularExpression {
            self.expression(path, value);
        }
    }

    pub(super) fn backend(&mut self, at: &str, name: &Host, port: Option<u16>) {
        if let Some(service) = self.services.get(name).copied() {
            let own = service.port;
            if let Some(port) = port.filter(|port| *port != own) {
                let message = format!("the service {name} has the port {own}, not {port}");
                self.issue(format!("{at}.port"), message, "leave the port out, or correct it");
            }
            if service.protocol == Protocol::Opaque {
                let message = format!("the service {name} is opaque: it is not known to speak HTTP");
                self.issue(format!("{at}.name"), message, "leave out protocol: opaque, or name another service");
            }
        } else if !self.in_mesh(name) {
            let names = self.services.keys().map(|name| name.as_str());
            let remedy = match super::problem::nearest(name.as_str(), names) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => "give the name of one of services, or a host of a mesh domain".to_owned(),
            };
            self.issue(
                format!("{at}.name"),
                format!("there is no service {name}, and it is in no mesh domain"),
                remedy,
            );
        } else if port.is_none_or(|port| port == 0) {
            let message = format!("{name} has no entry in services, so its port is not known");
            self.issue(format!("{at}.port"), message, "give its port");
        }
    }
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
