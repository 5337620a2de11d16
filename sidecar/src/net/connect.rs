//! Dialling: peers, original destinations, and the application from the address that the redirection lets through.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
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

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

fn ready(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&keepalive())?;
    Ok(stream)
}
