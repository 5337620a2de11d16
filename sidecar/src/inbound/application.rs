//! The workload's own application: dialling it, and its idle connections.

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use rustc_hash::FxHashMap;
use tokio::net::TcpStream;

use crate::{
    config::ApplicationAddress,
    http::client::{ConnectError, H2Pool},
    http1::client::Pool,
    net::connect::{dial_application, dial_application_as},
    reason::Reason,
};

/// Local TCP: an application that has not accepted by then does not accept.
const CONNECT: Duration = Duration::from_secs(5);
/// Ways to the application that connections are kept for.
const MAX_KEPT: usize = 256;

/// Connections to one address of the application.
#[derive(Debug, Default)]
pub(super) struct Pools {
    pub(super) h1: Rc<Pool>,
    pub(super) h2: Rc<H2Pool>,
}

/// One way to the application: where a peer dialled, and whom the application sees as its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Leg {
    /// The address that the peer dialled.
    pub(super) destination: SocketAddr,
    /// The peer's own address, where it came by TPROXY; `None`: 127.0.0.6 or ::6.
    pub(super) source: Option<IpAddr>,
}

/// The application's addresses, as one worker sees them.
pub(super) struct Applications {
    at: ApplicationAddress,
    pools: RefCell<FxHashMap<Leg, Rc<Pools>>>,
}

impl Applications {
    pub(super) fn new(at: ApplicationAddress) -> Self {
        Self { at, pools: RefCell::default() }
    }

    /// The connections of this way.
    pub(super) fn pools(&self, leg: Leg) -> Rc<Pools> {
        let mut pools = self.pools.borrow_mut();
        if !pools.contains_key(&leg) && pools.len() >= MAX_KEPT {
            // Only a scan of the ports, or very many clients of TPROXY; what is in use keeps its own reference.
            pools.clear();
        }
        Rc::clone(pools.entry(leg).or_default())
    }

    /// Connects to the application on behalf of a peer.
    pub(super) async fn dial(&self, leg: Leg) -> Result<TcpStream, ConnectError> {
        let address = match (self.at, leg.destination) {
            (ApplicationAddress::Original, destination) => destination,
            (ApplicationAddress::Loopback, SocketAddr::V4(a)) => {
                SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), a.port())
            }
            (ApplicationAddress::Loopback, SocketAddr::V6(a)) => {
                SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), a.port())
            }
        };
        let dialled = async {
            match leg.source.filter(|_| self.at == ApplicationAddress::Original) {
                Some(client) => dial_application_as(client, address).await,
                None => dial_application(address).await,
            }
        };
        match tokio::time::timeout(CONNECT, dialled).await {
            Ok(connected) => connected.map_err(|e| (address, e).into()),
            Err(_) => Err(ConnectError::new(
                Reason::ApplicationUnreachable,
                format_args!("the application did not accept a connection at {address} within {CONNECT:?}"),
            )),
        }
    }
}
