//! Rules of filters that one value alone cannot see.

use std::time::Duration;

use http::HeaderName;

use super::{
    Cors, FaultInjection, FieldName, Fraction, MethodMatch, PathMatchType, PathModifier, Percent, RouteFilter,
    RouteFilterType, RouteMatch, RouteRule,
    routes_check::{Check, MAX_ITEMS},
};
use crate::route;

/// Longer than any caller waits.
const MAX_DELAY: Duration = Duration::from_secs(3_600);

impl Check<'_> {
    pub(super) fn filter(&mut self, at: &str, filter: &RouteFilter, rule: &RouteRule) {
        let given = [
            (RouteFilterType::RequestHeaderModifier, "requestHeaderModifier", filter.request_header_modifier.is_some()),
            (
                RouteFilterType::ResponseHeaderModifier,
                "responseHeaderModifier",
                filter.response_header_modifier.is_some(),
            ),
            (RouteFilterType::RequestRedirect, "requestRedirect", filter.request_redirect.is_some()),
            (RouteFilterType::UrlRewrite, "urlRewrite", filter.url_rewrite.is_some()),
            (RouteFilterType::RequestMirror, "requestMirror", filter.request_mirror.is_some()),
            (RouteFilterType::Cors, "cors", filter.cors.is_some()),
            (RouteFilterType::FaultInjection, "faultInjection", filter.fault_injection.is_some()),
        ];
        for (kind, field, is_there) in given {
            if kind == filter.r#type && !is_there {
                self.issue(
                    at,
                    format!("the type is {} and {field} is missing", kind.name()),
                    format!("add \"{field}: …\" here"),
                );
            } else if kind != filter.r#type && is_there {
                let message = format!("the type is {}, so this has no effect", filter.r#type.name());
                self.issue(format!("{at}.{field}"), message, "correct the type, or remove the field");
            }
        }
        let changes = [
            ("requestHeaderModifier", &filter.request_header_modifier),
            ("responseHeaderModifier", &filter.response_header_modifier),
        ];
        for (field, changes) in changes {
            let Some(changes) = changes else { continue };
            let at = format!("{at}.{field}");
            for (list, pairs) in [("set", &changes.set), ("add", &changes.add)] {
                self.count(format!("{at}.{list}"), pairs.len(), 0, MAX_ITEMS);
                for (i, pair) in pairs.iter().enumerate() {
                    self.may_change(format!("{at}.{list}[{i}].name"), &pair.name);
                }
            }
            self.count(format!("{at}.remove"), changes.remove.len(), 0, MAX_ITEMS);
            for (i, name) in changes.remove.iter().enumerate() {
                self.may_change(format!("{at}.remove[{i}]"), name);
            }
            if changes.set.is_empty() && changes.add.is_empty() && changes.remove.is_empty() {
                self.issue(at, "nothing is changed", "give set, add or remove");
            }
        }
        if let Some(redirect) = &filter.request_redirect {
            let at = format!("{at}.requestRedirect");
            if let Some(code) = redirect.status_code.filter(|code| ![301, 302, 303, 307, 308].contains(code)) {
                let message = format!("{code} does not redirect");
                self.issue(format!("{at}.statusCode"), message, "give 301, 302, 303, 307 or 308");
            }
            if redirect.port == Some(0) {
                self.issue(format!("{at}.port"), "0 is not a port", "give a port from 1 to 65535");
            }
            self.path_modifier(&at, redirect.path.as_ref(), rule);
        }
        if let Some(rewrite) = &filter.url_rewrite {
            let at = format!("{at}.urlRewrite");
            if rewrite.hostname.is_none() && rewrite.path.is_none() {
                self.issue(at.clone(), "nothing is rewritten", "give hostname, path or both");
            }
            self.path_modifier(&at, rewrite.path.as_ref(), rule);
        }
        if let Some(mirror) = &filter.request_mirror {
            let at = format!("{at}.requestMirror");
            self.backend(&format!("{at}.backendRef"), &mirror.backend_ref.name, mirror.backend_ref.port);
            self.share(&at, mirror.percent, mirror.fraction);
        }
        if let Some(cors) = &filter.cors {
            self.cors(&format!("{at}.cors"), cors);
        }
        if let Some(fault) = &filter.fault_injection {
            self.fault(&format!("{at}.faultInjection"), fault);
        }
    }

    fn may_change(&mut self, path: String, name: &FieldName) {
        if let Some(why) = route::why_not(&name.0) {
            self.issue(path, format!("the header {name} cannot be changed: {why}"), "leave it out");
        }
    }

    fn path_modifier(&mut self, at: &str, path: Option<&PathModifier>, rule: &RouteRule) {
        match path {
            None => {}
            Some(PathModifier::ReplaceFullPath { replace_full_path }) => {
                self.path(format!("{at}.path.replaceFullPath"), replace_full_path);
            }
            Some(PathModifier::ReplacePrefixMatch { replace_prefix_match }) => {
                if !replace_prefix_match.is_empty() {
                    self.path(format!("{at}.path.replacePrefixMatch"), replace_prefix_match);
                }
                let is_prefix = |m: &RouteMatch| {
                    !matches!(m.method, Some(MethodMatch::Grpc(_)))
                        && m.path.as_ref().is_none_or(|p| p.r#type == PathMatchType::PathPrefix)
                };
                if !rule.matches.iter().all(is_prefix) {
                    let message = "not every match of this rule is a PathPrefix, so there is no prefix to replace";
                    self.issue(
                        format!("{at}.path"),
                        message,
                        "use ReplaceFullPath, or put the other matches into another rule",
                    );
                }
            }
        }
    }

    fn share(&mut self, at: &str, percent: Option<Percent>, fraction: Option<Fraction>) {
        let Some(fraction) = fraction else { return };
        let path = format!("{at}.fraction");
        if percent.is_some() {
            self.issue(path, "the share is given as percent as well", "give one of the two");
        } else if fraction.denominator == 0 || fraction.numerator > fraction.denominator {
            let message = format!("{}/{} is not a share", fraction.numerator, fraction.denominator);
            self.issue(path, message, "give a denominator of 1 or more and a numerator up to it");
        }
    }

    fn fault(&mut self, at: &str, fault: &FaultInjection) {
        if fault.delay.is_none() && fault.abort.is_none() {
            self.issue(at, "nothing is injected", "give delay, abort or both");
        }
        if let Some(delay) = &fault.delay {
            if delay.fixed_delay.get().is_zero() || delay.fixed_delay.get() > MAX_DELAY {
                let message = format!("{} is no delay", delay.fixed_delay);
                self.issue(format!("{at}.delay.fixedDelay"), message, "give a duration above zero and at most 1h");
            }
            self.share(&format!("{at}.delay"), delay.percent, delay.fraction);
        }
        if let Some(abort) = &fault.abort {
            if let Some(status) = abort.http_status.filter(|s| !(200..=599).contains(s)) {
                let message = format!("{status} is not the status of an answer");
                self.issue(format!("{at}.abort.httpStatus"), message, "give 200 to 599");
            }
            self.share(&format!("{at}.abort"), abort.percent, abort.fraction);
        }
    }

    fn cors(&mut self, at: &str, cors: &Cors) {
        self.count(format!("{at}.allowOrigins"), cors.allow_origins.len(), 1, 64);
        let lists = [
            ("allowMethods", &cors.allow_methods),
            ("allowHeaders", &cors.allow_headers),
            ("exposeHeaders", &cors.expose_headers),
        ];
        for (field, names) in lists {
            self.count(format!("{at}.{field}"), names.len(), 0, 64);
            for (i, name) in names.iter().enumerate() {
                if HeaderName::from_bytes(name.as_bytes()).is_err() {
                    let message = format!("\"{name}\" is neither a name nor \"*\"");
                    self.issue(format!("{at}.{field}[{i}]"), message, "give one name an entry, without commas");
                }
                if name == "*" && names.len() > 1 {
                    self.issue(
                        format!("{at}.{field}[{i}]"),
                        "\"*\" is all, so the others say nothing",
                        "keep it alone",
                    );
                }
            }
        }
        if cors.max_age.is_some_and(|age| age > 86_400) {
            self.issue(format!("{at}.maxAge"), "no browser remembers longer than a day", "give at most 86400");
        }
    }
}
