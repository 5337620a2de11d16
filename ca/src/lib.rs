//! The bundled certificate authority of Outrigger.
//!
//! A certificate is made in one place, [`issue`]: the caller's evidence is judged by [`attest`], signed by
//! [`authority`], recorded by [`store`], and only then handed out by [`server`] or the command line.
//!
//! Without the feature `server` only [`identity`] is here: that is what the sidecar links, so no code that
//! can sign for others is in the program that faces the network.

#[cfg(feature = "server")]
pub mod attest;
#[cfg(feature = "server")]
pub mod authority;
pub mod identity;
#[cfg(feature = "server")]
pub mod issue;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod store;

/// Istio's certificate service, generated from `proto/istio_ca.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::unwrap_used, rust_2018_idioms)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/istio.v1.auth.rs"));
}
