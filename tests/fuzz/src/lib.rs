//! What strangers can send to the CA, against invariants that can fail. Each module is one fuzzer: its `check` takes any
//! bytes, panics when the code under test breaks its promise, and says whether that code accepted them. `run.sh` runs them with libFuzzer; the stored inputs
//! in `corpus/` are checked by every test run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod authorization;
pub mod certificates;
pub mod csr;
pub mod enrolment;
pub mod spiffe_id;

mod signed;

/// A fuzzer's name and its check.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// All of them.
pub const TARGETS: [Target; 5] = [
    ("spiffe_id", spiffe_id::check),
    ("authorization", authorization::check),
    ("csr", csr::check),
    ("enrolment", enrolment::check),
    ("certificates", certificates::check),
];
