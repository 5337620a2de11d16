//! Whether traffic should be sent to this workload.
//!
//! A condition is about this sidecar alone. Nothing that a peer, a service or one name in DNS does may become one:
//! a single bad name must never take a healthy workload out of service.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The condition that a valid certificate is there.
pub const CERTIFICATE: &str = "certificate";
/// The condition that every worker listens.
pub const LISTENERS: &str = "listeners";
/// The condition that the sidecar is not about to end.
const DRAINING: &str = "draining";

/// Named conditions, all of which must hold. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    conditions: BTreeMap<&'static str, Result<(), String>>,
    draining: bool,
}

impl Readiness {
    /// Not ready until [`CERTIFICATE`] and [`LISTENERS`] are set.
    pub fn new() -> Self {
        let starting = || Err("not yet: the sidecar is starting".to_owned());
        let conditions = BTreeMap::from([(CERTIFICATE, starting()), (LISTENERS, starting())]);
        Self(Arc::new(Mutex::new(State { conditions, draining: false })))
    }

    /// Says whether a condition holds, and if not, why, in words for an operator.
    pub fn set(&self, condition: &'static str, state: Result<(), String>) {
        self.lock().conditions.insert(condition, state);
    }

    /// The sidecar is about to end. There is no way back.
    pub fn draining(&self) {
        self.lock().draining = true;
    }

    /// Whether [`Self::draining`] was called.
    pub fn is_draining(&self) -> bool {
        self.lock().draining
    }

    /// Ready, or every condition that does not hold and why.
    pub fn report(&self) -> Result<(), Vec<(&'static str, String)>> {
        let state = self.lock();
        let failing = state.conditions.iter().filter_map(|(name, state)| Some((*name, state.clone().err()?)));
        let draining = state.draining.then(|| (DRAINING, "the sidecar finishes what is under way and ends".to_owned()));
        let failing: Vec<_> = draining.into_iter().chain(failing).collect();
        if failing.is_empty() { Ok(()) } else { Err(failing) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}
