//! The proxy that stands beside one workload. Read [`proxy`] first once it is there, then `inbound` and `outbound`.

pub mod admin;
pub mod config;
pub mod proxy;
pub mod telemetry;
