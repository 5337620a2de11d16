//! Active health checks: when each endpoint of a service is asked, and what follows from its answers. How it is asked is
//! in [`probe`].
//!
//! One task a worker and service, and only of services that have checks. At most [`MAX_UNDER_WAY`] checks of a service
//! are under way at once, so that thousands of endpoints cost no more than a few connections at a time; each ends within
//! its `timeout`. Checks of an endpoint that discovery does not name any more end at once.

mod probe;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    pin::pin,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use rustc_hash::FxHashMap;
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet, spawn_local},
    time::{Instant, sleep_until},
};

use self::probe::{Answer, Probe};
use super::{endpoint::Endpoint, service::Service};
use crate::{config::HealthCheck, resilience::Turn};

/// Checks of one service under way at once, in one worker.
const MAX_UNDER_WAY: usize = 64;

/// Operators are shown what has changed after so long, and then all of it at once.
const SHOWN_AFTER: Duration = Duration::from_millis(20);

/// Begins to check the endpoints of a service that has checks, until the task is aborted or the service has gone.
pub(super) fn start(service: &Rc<Service>) -> Option<AbortHandle> {
    let check = service.spec.health_check.clone()?;
    let probe = Rc::new(Probe::new(&service.spec, &check)?);
    let checks =
        Checks { check, probe, service: Rc::downgrade(service), schedule: Schedule::default(), shown_at: None };
    Some(spawn_local(checks.run(service.changed())).abort_handle())
}

struct Checks {
    check: HealthCheck,
    probe: Rc<Probe>,
    service: Weak<Service>,
    schedule: Schedule,
    /// When operators are shown what has changed, where something has.
    shown_at: Option<Instant>,
}

