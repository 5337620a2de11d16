//! Whether one more try is allowed: the one rule for requests, upgrades and opaque connections.

use std::rc::Rc;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{endpoint::Endpoint, policy::Policy};
use crate::resilience::{Permit, full_jitter};

/// The tries of one call.
pub(super) struct Retries<'a> {
    policy: Policy<'a>,
    tried: SmallVec<[Rc<Endpoint>; 3]>,
    made: u32,
    permit: Option<Permit>,
}

impl<'a> Retries<'a> {
    /// A call that nobody was tried for yet. It counts towards the budget, which is a share of the calls.
    pub(super) fn new(policy: Policy<'a>) -> Self {
        policy.service.budget.request(Instant::now());
        Self { policy, tried: SmallVec::new(), made: 0, permit: None }
    }

    /// Who was tried: others go first.
    pub(super) fn tried(&self) -> &[Rc<Endpoint>] {
        &self.tried
    }

    /// Whether there may be one more: within `retry.attempts`, `retry.budget` and `circuit_breakers.max_retries`. What
    /// is granted is taken, so [`Self::wait`] must follow.
    pub(super) fn granted(&mut self) -> bool {
        let service = self.policy.service;
        if self.made >= self.policy.attempts() {
            return false;
        }
        // The place of the try before is free again.
        self.permit = None;
        let Ok(permit) = service.breakers.try_retry() else {
            service.metrics.retry_denied("max_retries");
            return false;
        };
        if !service.budget.try_retry(Instant::now()) {
            service.metrics.retry_denied("budget");
            return false;
        }
        self.permit = Some(permit);
        true
    }

    /// Counts the retry for `why` and waits its backoff; `failed` is avoided from now on.
    pub(super) async fn wait(&mut self, failed: Rc<Endpoint>, why: &'static str) {
        self.policy.count_retry(why);
        self.made += 1;
        self.tried.push(failed);
        tokio::time::sleep(full_jitter(self.policy.backoff(), self.made)).await;
    }
}
