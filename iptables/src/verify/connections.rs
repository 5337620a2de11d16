//! The connections that `verify` makes, and where they have to land.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use super::{
    Check,
    outside::{Answer, Outside},
    place::{Place, arriving, leaving, place},
    roles::{Disguise, StandIn, listener, loopback},
    sockets,
};
use crate::{
    Error, Options,
    netlink::{address, refused},
    options::Mode,
    plan::{ChainName, DNS_PORT, Family, Packet, Plan, Protocol, Way},
};

/// A packet that leaves the host does so at once.
const ESCAPE: Duration = Duration::from_millis(60);

/// Tells which rule is to blame.
type Blame<'a> = &'a dyn Fn(Option<(ChainName, usize)>, Family) -> Option<String>;

/// Makes the connections of every family.
pub(super) fn check(options: &Options, plan: &Plan, blame: Blame<'_>, checks: &mut Vec<Check>) -> Result<(), Error> {
    let look = "verify needs NET_ADMIN, NET_RAW and the kernel's veth interfaces";
    let mut places = Vec::new();
    for family in plan.families {
        match (*family == Family::V6).then(address::no_new_ipv6).flatten() {
            Some(why) => checks.push(Check::skipped("IPv6", why)),
            None => match place(options, plan, *family).map_err(refused("list the sockets", look))? {
                Ok(place) => places.push(place),
                Err(why) => checks.push(Check::skipped(family.to_string(), why)),
            },
        }
    }
    let Some(interface) = places.first().map(|place| place.interface.clone()) else { return Ok(()) };
    let own: Vec<IpAddr> = places.iter().map(|place| place.own).collect();
    let mut outside =
        Outside::new(&interface, &own).map_err(refused("make a pair of virtual interfaces (veth)", look))?;
    let _standing_in = StandIn::listen(options).map_err(refused("listen in place of the sidecar", look))?;
    for place in &places {
        let mut run =
            |what: &str, made: io::Result<Check>| made.map_err(refused(what, look)).map(|check| checks.push(check));
        run("connect from outside", inbound(options, plan, place, &mut outside, blame))?;
        run("connect as the application", outbound(options, plan, place, &mut outside, blame))?;
        run("connect as the sidecar", proxy(options, plan, place, &mut outside, blame))?;
        if let Some(port) = options.dns_port {
            run("ask as the application", dns(plan, place, port, &mut outside, blame))?;
        }
    }
    Ok(())
}

fn inbound(
    options: &Options,
    plan: &Plan,
    place: &Place,
    outside: &mut Outside,
    blame: Blame<'_>,
) -> io::Result<Check> {
    let name = format!("{}: a peer's connection reaches the sidecar", place.family);
    let Some(port) = place.inbound else {
        return Ok(Check::skipped(name, "these options redirect no port on which nobody listens"));
    };
    let (from, to) = ((place.far, 40_000 + (std::process::id() % 20_000) as u16), (place.own, port));
    let expected = plan.decide(&Packet { interface: place.interface.clone(), ..arriving(from, to) }, Way::Arriving);
    let (answer, last) = outside.call(from, to)?;
    let wanted = if options.mode == Mode::Redirect { options.inbound_port } else { port };
    let landed = landed(outside, from, answer == Answer::Open)?;
    if answer == Answer::Open {
        outside.abort(last)?;
    }
    let what = format!("{} to {}", SocketAddr::from(from), SocketAddr::from(to));
    Ok(match (answer, landed) {
        (Answer::Open, Some(local)) if local.1 == wanted => {
            Check::passed(name, format!("{what} came to port {}", options.inbound_port))
        }
        (Answer::Open, Some(local)) => {
            let detail = format!("{what} came to {}, not to port {}", SocketAddr::from(local), options.inbound_port);
            Check::failed(name, detail, blame(expected.by, place.family))
        }
        (Answer::Open, None) => Check::failed(
            name,
            format!("{what} was answered by nobody's socket here"),
            blame(expected.by, place.family),
        ),
        (Answer::Reset, _) => Check::failed(
            name,
            format!("{what} was refused: it went past the sidecar"),
            blame(expected.by, place.family),
        ),
        (Answer::Silence, _) if options.mode == Mode::Tproxy => {
            let port = options.inbound_port;
            let detail = format!(
                "{what} was not answered: no socket with IP_TRANSPARENT listens on port {port}, or a rule is missing"
            );
            Check::failed(name, detail, blame(expected.by, place.family))
        }
        (Answer::Silence, _) => {
            let detail = format!("{what} was not answered: a firewall drops it");
            Check::failed(name, detail, blame(expected.by, place.family))
        }
    })
}