impl Checks {
    async fn run(mut self, changed: Rc<Notify>) {
        let mut under_way = JoinSet::new();
        loop {
            // Before the look, so that no change is missed.
            let mut moved = pin!(changed.notified());
            let Some(service) = self.service.upgrade() else { return };
            self.schedule.take_over(&service.endpoints(), self.check.interval.get(), Instant::now());
            drop(service);
            loop {
                while under_way.len() < MAX_UNDER_WAY
                    && let Some(one) = self.schedule.next_due(Instant::now())
                {
                    let (probe, service) = (Rc::clone(&self.probe), self.service.clone());
                    let (endpoint, kept) = (Rc::clone(&one.endpoint), Rc::clone(&one.kept));
                    one.under_way = Some(under_way.spawn_local(async move {
                        let answer = probe.ask(&service, &endpoint, &kept).await;
                        (endpoint, answer)
                    }));
                }
                self.show();
                let next = self.schedule.first_due().filter(|_| under_way.len() < MAX_UNDER_WAY);
                let next = next.into_iter().chain(self.shown_at).min();
                tokio::select! {
                    biased;
                    () = &mut moved => break,
                    Some(ended) = under_way.join_next() => {
                        // The check of an endpoint that has gone was ended.
                        let Ok((endpoint, answer)) = ended else { continue };
                        let interval = self.check.interval.get();
                        let jitter = self.check.interval_jitter.get().mul_f64(fastrand::f64());
                        if self.schedule.ended(&endpoint, interval, jitter, Instant::now()) {
                            self.learn(&endpoint, answer);
                        }
                    }
                    () = async { match next { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {}
                }
            }
        }
    }

    /// Takes over an answer.
    fn learn(&mut self, endpoint: &Endpoint, answer: Answer) {
        let Some(service) = self.service.upgrade() else { return };
        service.metrics.health_check(answer.result());
        let (answer, why): (_, Arc<str>) = match answer {
            Answer::Good => (Ok(()), "".into()),
            Answer::Bad { why, .. } => (Err(Arc::clone(&why)), why),
            // It says nothing about the endpoint.
            Answer::NotAsked => return,
        };
        let Some(turn) = endpoint.checked.record(answer, &self.check) else { return };
        let (name, address) = (&service.spec.name, endpoint.address);
        match turn {
            Turn::Admitted => tracing::debug!(service = %name, endpoint = %address, "a new endpoint is healthy"),
            Turn::Failed => tracing::warn!(service = %name, endpoint = %address, "endpoint unhealthy: {why}"),
            Turn::Recovered => tracing::info!(service = %name, endpoint = %address, "endpoint healthy again"),
        }
        if turn == Turn::Recovered {
            // What connects need not wait out what an earlier failure to connect has cost it.
            endpoint.connected();
        }
        self.shown_at.get_or_insert_with(|| Instant::now() + SHOWN_AFTER);
    }

    /// Shows operators what has changed, once it is time.
    fn show(&mut self) {
        if self.shown_at.take_if(|at| *at <= Instant::now()).is_some()
            && let Some(service) = self.service.upgrade()
            && let Some(worker) = service.worker()
        {
            service.publish(&worker);
        }
    }
}

/// An endpoint that is checked.
struct Checked {
    endpoint: Rc<Endpoint>,
    /// A connection that the next check may use.
    kept: Rc<probe::Kept>,
    /// When it is checked next; while it is, when that was due.
    due: Instant,
    under_way: Option<AbortHandle>,
    /// How far the check after its first one is moved within the interval, so that not all come at one moment.
    shift: Option<f64>,
}

impl Drop for Checked {
    fn drop(&mut self) {
        if let Some(check) = self.under_way.take() {
            check.abort();
        }
    }
}

/// Who is checked when.
#[derive(Default)]
struct Schedule {
    all: FxHashMap<SocketAddr, Checked>,
    /// Those that are not being checked.
    due: BTreeSet<(Instant, SocketAddr)>,
}

impl Schedule {
    /// Takes over the endpoints of now. New ones are checked at once; of very many that nobody waits for, within one
    /// interval.
    fn take_over(&mut self, endpoints: &[Rc<Endpoint>], interval: Duration, now: Instant) {
        let mut before = std::mem::take(&mut self.all);
        for endpoint in endpoints {
            let known = before.remove(&endpoint.address).filter(|one| Rc::ptr_eq(&one.endpoint, endpoint));
            let one = known.unwrap_or_else(|| {
                let is_awaited = endpoints.len() <= MAX_UNDER_WAY || !endpoint.checked.is_usable();
                let share = fastrand::f64();
                Checked {
                    endpoint: Rc::clone(endpoint),
                    kept: Rc::default(),
                    due: if is_awaited { now } else { now + interval.mul_f64(share) },
                    under_way: None,
                    shift: is_awaited.then_some(share),
                }
            });
            self.all.insert(endpoint.address, one);
        }
        self.due = self.all.iter().filter(|(_, o)| o.under_way.is_none()).map(|(a, o)| (o.due, *a)).collect();
    }

    fn first_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Whoever is to be checked now, and is from now on being checked.
    fn next_due(&mut self, now: Instant) -> Option<&mut Checked> {
        let (_, address) = self.due.first().copied().filter(|(at, _)| *at <= now)?;
        self.due.pop_first();
        self.all.get_mut(&address)
    }

    /// A check has ended. False where the endpoint is not one of ours any more.
    fn ended(&mut self, endpoint: &Rc<Endpoint>, interval: Duration, jitter: Duration, now: Instant) -> bool {
        let Some(one) = self.all.get_mut(&endpoint.address).filter(|o| Rc::ptr_eq(&o.endpoint, endpoint)) else {
            return false;
        };
        one.under_way = None;
        one.due = now + one.shift.take().map_or(interval, |share| interval.mul_f64(share)) + jitter;
        self.due.insert((one.due, endpoint.address));
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn endpoints(n: u16) -> Vec<Rc<Endpoint>> {
        (1..=n).map(|port| Endpoint::new(([10, 0, 0, 1], port).into(), 1, 0)).collect()
    }

    fn all_due(schedule: &mut Schedule, now: Instant) -> Vec<Rc<Endpoint>> {
        std::iter::from_fn(|| schedule.next_due(now).map(|one| Rc::clone(&one.endpoint))).collect()
    }

    #[test]
    fn a_few_are_checked_at_once_and_then_at_moments_of_their_own_once_an_interval() {
        fastrand::seed(3);
        let (mut schedule, endpoints, start) = (Schedule::default(), endpoints(60), Instant::now());
        schedule.take_over(&endpoints, INTERVAL, start);
        assert_eq!(all_due(&mut schedule, start).len(), 60);
        assert!(schedule.first_due().is_none(), "each is being checked");
        for endpoint in &endpoints {
            assert!(schedule.ended(endpoint, INTERVAL, Duration::ZERO, start));
        }
        let half = all_due(&mut schedule, start + INTERVAL / 2);
        assert!((15..45).contains(&half.len()), "{} of 60 in half an interval", half.len());
        assert_eq!(all_due(&mut schedule, start + INTERVAL).len(), 60 - half.len());
        let (later, jitter) = (start + INTERVAL, Duration::from_secs(1));
        assert!(schedule.ended(&endpoints[0], INTERVAL, jitter, later));
        assert_eq!(schedule.first_due(), Some(later + INTERVAL + jitter));
    }

    #[test]
    fn very_many_are_spread_but_for_those_that_are_waited_for() {
        fastrand::seed(4);
        let (mut schedule, endpoints, start) = (Schedule::default(), endpoints(10_000), Instant::now());
        endpoints[7].checked.expect();
        schedule.take_over(&endpoints, INTERVAL, start);
        let first = all_due(&mut schedule, start);
        assert!(first.len() < 10 && first.iter().any(|e| Rc::ptr_eq(e, &endpoints[7])), "{}", first.len());
        for tenth in 1..=10 {
            let due = all_due(&mut schedule, start + INTERVAL * tenth / 10).len();
            assert!((850..1_150).contains(&due), "{due} of 10,000 in a tenth of the interval");
        }
    }

    #[test]
    fn who_has_gone_is_checked_no_more_and_who_stays_keeps_its_time() {
        let (mut schedule, before, start) = (Schedule::default(), endpoints(3), Instant::now());
        schedule.take_over(&before, INTERVAL, start);
        assert_eq!(all_due(&mut schedule, start).len(), 3);
        assert!(schedule.ended(&before[1], INTERVAL, Duration::ZERO, start));
        let due = schedule.first_due();
        // The first has gone; at the third's address is another one.
        let other = endpoints(3).pop().unwrap();
        schedule.take_over(&[Rc::clone(&before[1]), Rc::clone(&other)], INTERVAL, start);
        assert!(!schedule.ended(&before[0], INTERVAL, Duration::ZERO, start));
        assert!(!schedule.ended(&before[2], INTERVAL, Duration::ZERO, start), "an answer of another");
        let now = all_due(&mut schedule, start);
        assert!(now.iter().any(|e| Rc::ptr_eq(e, &other)) && !now.iter().any(|e| Rc::ptr_eq(e, &before[0])));
        assert_eq!(schedule.first_due(), due.filter(|at| *at > start), "the one that stays is due when it was");
    }
}
