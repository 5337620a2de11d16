//! The bundled certificate authority of Outrigger.
//!
//! A certificate is made in one place, [`issue`]: the caller's evidence is judged by [`attest`], signed by
//! [`authority`], recorded by [`store`], and only then handed out by [`server`] or the command line. [`inspect`] looks at
//! certificates of anybody's making, [`health`] at the CA itself.

pub mod admin;
pub mod attest;
pub mod authority;
pub mod health;
pub mod inspect;
pub mod issue;
pub mod limits;
pub mod server;
pub mod store;
