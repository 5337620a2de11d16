//! The proxy that stands beside one workload. Read [`proxy`] first, then [`inbound`] and [`outbound`].

pub mod balance;
pub mod config;
pub mod net;
pub mod reason;
pub mod resilience;
