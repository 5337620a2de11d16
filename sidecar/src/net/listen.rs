//! Listening sockets of the workers, and where a redirected connection was going.

use std::{
    ffi::OsString,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::AsFd,
    time::Duration,
};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;

const BACKLOG: i32 = 4_096;

/// Finds dead peers of silent connections: first probe after a minute, then every 15 s, four of them.
pub(crate) fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4)
}

/// Binds a listening socket that several workers share by `SO_REUSEPORT`; an IPv6 wildcard takes IPv4 as well.
///
/// What it accepts inherits its options (Linux: `tcp_create_openreq_child` copies them), which spares five system calls
/// a connection.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    bind_as(address, false)
}

/// The same; a transparent one accepts what TPROXY gives it, and needs NET_RAW or NET_ADMIN.
fn bind_as(address: SocketAddr, transparent: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if transparent {
        socket.set_ip_transparent_v4(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Binds `port` on every address, of IPv4 alone where the kernel has no IPv6; `transparent` for connections by TPROXY.
pub fn bind_any(port: u16, transparent: bool) -> io::Result<std::net::TcpListener> {
    match bind_as(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), transparent) {
        Err(e) if no_ipv6(&e) => bind_as(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), transparent),
        other => other,
    }
}

/// Binds `port` for the workload's own connections: on 127.0.0.1, and on ::1 where there is IPv6.
pub fn bind_loopback(port: u16) -> io::Result<Vec<std::net::TcpListener>> {
    let mut all = vec![bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))?];
    match bind(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)) {
        Ok(l) => all.push(l),
        Err(e) if no_ipv6(&e) => {}
        Err(e) => return Err(e),
    }
    for listener in &all {
        never_leaves_the_host(listener);
        // A request that is there when it is accepted is acknowledged by its answer; without this, also by a segment of
        // its own (HAProxy's tcp-smart-accept). What is accepted inherits it, see `acknowledge`. Failing to set it costs
        // that segment and nothing else.
        let _ = SockRef::from(listener).set_tcp_quickack(false);
    }
    Ok(all)
}

/// Acknowledges what has come, also that which comes before there is something to answer: a client that sends a head and a
/// body in two pieces (RFC 896) holds the second back until the first is acknowledged.
pub(crate) fn acknowledge(socket: &impl AsFd) {
    // Failing to set it costs 40 ms and nothing else.
    let _ = SockRef::from(socket).set_tcp_quickack(true);
}

/// Tells the kernel that nothing is lost or queued between this socket and its other side, and so nothing has to be
/// paced: Reno, which every Linux has and lets everybody use, does not pace. With BBR as the system's default, each
/// segment between sidecar and workload would wait for a timer.
pub(crate) fn never_leaves_the_host(socket: &impl AsFd) {
    // Failing to set it costs time and nothing else.
    let _ = setsockopt(socket, sockopt::TcpCongestion, &OsString::from("reno"));
}

fn no_ipv6(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Makes the closing of `stream` send a reset, so that the other side learns that the connection broke.
pub fn reset_on_close(stream: &impl AsFd) {
    // Failing to set the option only turns the reset into an ordinary close.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// The destination that the client at `peer` dialled before the redirection (`SO_ORIGINAL_DST`), of either family.
///
/// A connection that was not redirected answers with its own local address; by TPROXY that is what the client dialled.
pub fn original_destination(stream: &impl AsFd, peer: SocketAddr) -> io::Result<SocketAddr> {
    let v4 = peer.ip().to_canonical().is_ipv4();
    let answer = if v4 {
        getsockopt(stream, sockopt::OriginalDst)
            .map(|a| SocketAddr::new(Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr)).into(), u16::from_be(a.sin_port)))
    } else {
        getsockopt(stream, sockopt::Ip6tOriginalDst).map(|a| {
            let scope = a.sin6_scope_id;
            SocketAddrV6::new(Ipv6Addr::from(a.sin6_addr.s6_addr), u16::from_be(a.sin6_port), 0, scope).into()
        })
    };
    match answer {
        Ok(address) => Ok(address),
        // No connection tracking entry: nobody redirected this connection.
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOPROTOOPT) => Ok(canonical(local_address(stream)?)),
        Err(e) => Err(e.into()),
    }
}

/// Where a connection was accepted.
pub fn local_address(stream: &impl AsFd) -> io::Result<SocketAddr> {
    let address = SockRef::from(stream).local_addr()?;
    address.as_socket().ok_or_else(|| io::Error::other("a socket of no internet address"))
}

/// An IPv4-mapped IPv6 address as the IPv4 address that it is.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Turns a bound socket into a listener of this thread's runtime.
pub fn into_tokio(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    TcpListener::from_std(listener)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn what_is_accepted_has_the_options_of_its_listener() {
        for all in [bind_loopback(0).unwrap(), vec![bind_any(0, false).unwrap()]] {
            for listener in all {
                let port = listener.local_addr().unwrap().port();
                let listener = into_tokio(listener).unwrap();
                let host: IpAddr = match listener.local_addr().unwrap().ip() {
                    IpAddr::V6(ip) if ip.is_loopback() => ip.into(),
                    _ => Ipv4Addr::LOCALHOST.into(),
                };
                let _client = TcpStream::connect((host, port)).await.unwrap();
                let (accepted, peer) = listener.accept().await.unwrap();
                let socket = SockRef::from(&accepted);
                assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
                assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
                assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(15));
                assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
                if host.is_loopback() && listener.local_addr().unwrap().ip().is_loopback() {
                    let pacing = getsockopt(&accepted, sockopt::TcpCongestion).unwrap();
                    assert!(pacing.to_string_lossy().starts_with("reno"), "{pacing:?}");
                    assert!(!socket.tcp_quickack().unwrap());
                }
                assert_eq!(original_destination(&accepted, peer).unwrap(), SocketAddr::new(host, port));
            }
        }
    }
}
