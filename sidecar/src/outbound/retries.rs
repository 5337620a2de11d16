//! Whether one more try is allowed: the one rule for requests, upgrades and opaque connections.

use std::{rc::Rc, time::Duration};

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{endpoint::Endpoint, policy::Policy};
use crate::resilience::{Permit, Pushback, full_jitter};

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

    /// The same after an answer of `failed` that says when to come: granted is at least how long to wait for it.
    pub(super) fn granted_after(
        &mut self,
        said: Option<Pushback>,
        failed: &Rc<Endpoint>,
        end: Option<Instant>,
    ) -> Option<Duration> {
        if self.made >= self.policy.attempts() {
            return None;
        }
        let Some(least) = self.least_wait(said, failed, end) else {
            self.policy.service.metrics.retry_denied("retry_after");
            return None;
        };
        self.granted().then_some(least)
    }

    /// None: the wait would be too long, and the caller is better told now. `Retry-After` is an endpoint's own and keeps
    /// nobody from another one; who has no other waits for it only where the call says by when it must have ended,
    /// since nobody counts on an answer that takes as long as an overload. A pushback is the call's own, wherever it
    /// goes next.
    fn least_wait(&self, said: Option<Pushback>, failed: &Rc<Endpoint>, end: Option<Instant>) -> Option<Duration> {
        let service = self.policy.service;
        let longest = service.spec.retry.max_retry_after.get();
        let bounded = |wait: Duration| {
            let fits = wait <= longest && end.is_none_or(|end| wait < end.saturating_duration_since(Instant::now()));
            fits.then_some(wait)
        };
        match said {
            Some(Pushback::Never) => None,
            Some(Pushback::Call(wait)) if !longest.is_zero() => bounded(wait),
            Some(Pushback::Endpoint(wait)) if !longest.is_zero() && !wait.is_zero() => {
                if service.has_other(&self.tried, failed) {
                    return Some(Duration::ZERO);
                }
                end.and_then(|_| bounded(wait))
            }
            _ => Some(Duration::ZERO),
        }
    }

    /// Counts the retry for `why` and waits its backoff; `failed` is avoided from now on.
    pub(super) async fn wait(&mut self, failed: Rc<Endpoint>, why: &'static str) {
        self.wait_at_least(failed, why, Duration::ZERO).await;
    }

    /// The same, and `least` before it.
    pub(super) async fn wait_at_least(&mut self, failed: Rc<Endpoint>, why: &'static str, least: Duration) {
        self.policy.count_retry(why);
        self.made += 1;
        self.tried.push(failed);
        tokio::time::sleep(least + full_jitter(self.policy.backoff(), self.made)).await;
    }
}
