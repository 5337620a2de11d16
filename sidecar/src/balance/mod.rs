//! Which endpoint takes the next request. By default: power of two choices (Mitzenmacher, "The Power of Two Choices in Randomized
//! Load Balancing", 2001) on a peak-sensitive moving average of latency times the requests under way (Finagle's and
//! Linkerd's `PeakEwma`), within the priority groups and by the weights of SRV records (RFC 2782).
//!
//! All of it belongs to one worker: no lock, no atomic. A pick does not allocate, and looks at a handful of endpoints
//! whether there are ten or ten thousand.

mod alias;
mod hashing;
mod peak_ewma;
mod picker;
mod stride;

pub use hashing::hash;
pub use peak_ewma::PeakEwma;
pub use picker::{Balancer, Candidate};
