//! The end-to-end crate: pods made of network namespaces, a workload that speaks every protocol, real binaries, real faults.
//!
//! [`workload`] is the program that plays the application and its load (`outrigger-workload`); [`harness`] builds the
//! pods and the certificates that the tests in `tests/` use. Nothing here is shipped.

#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub mod harness;
pub mod pattern;
pub mod workload;