fn outbound(
    options: &Options,
    plan: &Plan,
    place: &Place,
    outside: &mut Outside,
    blame: Blame<'_>,
) -> io::Result<Check> {
    let name = format!("{}: the application's connection reaches the sidecar", place.family);
    let Some(port) = place.outbound else {
        return Ok(Check::skipped(name, "these options redirect no connection that we could make"));
    };
    tcp_lands(name, plan, place, port, options.outbound_port, outside, blame)
}

/// Dials a port of somebody outside as the application, and looks whether it lands on this one.
fn tcp_lands(
    name: String,
    plan: &Plan,
    place: &Place,
    port: u16,
    wanted: u16,
    outside: &mut Outside,
    blame: Blame<'_>,
) -> io::Result<Check> {
    let Some(_user) = Disguise::put_on(Some(place.uid), place.gid) else {
        return Ok(Check::skipped(
            name,
            "we may not make a socket of the application's user: that needs SETUID or SETGID",
        ));
    };
    let to = (place.far, port);
    let socket = dial(place, to)?;
    let from = (place.own, socket.local_addr()?.as_socket().map_or(0, |address| address.port()));
    let expected = plan.decide(
        &Packet { interface: place.interface.clone(), ..leaving(from, to, place.uid, place.gid) },
        Way::Leaving,
    );
    let connected = is_connected(&socket, outside, to)?;
    let landed = landed(outside, from, connected)?;
    let what = SocketAddr::from(to);
    Ok(match landed.filter(|_| connected) {
        Some(local) if local.1 == wanted => Check::passed(name, format!("a call to {what} came to port {wanted}")),
        Some(local) => {
            let detail = format!("a call to {what} came to {}, not to port {wanted}", SocketAddr::from(local));
            Check::failed(name, detail, blame(expected.by, place.family))
        }
        None => {
            let detail = format!("a call to {what} did not come to port {wanted}: it left this host, or was dropped");
            Check::failed(name, detail, blame(expected.by, place.family))
        }
    })
}

fn proxy(options: &Options, plan: &Plan, place: &Place, outside: &mut Outside, blame: Blame<'_>) -> io::Result<Check> {
    let name = format!("{}: the sidecar's own connection goes out", place.family);
    let Some(_disguise) = Disguise::as_proxy(options) else {
        return Ok(Check::skipped(name, "we may not make a socket of the sidecar's user: that needs SETUID or SETGID"));
    };
    let port = place.outbound.unwrap_or(80);
    let to = (place.far, port);
    let socket = Socket::new(Domain::for_address(to.into()), Type::STREAM.nonblocking(), None)?;
    if let (None, None, Some(mark)) = (options.proxy.uid, options.proxy.gid, options.proxy.mark) {
        socket.set_mark(mark.value())?;
    }
    socket.bind(&SocketAddr::new(place.own, 0).into())?;
    begin(&socket, to)?;
    let what = SocketAddr::from(to);
    if outside.has_seen(to, outside.patience())? {
        return Ok(Check::passed(name, format!("a call to {what} left this host")));
    }
    let mut packet = leaving((place.own, 1), to, options.proxy.uid.unwrap_or(place.uid), options.proxy.gid);
    packet.interface.clone_from(&place.interface);
    packet.mark = options.proxy.mark.map_or(0, |mark| mark.value());
    let by = plan.decide(&packet, Way::Leaving).by;
    let detail = format!("a call to {what} did not leave this host: the sidecar would call itself");
    Ok(Check::failed(name, detail, blame(by, place.family)))
}

