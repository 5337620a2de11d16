//! HTTP/1.1 (RFC 9112) with applications: a server and a client that cost little while they work and next to nothing
//! while they wait.
//!
//! Why not hyper: a proxy holds many connections on which nothing happens, and hyper keeps two buffers and a task for
//! each; and it hands each request from task to task. Here an idle connection holds no buffer, a request is read,
//! answered and written by one task, and a connection to an application has no task at all. What both refuse is the
//! same or stricter: no whitespace before a colon, no two lengths, no length beside chunks, no transfer coding but
//! `chunked`.

mod body;
mod chunked;
pub mod client;
mod connection;
mod head;
mod out;
mod sending;
pub mod server;
mod soon;
#[cfg(test)]
mod tests;
mod upgrade;

pub use body::RecvBody;
pub use upgrade::{OnUpgrade, Upgraded};
