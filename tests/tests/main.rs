//! One program, because what they share takes longer to link than most of them to run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod balancing;
mod breakers;
mod ca;
mod connections;
mod drain;
mod health_checks;
mod herd;
mod hostile;
mod identity;
mod istiod;
mod lifecycle;
mod lost_requests;
mod metrics;
mod modes;
mod protocols;
mod resilience;
mod retries;
mod retry_after;
mod routes;
mod smoke;
mod streams;
mod timeouts;
mod tproxy;
mod trust;
mod workload_api;
