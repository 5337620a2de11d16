//! What active health checks say of an endpoint: so many failed checks in a row take it out of use, and so many good ones
//! bring it back, as Envoy's `unhealthy_threshold` and `healthy_threshold`.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use crate::config::HealthCheck;

/// Where an endpoint stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Used. Every endpoint of a service without checks.
    #[default]
    Healthy,
    /// Named by discovery just now, and not checked yet.
    Expected,
    /// Out of use.
    Unhealthy,
}

/// An answer changed where an endpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A new endpoint comes into use.
    Admitted,
    /// It is out of use from now on.
    Failed,
    /// It is back in use.
    Recovered,
}

/// What the checks of one worker know of one endpoint.
#[derive(Debug, Default)]
pub struct ActiveHealth {
    state: Cell<State>,
    /// Whether there was an answer yet.
    checked: Cell<bool>,
    /// Answers in a row that speak against the state.
    against: Cell<u32>,
    /// Why the last check failed, until one does not.
    failure: RefCell<Option<Arc<str>>>,
}

impl ActiveHealth {
    /// The endpoint is new: it is not used before its first good answer.
    pub fn expect(&self) {
        self.state.set(State::Expected);
    }

    /// Whether the endpoint may be used, as far as checks say.
    pub fn is_usable(&self) -> bool {
        self.state.get() == State::Healthy
    }

    /// Why the last check failed, if it did.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.failure.borrow().clone()
    }

    /// Takes note of an answer, which is an error where the check failed.
    pub fn record(&self, answer: Result<(), Arc<str>>, check: &HealthCheck) -> Option<Turn> {
        let (to, threshold) = match &answer {
            Ok(()) => (State::Healthy, check.healthy_threshold.get()),
            Err(_) => (State::Unhealthy, check.unhealthy_threshold.get()),
        };
        *self.failure.borrow_mut() = answer.err();
        let is_first = !self.checked.replace(true);
        let from = self.state.get();
        if from == to {
            self.against.set(0);
            return None;
        }
        let against = self.against.get() + 1;
        // Envoy: the first answer of all needs no others beside it.
        if against < threshold && !is_first {
            self.against.set(against);
            return None;
        }
        self.against.set(0);
        self.state.set(to);
        Some(match (from, to) {
            (State::Expected, State::Healthy) => Turn::Admitted,
            (_, State::Healthy) => Turn::Recovered,
            _ => Turn::Failed,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(healthy: u32, unhealthy: u32) -> HealthCheck {
        let text = format!("{{ tcp: {{}}, healthy_threshold: {healthy}, unhealthy_threshold: {unhealthy} }}");
        serde_saphyr::from_str(&text).unwrap()
    }

    fn bad() -> Result<(), Arc<str>> {
        Err("status 500".into())
    }

    #[test]
    fn it_takes_so_many_answers_in_a_row_to_go_and_to_come_back() {
        let (health, check) = (ActiveHealth::default(), check(2, 3));
        assert_eq!(health.record(Ok(()), &check), None);
        // One good answer ends a row of bad ones.
        for answer in [bad(), bad(), Ok(()), bad(), bad()] {
            assert_eq!(health.record(answer, &check), None);
            assert!(health.is_usable());
        }
        assert_eq!(health.record(bad(), &check), Some(Turn::Failed));
        assert_eq!(health.failure().as_deref(), Some("status 500"));
        for answer in [Ok(()), bad(), Ok(())] {
            assert_eq!(health.record(answer, &check), None);
            assert!(!health.is_usable());
        }
        assert_eq!(health.record(Ok(()), &check), Some(Turn::Recovered));
        assert!(health.is_usable() && health.failure().is_none());
    }

    #[test]
    fn the_first_answer_decides_alone() {
        let check = check(5, 5);
        let health = ActiveHealth::default();
        assert!(health.is_usable());
        assert_eq!(health.record(bad(), &check), Some(Turn::Failed));
        let new = ActiveHealth::default();
        new.expect();
        assert!(!new.is_usable());
        assert_eq!(new.record(Ok(()), &check), Some(Turn::Admitted));
        assert!(new.is_usable());
        let dead = ActiveHealth::default();
        dead.expect();
        assert_eq!(dead.record(bad(), &check), Some(Turn::Failed));
        assert_eq!(dead.record(Ok(()), &check), None, "the second answer is one of five");
    }
}
