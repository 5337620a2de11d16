//! The life of one target: look up, publish, wait for the TTL, a hint or the end.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep_until};

use super::{
    EndpointSet, Inner, SetState, Target, Watched,
    dns::{self, Answer, Known},
    set::normalise,
};
use crate::{config::DnsConfig, resilience::full_jitter_between};

/// Hints are obeyed this often.
const HINT_INTERVAL: Duration = Duration::from_secs(1);

/// The longest wait after a failure, and after an answer of which a part failed.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// When to look up again.
pub(super) struct Bounds {
    min_ttl: Duration,
    max_ttl: Duration,
}

impl Bounds {
    pub(super) fn new(config: &DnsConfig) -> Self {
        // A TTL of 0 with no bound would make the task spin.
        let min_ttl = config.min_ttl.get().max(Duration::from_millis(10));
        Self { min_ttl, max_ttl: config.max_ttl.get().max(min_ttl) }
    }

    /// The TTL within its bounds, and up to a tenth more so that sidecars that started together drift apart.
    fn after_answer(&self, ttl: Duration) -> Duration {
        ttl.clamp(self.min_ttl, self.max_ttl).mul_f64(1.0 + fastrand::f64() / 10.0)
    }

    /// 1 s to 30 s with full jitter; sooner only where `min_ttl` allows it.
    fn after_failure(&self, failures: u32) -> Duration {
        full_jitter_between(self.min_ttl.min(Duration::from_secs(1)), MAX_BACKOFF, failures)
    }
}

/// Serves a target until nobody watches it.
pub(super) async fn run(inner: Arc<Inner>, target: Target, watched: Watched) {
    let name = dns::name_of(&target);
    let (mut known, mut failures) = (Known::default(), 0u32);
    loop {
        let look_up = async {
            let _place = inner.lookups.acquire().await;
            let started = Instant::now();
            (started, inner.dns.look_up(&target, &mut known).await)
        };
        let (started, answer) = tokio::select! {
            done = look_up => done,
            () = watched.sets.closed() => {
                if inner.retire(&target, &watched) {
                    return;
                }
                continue;
            }
        };
        let counter = match &answer {
            Answer::Failed(_) => &inner.failed,
            Answer::Empty { .. } => &inner.empty,
            Answer::Found { .. } => &inner.ok,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        failures = if matches!(answer, Answer::Failed(_)) { failures.saturating_add(1) } else { 0 };
        let wait = match &answer {
            Answer::Found { ttl, partial: true, .. } => inner.bounds.after_answer((*ttl).min(MAX_BACKOFF)),
            Answer::Found { ttl, .. } | Answer::Empty { ttl } => inner.bounds.after_answer(*ttl),
            Answer::Failed(_) => inner.bounds.after_failure(failures),
        };
        publish(&name, &watched, answer, wait);

        let mut next = Instant::now() + wait;
        loop {
            tokio::select! {
                biased;
                () = watched.sets.closed() => {
                    if inner.retire(&target, &watched) {
                        return;
                    }
                }
                () = sleep_until(next) => break,
                () = watched.hint.notified(), if failures == 0 => {
                    known.expire();
                    next = next.min(started + HINT_INTERVAL);
                }
            }
        }
    }
}

/// Publishes an answer, and wakes the watchers if the endpoints or the kind of state changed.
fn publish(name: &str, watched: &Watched, answer: Answer, wait: Duration) {
    watched.sets.send_if_modified(|current| {
        let (endpoints, state) = match answer {
            Answer::Found { endpoints, .. } => match normalise(endpoints) {
                endpoints if endpoints.is_empty() => (endpoints, SetState::Empty),
                endpoints => (endpoints, SetState::Fresh),
            },
            Answer::Empty { .. } => (Vec::new(), SetState::Empty),
            Answer::Failed(failure) => {
                let error = failure.error;
                let state = match &current.state {
                    SetState::Resolving | SetState::Failed { .. } => SetState::Failed { error },
                    SetState::Stale { since, .. } => SetState::Stale { since: *since, error },
                    SetState::Fresh | SetState::Empty => SetState::Stale { since: SystemTime::now(), error },
                };
                // Usually the last good set as it is; see `Failure::endpoints`.
                (failure.endpoints.map_or_else(|| current.endpoints.clone(), normalise), state)
            }
        };
        let moved = endpoints != current.endpoints;
        let turned = state.name() != current.state.name();
        if turned {
            tell(name, &state, endpoints.len(), wait);
        } else if moved {
            tracing::debug!(target = name, endpoints = endpoints.len(), "endpoints changed");
        }
        let generation = current.generation + u64::from(moved);
        *current = Arc::new(EndpointSet { endpoints, state, generation });
        moved || turned
    });
}

fn tell(name: &str, state: &SetState, endpoints: usize, wait: Duration) {
    match state {
        SetState::Failed { error } => tracing::warn!("{error}; trying again in {wait:.1?}"),
        SetState::Stale { error, .. } => {
            tracing::warn!("{error}; keeping the {endpoints} endpoints known; trying again in {wait:.1?}");
        }
        SetState::Empty => tracing::warn!("{name} has no endpoints: its look-up was answered without records"),
        SetState::Fresh | SetState::Resolving => tracing::info!(target = name, endpoints, "resolved"),
    }
}
