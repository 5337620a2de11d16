//! HTTP: bodies, header rules, responses of our own, serving an HTTP/2 connection, and the pools of those to others.

pub mod body;
pub mod client;
mod error;
pub mod exchange;
pub mod headers;
mod incoming;
pub mod reply;
pub mod server;
pub mod tunnel;

use std::future::Future;

pub use body::Body;
pub use error::{Error, SendError};
pub use incoming::Incoming;

/// Runs hyper's tasks on the worker's own thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalExec;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
