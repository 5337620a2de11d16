//! How a service's endpoints share its requests.

use serde::{Deserialize, Serialize};

use super::FieldName;

/// How a service's endpoints share its requests. Every policy keeps to priorities, weights (of SRV records), ejections and
/// the panic threshold.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadBalancing {
    /// Default `peak_ewma`.
    pub policy: LoadBalancingPolicy,
    /// By what `ring_hash` and `maglev` tell requests apart (Envoy's `hash_policy`): all that a request has of these
    /// together, in this order. A request that has none of them goes to a random endpoint.
    pub hash: Vec<HashPolicy>,
    /// The ring of `ring_hash`.
    pub ring_hash: RingHash,
    /// The table of `maglev`.
    pub maglev: Maglev,
}

/// Which endpoint takes the next request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadBalancingPolicy {
    /// Of two random ones, that with the lower moving average of latency times requests under way (Finagle, Linkerd).
    #[default]
    PeakEwma,
    /// Of two random ones, that with fewer requests under way (Envoy's `LEAST_REQUEST` with its `choice_count` of 2).
    LeastRequest,
    /// Each in turn, by weight.
    RoundRobin,
    /// A random one, by weight.
    Random,
    /// The same one for the same hash: the next on a ring (Envoy's `RING_HASH`, ketama).
    RingHash,
    /// The same one for the same hash: by a table (Envoy's `MAGLEV`; Eisenbud et al., NSDI 2016). Endpoints share more
    /// evenly than on a ring, and a little more moves when one leaves.
    Maglev,
}

impl LoadBalancingPolicy {
    /// Whether it needs a hash.
    pub fn is_hashing(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

/// One thing that requests are told apart by: exactly one of `header`, `cookie`, `query` and `source_address`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HashPolicy {
    /// The values of this header.
    pub header: Option<FieldName>,
    /// The value of the cookie of this name.
    pub cookie: Option<String>,
    /// The first value of this query parameter.
    pub query: Option<String>,
    /// The address of whoever made the connection: the workload's own, but where it forwards for others. All that there is
    /// of opaque bytes.
    pub source_address: bool,
    /// Nothing further is looked at where the request has this (Envoy's `terminal`).
    pub terminal: bool,
}

/// The ring of `ring_hash`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RingHash {
    /// Places on the ring, at least: more make the shares more even. 1 to 8,388,608. Default 1,024, as Envoy.
    pub minimum_ring_size: u32,
    /// Places on the ring, at most, whatever the weights ask for. Default 8,388,608, as Envoy; each takes 16 bytes.
    pub maximum_ring_size: u32,
}

impl Default for RingHash {
    fn default() -> Self {
        Self { minimum_ring_size: 1_024, maximum_ring_size: 8 * 1024 * 1024 }
    }
}

/// The table of `maglev`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Maglev {
    /// A prime number, well above a hundred times the endpoints; at most 5,000,011. Default 65,537, as Envoy.
    pub table_size: u32,
}

impl Default for Maglev {
    fn default() -> Self {
        Self { table_size: 65_537 }
    }
}

impl Maglev {
    /// Whether the size can be one: every endpoint's steps through the table must reach all of it.
    pub fn is_prime(self) -> bool {
        let n = u64::from(self.table_size);
        n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| n % d != 0)
    }
}
