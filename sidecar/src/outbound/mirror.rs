//! Copies of requests for other services, which nobody waits for.

use std::{pin::pin, rc::Rc, time::Duration};

use http::request::Parts;
use tokio::task::spawn_local;

use super::{
    forward::{self, Source},
    policy::Policy,
    routed::LocalRule,
    service::Service,
};
use crate::{
    http::{
        Incoming,
        body::{Activity, ReplaySource},
    },
    telemetry::RouteMetrics,
    worker::Worker,
};

/// An answer to a copy is read for so long, so that who gives it sees no broken connection.
const PATIENCE: Duration = Duration::from_secs(60);

/// One copy, which waits for the body.
struct Copy {
    service: Rc<Service>,
    head: Parts,
}

/// The copies of one request.
#[derive(Default)]
pub(super) struct Copies {
    all: Vec<Copy>,
    metrics: Option<Rc<RouteMetrics>>,
}

impl Copies {
    /// Those that the request's rule asks for, of the request as its service gets it.
    pub(super) fn of(worker: &Rc<Worker>, route: &LocalRule, parts: &Parts) -> Self {
        let mut copies = Self::default();
        for mirror in route.rule.mirrors.iter().filter(|mirror| mirror.share.takes()) {
            let Some(service) = worker.services.backend(worker, &mirror.name, mirror.port) else {
                route.metrics.mirrored("no_service");
                continue;
            };
            match forward::outgoing(&service, Some(route), parts.clone()) {
                Ok(head) => copies.all.push(Copy { service, head }),
                Err(_) => route.metrics.mirrored("bad_request"),
            }
        }
        if !copies.all.is_empty() {
            copies.metrics = Some(Rc::clone(&route.metrics));
        }
        copies
    }

    /// Sends them, with the `body` that the request had. One that is longer than what is kept of it, or that has not come
    /// to its end, is not sent.
    pub(super) fn send(&mut self, worker: &Rc<Worker>, body: Option<&ReplaySource>) {
        if self.all.is_empty() {
            return;
        }
        let body = match body.map(ReplaySource::whole) {
            None => Some(Incoming::Empty),
            Some(whole) => whole.map(|bytes| Incoming::Whole(bytes, true)),
        };
        for copy in std::mem::take(&mut self.all) {
            let bytes = match &body {
                Some(Incoming::Whole(bytes, known)) if !bytes.is_empty() => Incoming::Whole(bytes.clone(), *known),
                Some(_) => Incoming::Empty,
                None => {
                    self.count("body");
                    continue;
                }
            };
            self.count("sent");
            spawn_local(copy.go(Rc::clone(worker), bytes));
        }
    }

    fn count(&self, result: &'static str) {
        if let Some(metrics) = &self.metrics {
            metrics.mirrored(result);
        }
    }
}

impl Copy {
    async fn go(self, worker: Rc<Worker>, body: Incoming) {
        let policy = Policy::of(&self.service);
        let activity = Activity::new(policy.idle());
        let source = if body.is_end_stream() {
            Source::None
        } else {
            Source::Replay(ReplaySource::new(body, Rc::clone(&activity)))
        };
        let whole = async {
            match forward::call(&worker, policy, &self.head, &source, &activity, None).await {
                Ok((response, mut exchange)) => {
                    exchange.answered(response.status());
                    let mut body = response.into_body();
                    while let Some(Ok(_)) = std::future::poll_fn(|cx| body.poll(cx)).await {}
                    exchange.finish();
                }
                Err((e, exchange)) => {
                    tracing::debug!(reason = e.reason.code(), "a copy of a request got no answer: {}", e.message);
                    exchange.refuse(e.reason.status());
                }
            }
        };
        let _ = tokio::time::timeout(PATIENCE, pin!(whole)).await;
    }
}
