//! The bundled certificate authority of Outrigger.
//!
//! Without the feature `server` only [`identity`] is here: that is what the sidecar links, so no code that
//! can sign for others is in the program that faces the network.

pub mod identity;

/// Istio's certificate service, generated from `proto/istio_ca.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::unwrap_used, rust_2018_idioms)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/istio.v1.auth.rs"));
}
