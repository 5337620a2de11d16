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
    net::connect::dial_application,
    reason::Reason,
};

/// Local TCP: an application that has not accepted by then does not accept.
const CONNECT: Duration = Duration::from_secs(5);
/// Addresses of the application that connections are kept for.
const MAX_KEPT: usize = 256;

/// Connections to one address of the application.
#[derive(Debug, Default)]
pub(super) struct Pools {
    pub(super) h1: Rc<Pool>,
    pub(super) h2: Rc<H2Pool>,
}

/// The application's addresses, as one worker sees them.
pub(super) struct Applications {
    at: ApplicationAddress,
    pools: RefCell<FxHashMap<SocketAddr, Rc<Pools>>>,
}

impl Applications {
    pub(super) fn new(at: ApplicationAddress) -> Self {
        Self { at, pools: RefCell::default() }
    }

    /// The connections to `destination`.
    pub(super) fn pools(&self, destination: SocketAddr) -> Rc<Pools> {
        let mut pools = self.pools.borrow_mut();
        if !pools.contains_key(&destination) && pools.len() >= MAX_KEPT {
            // Only a scan of the ports comes here; what is in use keeps its own reference.
            pools.clear();
        }
        Rc::clone(pools.entry(destination).or_default())
    }

    /// Connects to the application on behalf of a peer that dialled `destination`.
    pub(super) async fn dial(&self, destination: SocketAddr) -> Result<TcpStream, ConnectError> {
        let address = match (self.at, destination) {
            (ApplicationAddress::Original, _) => destination,
            (ApplicationAddress::Loopback, SocketAddr::V4(a)) => {
                SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), a.port())
            }
            (ApplicationAddress::Loopback, SocketAddr::V6(a)) => {
                SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), a.port())
            }
        };
        match tokio::time::timeout(CONNECT, dial_application(address)).await {
            Ok(connected) => connected.map_err(|e| (address, e).into()),
            Err(_) => Err(ConnectError::new(
                Reason::ApplicationUnreachable,
                format_args!("the application did not accept a connection at {address} within {CONNECT:?}"),
            )),
        }
    }
}
