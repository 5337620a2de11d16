//! How a request is carried: what its route says, and for the rest what the service says that it goes to.

use std::{net::IpAddr, rc::Rc, time::Duration};

use http::{HeaderMap, StatusCode};

use super::{routed::LocalRule, service::Service};

/// The service that a request goes to, and the rule of the route that it takes, if it takes one.
#[derive(Clone, Copy)]
pub(super) struct Policy<'a> {
    pub(super) service: &'a Rc<Service>,
    pub(super) route: Option<&'a LocalRule>,
    /// Who made the connection that the request came by.
    pub(super) peer: Option<&'a IpAddr>,
}

impl<'a> Policy<'a> {
    /// That of a service alone.
    pub(super) fn of(service: &'a Rc<Service>) -> Self {
        Self { service, route: None, peer: None }
    }

    fn own<T>(self, of_route: impl FnOnce(&'a LocalRule) -> Option<T>, of_service: T) -> T {
        self.route.and_then(of_route).unwrap_or(of_service)
    }

    /// `timeouts.request`.
    pub(super) fn request(self) -> Option<Duration> {
        self.own(|r| r.rule.timeouts.request, self.service.spec.timeouts.request).enabled()
    }

    /// `timeouts.backendRequest`.
    pub(super) fn backend_request(self) -> Option<Duration> {
        self.own(|r| r.rule.timeouts.backend_request, self.service.spec.timeouts.backend_request).enabled()
    }

    /// `timeouts.idle`.
    pub(super) fn idle(self) -> Option<Duration> {
        self.own(|r| r.rule.timeouts.idle, self.service.spec.timeouts.idle).enabled()
    }

    /// `retry.attempts`.
    pub(super) fn attempts(self) -> u32 {
        self.own(|r| r.rule.retry.attempts, self.service.spec.retry.attempts)
    }

    /// `retry.backoff`.
    pub(super) fn backoff(self) -> Duration {
        self.own(|r| r.rule.retry.backoff, self.service.spec.retry.backoff).get()
    }

    /// Whether `retry.codes` has this status.
    pub(super) fn retries_status(self, status: StatusCode) -> bool {
        self.own(|r| r.rule.retry.codes.as_ref(), &self.service.spec.retry.codes).contains(&status.as_u16())
    }

    /// Whether `retry.grpcCodes` has the status that the head of an answer ends a gRPC call with.
    pub(super) fn retries_call(self, head: &HeaderMap) -> bool {
        let codes = self.own(|r| r.rule.retry.grpc_codes.as_ref(), &self.service.spec.retry.grpc_codes);
        !codes.is_empty()
            && head.get("grpc-status").is_some_and(|s| codes.iter().any(|c| c.number().as_bytes() == s.as_bytes()))
    }

    /// Counts a retry for `why`.
    pub(super) fn count_retry(self, why: &'static str) {
        self.service.metrics.retry(why);
        if let Some(route) = self.route {
            route.metrics.retry(why);
        }
    }
}
