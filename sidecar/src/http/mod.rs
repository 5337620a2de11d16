//! HTTP: bodies, header rules, responses of our own, and the pools of HTTP/2 connections.

pub mod body;
pub mod client;
mod error;
pub mod exchange;
pub mod headers;
mod incoming;
pub mod path;
pub mod reply;
pub mod tunnel;

pub use body::Body;
pub use error::{Error, SendError};
pub use incoming::Incoming;
