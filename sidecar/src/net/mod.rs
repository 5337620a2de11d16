//! Sockets: listening, the original destination, what the first bytes say, copying bytes.

pub mod ahead;
pub mod connect;
pub mod copy;
pub mod detect;
pub mod listen;
pub mod look;
pub mod metered;
pub mod pages;
pub mod peeked;
pub mod pipe;
pub mod stream;

pub use ahead::ReadAhead;
pub use metered::Metered;
pub use peeked::Peeked;
pub use stream::Upstream;

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection of whatever kind.
pub trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}
