//! The proxy that stands beside one workload. Read [`proxy`] first, then [`inbound`] and [`outbound`].

pub mod admin;
pub mod balance;
pub mod config;
pub mod discovery;
pub mod http;
pub mod http1;
pub mod http2;
pub mod identity;
pub mod inbound;
pub mod net;
pub mod outbound;
pub mod proxy;
pub mod reason;
pub mod resilience;
pub mod route;
pub mod telemetry;
pub mod tls;
pub mod worker;
