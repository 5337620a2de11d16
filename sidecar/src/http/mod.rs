//! HTTP: bodies, header rules, responses of our own, serving a connection, and the pools of client connections.

mod bad_head;
pub mod body;
pub mod client;
pub mod exchange;
pub mod headers;
pub mod reply;
pub mod server;
pub mod tunnel;

use std::future::Future;

pub use body::Body;

/// Runs hyper's tasks on the worker's own thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalExec;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
