//! What keeps one failing endpoint, or one failing service, from becoming everybody's failure: outlier detection,
//! active health checks, retry budget, circuit breakers, backoff and what overloaded servers ask for.
//!
//! All of it belongs to one worker: `Cell`s and `Rc`s, no lock, no atomic, no allocation on the request path. Time is
//! given by the caller as [`tokio::time::Instant`], so that tests can stop it. Parameters are those of
//! [`crate::config::OutlierDetection`], [`crate::config::HealthCheck`], [`crate::config::CircuitBreakers`] and [`crate::config::RetryPolicy`].

mod active;
mod backoff;
mod breaker;
mod budget;
mod outlier;
mod pushback;
mod rest;

pub use active::{ActiveHealth, Turn};
pub use backoff::{full_jitter, full_jitter_between};
pub use breaker::{CircuitBreakers, Overflow, Permit, Usage};
pub use budget::RetryBudget;
pub use outlier::{Ejection, HostHealth, Outcome, OutlierDetector};
pub use pushback::Pushback;
pub use rest::Rests;
