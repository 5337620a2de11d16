//! The bundled certificate authority of Outrigger.
//!
//! Without the feature `server` only [`identity`] is here: that is what the sidecar links.

pub mod identity;
