//! The redirection as the kernel carries it out: real rules, real connections, both families, every backend.
//!
//! Runs as root; fails, and says so, when it is not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod dns;
mod draining;
mod environment;
mod failures;
mod half_close;
mod killed;
mod lifecycle;
mod matrix;
mod modes;
mod stray;
mod support;
mod verify;
