//! What both sides of an enrolment share: SPIFFE ids, certificate requests and the client that enrols.
//! Holds no code that can sign for others and no server.

mod alert;
pub mod csr;
pub mod enrol;
mod enrol_error;
mod spiffe;

pub use spiffe::{MAX_ID_LEN, MAX_TRUST_DOMAIN_LEN, SpiffeError, SpiffeId, TrustDomain};
