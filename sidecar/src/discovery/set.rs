//! What is published.

use std::{net::SocketAddr, time::SystemTime};

/// Endpoints of one target beyond which the rest is left out: what no DNS answer that is meant well holds.
const MAX_ENDPOINTS: usize = 10_000;

/// The endpoints of one target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointSet {
    /// By priority, then by address; no address twice.
    pub endpoints: Vec<EndpointAddress>,
    /// How far they can be trusted.
    pub state: SetState,
    /// Goes up by one whenever `endpoints` changes, and only then.
    pub generation: u64,
}

/// One endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointAddress {
    /// Lower numbers first (RFC 2782, Priority); 0 where the source has none.
    pub priority: u16,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share among those of its priority (RFC 2782, Weight; 0 is a very small one); 1 where the source has none.
    pub weight: u32,
}

impl EndpointAddress {
    /// An address from a source that knows neither weight nor priority.
    pub(super) fn plain(address: SocketAddr) -> Self {
        Self { priority: 0, address, weight: 1 }
    }
}

/// How far an [`EndpointSet`] can be trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SetState {
    /// The first look-up is under way.
    #[default]
    Resolving,
    /// The last look-up gave these endpoints.
    Fresh,
    /// The last look-up failed; these are the endpoints of the last good one.
    Stale {
        /// When the first of the failures was.
        since: SystemTime,
        /// The latest failure.
        error: String,
    },
    /// The last look-up was answered, without records: NXDOMAIN, NODATA, or an SRV record whose target is ".".
    Empty,
    /// No look-up has succeeded yet.
    Failed {
        /// The latest failure.
        error: String,
    },
}

impl SetState {
    /// `resolving`, `fresh`, `stale`, `empty` or `failed`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Resolving => "resolving",
            Self::Fresh => "fresh",
            Self::Stale { .. } => "stale",
            Self::Empty => "empty",
            Self::Failed { .. } => "failed",
        }
    }
}

/// Puts endpoints into the one order in which sets are compared. An address that is there twice keeps its lowest
/// priority number. Addresses that nobody can listen on are left out: 0.0.0.0, with which DNS filters answer, would
/// lead back to ourselves.
pub(super) fn normalise(mut endpoints: Vec<EndpointAddress>) -> Vec<EndpointAddress> {
    endpoints.retain(|e| !e.address.ip().is_unspecified() && !e.address.ip().is_multicast());
    endpoints.sort_unstable_by_key(|e| (e.address, e.priority, std::cmp::Reverse(e.weight)));
    endpoints.dedup_by_key(|e| e.address);
    endpoints.sort_unstable();
    endpoints.truncate(MAX_ENDPOINTS);
    endpoints
}
