//! A request with its response, counted once, however it ends.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use http::StatusCode;
use tokio::time::Instant;

use super::client::StreamSlot;
use crate::{resilience::Permit, telemetry::RequestMetrics, worker::Busy};

/// What an exchange holds until its end.
#[derive(Debug, Default)]
pub struct Held {
    /// The share of a multiplexed connection.
    pub slot: Option<StreamSlot>,
    /// The place among the service's requests.
    pub permit: Option<Permit>,
    /// Keeps the worker from ending while it drains.
    pub busy: Option<Busy>,
}

/// A request from its arrival to the end of its response. Dropped before that, it is counted as broken off.
#[derive(Debug)]
pub struct Exchange {
    metrics: Rc<RequestMetrics>,
    /// Those of the route that the request takes, if it takes one.
    route: Option<Rc<RequestMetrics>>,
    started: Instant,
    status: Option<StatusCode>,
    finished: Cell<bool>,
    held: RefCell<Held>,
}

impl Exchange {
    /// A request has come and is under way from now on.
    pub fn begin(metrics: Rc<RequestMetrics>, held: Held) -> Self {
        metrics.begin();
        Self {
            metrics,
            route: None,
            started: Instant::now(),
            status: None,
            finished: Cell::new(false),
            held: RefCell::new(held),
        }
    }

    /// It is counted by its route as well.
    pub fn take_route(&mut self, metrics: &Rc<RequestMetrics>) {
        metrics.begin();
        self.route = Some(Rc::clone(metrics));
    }

    /// When it began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Holds a place among the service's requests until its end.
    pub fn hold(&mut self, permit: Permit) {
        self.held.get_mut().permit = Some(permit);
    }

    /// It is known who answers: whoever is at the other end of `slot`'s connection. It counts as theirs.
    pub fn attribute(&mut self, slot: StreamSlot) {
        let theirs = slot.connection().metrics();
        if !Rc::ptr_eq(theirs, &self.metrics) {
            theirs.begin();
            self.metrics.withdraw();
            self.metrics = Rc::clone(theirs);
        }
        self.held.get_mut().slot = Some(slot);
    }

    /// The response begins.
    pub fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// The response is complete.
    pub fn finish(&self) {
        self.end(self.status);
    }

    /// The sidecar itself answers.
    pub fn refuse(self, status: StatusCode) {
        self.end(Some(status));
    }

    /// The response broke off.
    pub fn broke(&self) {
        self.end(None);
    }

    /// Whether the end was counted.
    pub fn is_finished(&self) -> bool {
        self.finished.get()
    }

    fn end(&self, status: Option<StatusCode>) {
        if !self.finished.replace(true) {
            let latency = self.started.elapsed();
            self.metrics.end(status, latency);
            if let Some(route) = &self.route {
                route.end(status, latency);
            }
            self.held.take();
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.broke();
    }
}