/// A question over UDP and one over TCP.
fn dns(plan: &Plan, place: &Place, port: u16, outside: &mut Outside, blame: Blame<'_>) -> io::Result<Check> {
    let name = format!("{}: the application's DNS questions reach port {port}", place.family);
    let to = (place.far, DNS_PORT);
    let Some(_user) = Disguise::put_on(Some(place.uid), place.gid) else {
        return Ok(Check::skipped(
            name,
            "we may not make a socket of the application's user: that needs SETUID or SETGID",
        ));
    };
    let loopback = loopback(place.family);
    let stand_in = UdpSocket::bind((loopback, port)).ok();
    let client = UdpSocket::bind((place.own, 0))?;
    // A question for the name servers of the root (RFC 1035 section 4.1), which every resolver can answer.
    let question = [0x4f, 0x52, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    client.send_to(&question, SocketAddr::from(to))?;
    let packet = Packet {
        protocol: Protocol::Udp,
        opening: false,
        interface: place.interface.clone(),
        ..leaving((place.own, 1), to, place.uid, place.gid)
    };
    let by = plan.decide(&packet, Way::Leaving).by;
    let mut buffer = [0; 512];
    if let Some(server) = &stand_in {
        server.set_read_timeout(Some(outside.patience()))?;
        match server.recv_from(&mut buffer) {
            Ok((length, from)) => _ = server.send_to(buffer.get(..length).unwrap_or_default(), from)?,
            Err(_) => {
                let detail = format!("a question over UDP to {} did not come", place.far);
                return Ok(Check::failed(name, detail, blame(by, place.family)));
            }
        }
    } else if outside.has_seen(to, ESCAPE)? {
        let detail = format!("a question over UDP to {} left this host", place.far);
        return Ok(Check::failed(name, detail, blame(by, place.family)));
    }
    client.set_read_timeout(Some(outside.patience()))?;
    match client.recv_from(&mut buffer) {
        Ok((_, from)) if from == SocketAddr::from(to) => {}
        Ok((_, from)) => {
            let detail = format!("the answer over UDP came from {from}, not from {}", place.far);
            return Ok(Check::failed(name, detail, blame(by, place.family)));
        }
        // Who answers there may have reasons not to.
        Err(_) if stand_in.is_none() => {}
        Err(_) => {
            let detail = "the answer over UDP did not come back".to_owned();
            return Ok(Check::failed(name, detail, blame(by, place.family)));
        }
    }
    let _listener = listener(SocketAddr::new(loopback, port), false)?;
    tcp_lands(name, plan, place, DNS_PORT, port, outside, blame)
}

/// The local end of the socket whose other end this is; where it must be there, a moment is allowed for it.
fn landed(outside: &Outside, remote: (IpAddr, u16), must: bool) -> io::Result<Option<(IpAddr, u16)>> {
    let deadline = Instant::now() + outside.patience();
    loop {
        let found = sockets::all()?.into_iter().find(|open| open.remote == remote && !open.listens());
        match found {
            Some(open) => return Ok(Some(open.local)),
            None if must && Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            None => return Ok(None),
        }
    }
}

fn dial(place: &Place, to: (IpAddr, u16)) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to.into()), Type::STREAM.nonblocking(), None)?;
    // Its end is a reset: nothing of it remains.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&SocketAddr::new(place.own, 0).into())?;
    begin(&socket, to)?;
    Ok(socket)
}

fn begin(socket: &Socket, to: (IpAddr, u16)) -> io::Result<()> {
    match socket.connect(&SocketAddr::from(to).into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(()),
    }
}

/// Waits until the connection is open, or has been seen to leave the host, or has failed.
fn is_connected(socket: &Socket, outside: &mut Outside, to: (IpAddr, u16)) -> io::Result<bool> {
    let deadline = Instant::now() + outside.patience();
    loop {
        if socket.peer_addr().is_ok() {
            return Ok(true);
        }
        if socket.take_error()?.is_some() || Instant::now() >= deadline {
            return Ok(false);
        }
        if outside.has_seen(to, Duration::from_millis(1))? {
            return Ok(false);
        }
    }
}
