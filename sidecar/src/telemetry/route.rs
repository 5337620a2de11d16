//! What befalls the requests of one route.

use std::{rc::Rc, sync::Arc};

use super::{
    families::{Families, RouteReasonKey},
    worker::{Reasons, RequestMetrics},
};

/// The requests of one route of the configuration.
pub struct RouteMetrics {
    requests: Rc<RequestMetrics>,
    families: Arc<Families>,
    name: Arc<str>,
    retries: Reasons,
    faults: Reasons,
    mirrored: Reasons,
}

impl std::fmt::Debug for RouteMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RouteMetrics({})", self.name)
    }
}

impl RouteMetrics {
    pub(super) fn new(families: Arc<Families>, requests: Rc<RequestMetrics>, name: Arc<str>) -> Rc<Self> {
        let (retries, faults, mirrored) = Default::default();
        Rc::new(Self { requests, families, name, retries, faults, mirrored })
    }

    fn key(&self, reason: &'static str) -> RouteReasonKey {
        RouteReasonKey { route: self.name.clone(), reason }
    }

    /// Its requests as such.
    pub fn requests(&self) -> &Rc<RequestMetrics> {
        &self.requests
    }

    /// A request was tried again because of `reason`.
    pub fn retry(&self, reason: &'static str) {
        self.retries.count(reason, &self.families.route_retries, || self.key(reason));
    }

    /// A fault was injected: `delay` or `abort`.
    pub fn fault(&self, fault: &'static str) {
        self.faults.count(fault, &self.families.route_faults, || self.key(fault));
    }

    /// A request that was to be copied was `sent`, or why it was not.
    pub fn mirrored(&self, result: &'static str) {
        self.mirrored.count(result, &self.families.route_mirrored, || self.key(result));
    }
}
