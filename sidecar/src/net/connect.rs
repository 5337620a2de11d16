//! Dialling: peers, original destinations, and the application from the address that the redirection lets through.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use super::listen::{keepalive, never_leaves_the_host};

/// The source of the sidecar's leg to its own application (Istio's inbound passthrough address): the redirection
/// lets connections from here alone.
pub const APPLICATION_SOURCE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
/// The same for IPv6; `outrigger-iptables install` adds it to `lo`.
pub const APPLICATION_SOURCE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

/// The ports of connections that bear a client's address. A client that has one of its own from the same port to the same
/// destination cannot be told from us, so these are none that clients' kernels choose (Linux: from 32768).
const TRANSPARENT_PORTS: RangeInclusive<u16> = 2_048..=32_767;
/// How often another port is tried.
const TRANSPARENT_TRIES: u32 = 8;
/// The kernel answers for an application within microseconds, unless its queue is full.
const TRANSPARENT_PATIENCE: Duration = Duration::from_millis(600);

/// Connects to `address` from any local address.
pub async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = socket(address)?.connect(address).await?;
    ready(stream)
}

/// Connects to the application at `address`, as the sidecar does on behalf of a peer.
pub async fn dial_application(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(address)?;
    never_leaves_the_host(&socket);
    if !address.ip().is_loopback() {
        let source = if address.is_ipv4() { APPLICATION_SOURCE_V4 } else { APPLICATION_SOURCE_V6 };
        // The kernel chooses the port at connect: without this, 28,000 connections exhaust the ports of 127.0.0.6.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(SocketAddr::new(source, 0)).map_err(|e| {
            io::Error::new(
                e.kind(),
                format!("cannot take the source address {source}: {e}; \"outrigger-iptables install\" adds it to lo"),
            )
        })?;
    }
    ready(socket.connect(address).await?)
}

/// Connects to the application at `address` from the address of the client, which is somebody else's: its answers come
/// back by the routes of `outrigger-iptables install --mode tproxy`. Needs NET_RAW or NET_ADMIN.
pub async fn dial_application_as(client: IpAddr, address: SocketAddr) -> io::Result<TcpStream> {
    let mut last = None;
    for _ in 0..TRANSPARENT_TRIES {
        let socket = socket(address)?;
        never_leaves_the_host(&socket);
        SockRef::from(&socket).set_ip_transparent_v4(true)?;
        // Connections to other destinations may have the port.
        socket.set_reuseaddr(true)?;
        let tried = match socket.bind(SocketAddr::new(client, fastrand::u16(TRANSPARENT_PORTS))) {
            Ok(()) => tokio::time::timeout(TRANSPARENT_PATIENCE, socket.connect(address)).await,
            Err(e) => Ok(Err(e)),
        };
        match tried {
            Ok(Ok(stream)) => return ready(stream),
            Ok(Err(e)) if !matches!(e.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {
                return Err(e);
            }
            Ok(Err(e)) => last = Some(e),
            // The client itself has a connection from this port, and the kernel takes ours for a part of it; or the
            // application is slow.
            Err(_) => last = Some(io::ErrorKind::TimedOut.into()),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

fn ready(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&keepalive())?;
    Ok(stream)
}
