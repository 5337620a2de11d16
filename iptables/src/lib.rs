//! Puts one workload's TCP connections into the hands of its sidecar, and takes them out again.
//!
//! Runs once, as the most privileged part of the product, on other people's machines. So: the rules are one
//! transaction for each table, a second run changes nothing, a failure leaves what was there, and `remove` leaves no
//! trace. What is wanted is decided in [`plan`] without any I/O; [`backend`] renders and applies it; [`verify()`] proves
//! with connections that the kernel does it.
//!
//! Everything that we put anywhere is known by what it is (the table `inet outrigger`, chains `OUTRIGGER_…`, the
//! deprecated address `::6` on `lo`, rule and table 15006, policies `outrigger4` and `outrigger6`), never by what else is
//! there: whatever a run that was killed has left, the next `install` or `remove` finds.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done; `status`: the redirection is there |
//! | 2 | the command line, the environment or the file is wrong |
//! | 3 | not permitted: NET_ADMIN is missing (SYS_ADMIN too, with `--netns`; NET_RAW too, for `verify`) |
//! | 4 | no usable backend: neither `nft` nor `iptables-restore` works here |
//! | 5 | the kernel or the tool refused; the rules are as they were before |
//! | 6 | refused, and undoing failed as well: `outrigger-iptables remove` repairs it |
//! | 7 | the network namespace of `--netns` cannot be entered |
//! | 8 | another run, or another program, held the lock for longer than `--wait` |
//! | 9 | `verify`: the redirection does not work; `status`: only a part of it is there |
//! | 10 | `status`: nothing of it is there |

pub mod backend;
mod command;
mod error;
mod ground;
mod install;
mod netlink;
mod netns;
mod options;
pub mod plan;
mod remove;
mod settings;
mod status;
mod values;
mod verify;

use serde::Serialize;

pub use error::Error;
pub use install::{Printed, Script, install, print};
pub use netlink::address::LEG_ADDRESS_V6;
pub use netns::enter as enter_netns;
pub use options::{Ipv6, Mode, Options, Proxy, SelfCall};
pub use remove::remove;
pub use settings::{Place, Run, Settings, Time};
pub use status::{State, Status, status};
pub use values::{Interface, InvalidOption, Mark, PortRange, UidRange, parse_cidr, parse_duration};
pub use verify::{Check, Outcome, Verified, verify};

use backend::Kind;

/// What `install` or `remove` did, for people (`Display` of its fields) and programs (`--json`).
#[derive(Debug, Serialize)]
pub struct Report {
    /// `install` or `remove`.
    pub command: &'static str,
    /// The backends that hold, or held, the rules.
    pub backends: Vec<Kind>,
    /// Why these.
    pub why: String,
    /// What the operator should know although nothing failed.
    pub notices: Vec<String>,
}
