//! What both sides of an enrolment share: SPIFFE ids, certificate requests, the client that enrols, the reader of what a
//! CA publishes, and the client of the SPIFFE Workload API.
//!
//! A package of its own, so that the sidecar, which faces the network, can be built beside the authority and still
//! holds no code that can sign for others: a feature of one package would be switched on for both.

mod alert;
mod connect;
pub mod csr;
mod dial;
pub mod documents;
pub mod enrol;
mod enrol_error;
mod spiffe;
pub mod workload_api;

/// Istio's certificate service, generated from `proto/istio_ca.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::unwrap_used, rust_2018_idioms)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/istio.v1.auth.rs"));
}

/// The SPIFFE Workload API, generated from `proto/workload.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::unwrap_used, rust_2018_idioms)]
pub mod workload_proto {
    include!(concat!(env!("OUT_DIR"), "/_.rs"));
}

pub use spiffe::{MAX_ID_LEN, MAX_TRUST_DOMAIN_LEN, SpiffeError, SpiffeId, TrustDomain};
