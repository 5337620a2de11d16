//! Pods without a cluster: each is a network and a mount namespace of its own, joined by a bridge, with real DNS, real
//! certificates and real binaries in them.
//!
//! Nothing has a name in the system and nothing outlives the test process, however it ends: a namespace lives as long as
//! the thread that made it, and every process is told by the kernel to die with that thread. Only the folder of logs
//! stays after a SIGKILL; the next run removes it.

pub mod agent;
pub mod client;
pub mod dns;
mod faults;
pub mod istiod;
pub mod mesh;
pub mod openmetrics;
pub mod pair;
pub mod pki;
pub mod pod;
pub mod script;
pub mod shop;
pub mod sidecar;
mod sys;
pub mod tls;

pub use self::{
    client::Reply,
    dns::Dns,
    mesh::Mesh,
    pair::{Family, Pair},
    pod::{Pod, Process},
    shop::{Replica, Shop},
    sidecar::Sidecar,
};

/// Runs a test on a runtime of its own.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// Asks again until there is an answer, for at most `limit`; panics with `what` and the last refusal.
pub async fn eventually<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    limit: std::time::Duration,
    mut ask: impl FnMut() -> F,
) -> T {
    let end = std::time::Instant::now() + limit;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(why) if std::time::Instant::now() >= end => panic!("{what}: not within {limit:?}: {why}"),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
}
