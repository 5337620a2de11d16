//! What the workers' balancers hold, for an operator to look at.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// One endpoint as one worker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointReport {
    /// Where it is.
    pub address: SocketAddr,
    /// Its share among those of its priority.
    pub weight: u32,
    /// Its group; the lowest with an available endpoint is used.
    pub priority: u16,
    /// For how long from now it stays ejected, if it is.
    pub ejected_for: Option<Duration>,
    /// How often it was ejected.
    pub ejections: u32,
    /// Whether active health checks keep it out of use.
    pub unhealthy: bool,
    /// Why its last health check failed, if it did.
    pub check_failure: Option<Arc<str>>,
    /// Requests and connections given to it so far.
    pub requests: u64,
}

/// The latest reports of all workers. Workers publish when a set of endpoints or an ejection changes, which is rare:
/// a lock does. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct EndpointsView(Arc<Mutex<Services>>);

type Services = BTreeMap<String, BTreeMap<usize, Report>>;

#[derive(Debug)]
struct Report {
    at: Instant,
    endpoints: Vec<EndpointReport>,
}

/// An endpoint as all workers together see it.
#[derive(Default)]
struct Merged {
    weight: u32,
    priority: u16,
    ejected_by: Vec<usize>,
    ejected_for: Duration,
    ejections: u64,
    unhealthy_by: Vec<usize>,
    check_failure: Option<Arc<str>>,
    requests: u64,
}

impl EndpointsView {
    /// Replaces what `worker` said of `service`.
    pub fn publish(&self, worker: usize, service: &str, endpoints: Vec<EndpointReport>) {
        let report = Report { at: Instant::now(), endpoints };
        let mut services = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match services.get_mut(service) {
            Some(workers) => drop(workers.insert(worker, report)),
            None => drop(services.insert(service.to_owned(), BTreeMap::from([(worker, report)]))),
        }
    }

    /// Takes back what `worker` said of `service`, which it does not use any more.
    pub fn withdraw(&self, worker: usize, service: &str) {
        let mut services = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(workers) = services.get_mut(service) {
            workers.remove(&worker);
            if workers.is_empty() {
                services.remove(service);
            }
        }
    }

    /// Every service with its endpoints: one entry an address, the workers' views merged.
    pub fn report(&self) -> Value {
        let services = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        services.iter().map(|(service, workers)| service_report(service, workers)).collect()
    }
}

fn service_report(service: &str, workers: &BTreeMap<usize, Report>) -> Value {
    let mut merged: BTreeMap<SocketAddr, Merged> = BTreeMap::new();
    for (worker, report) in workers {
        let age = report.at.elapsed();
        for endpoint in &report.endpoints {
            let entry = merged.entry(endpoint.address).or_default();
            (entry.weight, entry.priority) = (endpoint.weight, endpoint.priority);
            entry.ejections += u64::from(endpoint.ejections);
            entry.requests += endpoint.requests;
            if endpoint.unhealthy {
                entry.unhealthy_by.push(*worker);
            }
            if endpoint.check_failure.is_some() {
                entry.check_failure.clone_from(&endpoint.check_failure);
            }
            // A worker says when it ejects; the time that has gone by since is ours to count.
            if let Some(left) = endpoint.ejected_for.and_then(|d| d.checked_sub(age)).filter(|d| !d.is_zero()) {
                entry.ejected_by.push(*worker);
                entry.ejected_for = entry.ejected_for.max(left);
            }
        }
    }
    let endpoints: Vec<Value> = merged
        .into_iter()
        .map(|(address, m)| {
            json!({
                "address": address,
                "weight": m.weight,
                "priority": m.priority,
                "ejected_by_workers": m.ejected_by,
                "ejected_for_seconds": (!m.ejected_by.is_empty()).then_some(m.ejected_for.as_secs_f64()),
                "ejections": m.ejections,
                "unhealthy_by_workers": m.unhealthy_by,
                "health_check_failure": m.check_failure.as_deref(),
                "requests": m.requests,
            })
        })
        .collect();
    // Numbers are as of the workers' latest change, and the oldest of these says how old.
    let age = workers.values().map(|r| r.at.elapsed()).max().unwrap_or_default();
    json!({
        "service": service,
        "workers": workers.len(),
        "reported_seconds_ago": age.as_secs_f64(),
        "endpoints": endpoints,
    })
}
