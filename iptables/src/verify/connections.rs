//! The connections that `verify` makes, and where they have to land.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};

use super::{
    Check,
    outside::{Answer, Outside, inner_names},
    sockets,
};
use crate::{
    Error, Options,
    netlink::{address, refused},
    options::Mode,
    plan::{ChainName, DNS_PORT, Decision, Family, Packet, Plan, Protocol, Way},
};

/// A packet that leaves the host does so at once.
const ESCAPE: Duration = Duration::from_millis(60);
/// Ports where few listen, tried in this order.
const PORTS: [u16; 6] = [4, 7009, 8998, 29_995, 80, 8080];
/// Users that the application may be, for where we ourselves are left alone.
const USERS: [u32; 4] = [1000, 12_345, 65_533, 0];

/// Tells which rule is to blame.
type Blame<'a> = &'a dyn Fn(Option<(ChainName, usize)>, Family) -> Option<String>;

/// What one family's connections need to know.
struct Place {
    family: Family,
    interface: String,
    /// This host's address at the pair.
    own: IpAddr,
    /// Somebody outside.
    far: IpAddr,
    /// A port of the workload whose connections are the sidecar's, and on which nobody listens.
    inbound: Option<u16>,
    /// A port of others whose connections are the sidecar's.
    outbound: Option<u16>,
    /// As whom.
    uid: u32,
}

/// Makes the connections of every family.
pub(super) fn check(options: &Options, plan: &Plan, blame: Blame<'_>, checks: &mut Vec<Check>) -> Result<(), Error> {
    let look = "verify needs NET_ADMIN, NET_RAW and the kernel's veth interfaces";
    let mut places = Vec::new();
    for family in plan.families {
        match (*family == Family::V6).then(address::no_ipv6).flatten() {
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

/// Addresses and ports that these options redirect; else why there are none.
fn place(options: &Options, plan: &Plan, family: Family) -> io::Result<Result<Place, String>> {
    let here: Vec<IpAddr> = address::all()?.into_iter().map(|(address, _)| address).collect();
    let listening: Vec<u16> = sockets::all()?.iter().filter(|open| open.listens()).map(|open| open.local.1).collect();
    let inner = inner_names(&options.include_interfaces);
    let included = options.include_inbound_cidrs.iter().chain(&options.include_outbound_cidrs);
    let mut addresses: Vec<IpAddr> = match family {
        // TEST-NET-1 to 3 (RFC 5737), and the network for benchmarks (RFC 2544).
        Family::V4 => [[192, 0, 2, 5], [198, 51, 100, 5], [203, 0, 113, 5], [198, 18, 0, 5]].map(IpAddr::from).to_vec(),
        // Documentation (RFC 3849, RFC 9637), and a unique local network (RFC 4193).
        Family::V6 => {
            ["2001:db8:6f72::5", "3fff:6f72::5", "fd6f:7574:7269::5"].iter().filter_map(|a| a.parse().ok()).collect()
        }
    };
    addresses
        .extend(included.filter(|net| family.has(net)).filter_map(|net| net.hosts().nth(3).or(net.hosts().next())));
    addresses.retain(|address| !here.contains(address));
    let ours = geteuid().as_raw();
    let uids: Vec<u32> = [ours].into_iter().chain(USERS).collect();
    let ports: Vec<u16> = PORTS
        .into_iter()
        .chain(options.include_inbound_ports.iter().chain(&options.include_outbound_ports).map(|range| range.first()))
        .chain([options.outbound_port])
        .collect();
    let own = match family {
        Family::V4 => IpAddr::from([192, 0, 2, 4]),
        Family::V6 => "2001:db8:6f72::4".parse().unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    };
    if here.contains(&own) {
        return Ok(Err(format!("the address {own} is in use here, which verify would borrow")));
    }
    for interface in inner {
        let arriving =
            |far: IpAddr, port: u16| Packet { interface: interface.clone(), ..arriving((far, 40_000), (own, port)) };
        let leaving = |far: IpAddr, port: u16, uid: u32| Packet {
            interface: interface.clone(),
            ..leaving((own, 40_000), (far, port), uid)
        };
        for far in &addresses {
            let inbound = ports.iter().copied().find(|port| {
                !listening.contains(port)
                    && plan.decide(&arriving(*far, *port), Way::Arriving).decision != Decision::Direct
            });
            let outbound = ports.iter().copied().find_map(|port| {
                let uid = uids.iter().copied().find(|uid| {
                    plan.decide(&leaving(*far, port, *uid), Way::Leaving).decision
                        == Decision::Redirected(options.outbound_port)
                })?;
                Some((port, uid))
            });
            // An address that serves both ways; the inclusions of one way need not hold those of the other.
            let enough = if options.include_inbound_cidrs.is_empty() == options.include_outbound_cidrs.is_empty() {
                inbound.is_some() && outbound.is_some()
            } else {
                inbound.is_some() || outbound.is_some()
            };
            if enough {
                let (outbound, uid) = outbound.map_or((None, ours), |(port, uid)| (Some(port), uid));
                return Ok(Ok(Place { family, interface, own, far: *far, inbound, outbound, uid }));
            }
        }
    }
    let named = |nets: &[ipnet::IpNet]| nets.is_empty() || nets.iter().any(|net| family.has(net));
    Ok(Err(if !named(&options.include_inbound_cidrs) || !named(&options.include_outbound_cidrs) {
        "the networks that are included are of the other family".to_owned()
    } else if options.include_interfaces.is_empty() {
        "no address was found that these options redirect".to_owned()
    } else {
        "--include-interfaces names only interfaces that verify cannot stand in for".to_owned()
    }))
}

fn arriving(from: (IpAddr, u16), to: (IpAddr, u16)) -> Packet {
    Packet {
        protocol: Protocol::Tcp,
        from: from.0,
        from_port: from.1,
        to: to.0,
        to_port: to.1,
        opening: true,
        invalid: false,
        reply: false,
        connection_mark: 0,
        mark: 0,
        uid: None,
        gid: None,
        interface: String::new(),
        from_this_host: false,
        to_this_host: true,
    }
}

fn leaving(from: (IpAddr, u16), to: (IpAddr, u16), uid: u32) -> Packet {
    Packet {
        uid: Some(uid),
        gid: Some(getegid().as_raw()),
        from_this_host: true,
        to_this_host: false,
        ..arriving(from, to)
    }
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
    let Some(_user) = Disguise::as_uid(place.uid) else {
        let uid = place.uid;
        return Ok(Check::skipped(name, format!("we may not make a socket of uid {uid}: that needs SETUID")));
    };
    let to = (place.far, port);
    let socket = dial(place, to)?;
    let from = (place.own, socket.local_addr()?.as_socket().map_or(0, |address| address.port()));
    let expected =
        plan.decide(&Packet { interface: place.interface.clone(), ..leaving(from, to, place.uid) }, Way::Leaving);
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
    let mut packet = leaving((place.own, 1), to, options.proxy.uid.unwrap_or(place.uid));
    packet.interface.clone_from(&place.interface);
    packet.gid = options.proxy.gid.or(packet.gid);
    packet.mark = options.proxy.mark.map_or(0, |mark| mark.value());
    let by = plan.decide(&packet, Way::Leaving).by;
    let detail = format!("a call to {what} did not leave this host: the sidecar would call itself");
    Ok(Check::failed(name, detail, blame(by, place.family)))
}

/// A question over UDP and one over TCP.
fn dns(plan: &Plan, place: &Place, port: u16, outside: &mut Outside, blame: Blame<'_>) -> io::Result<Check> {
    let name = format!("{}: the application's DNS questions reach port {port}", place.family);
    let to = (place.far, DNS_PORT);
    let Some(_user) = Disguise::as_uid(place.uid) else {
        return Ok(Check::skipped(name, "we may not make a socket of the application's user: that needs SETUID"));
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
        ..leaving((place.own, 1), to, place.uid)
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

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Listeners on the ports of the sidecar on which nobody listens yet.
struct StandIn {
    _listeners: Vec<Socket>,
}

impl StandIn {
    fn listen(options: &Options) -> io::Result<Self> {
        let transparent = options.mode == Mode::Tproxy;
        let mut listeners = Vec::new();
        let inbound = listener(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), options.inbound_port), transparent);
        match inbound {
            Ok(None) | Err(_) => {
                listeners.extend(listener(
                    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), options.inbound_port),
                    transparent,
                )?);
            }
            Ok(listener) => listeners.extend(listener),
        }
        for family in options.families() {
            let address = SocketAddr::new(loopback(*family), options.outbound_port);
            match listener(address, false) {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                other => listeners.extend(other?),
            }
        }
        Ok(Self { _listeners: listeners })
    }
}

/// `None` when somebody listens there.
fn listener(address: SocketAddr, transparent: bool) -> io::Result<Option<Socket>> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(SocketProtocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if transparent {
        // One of IPv6 is that for both (linux/net/ipv6/ipv6_sockglue.c: both set the same bit).
        socket.set_ip_transparent_v4(true)?;
    }
    match socket.bind(&address.into()).and_then(|()| socket.listen(16)) {
        Ok(()) => Ok(Some(socket)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whose sockets this thread makes, for as long as it lives.
struct Disguise {
    uid: Uid,
    gid: Gid,
}

impl Disguise {
    fn put_on(uid: Option<u32>, gid: Option<u32>) -> Option<Self> {
        let disguise = Self { uid: geteuid(), gid: getegid() };
        // Both calls give back what was before, and so does one that cannot succeed: only asking again tells.
        if let Some(gid) = gid {
            setfsgid(Gid::from_raw(gid));
            if setfsgid(Gid::from_raw(u32::MAX)).as_raw() != gid {
                return None;
            }
        }
        if let Some(uid) = uid {
            setfsuid(Uid::from_raw(uid));
            if setfsuid(Uid::from_raw(u32::MAX)).as_raw() != uid {
                return None;
            }
        }
        Some(disguise)
    }

    fn as_uid(uid: u32) -> Option<Self> {
        Self::put_on(Some(uid), None)
    }

    fn as_proxy(options: &Options) -> Option<Self> {
        Self::put_on(options.proxy.uid, if options.proxy.uid.is_none() { options.proxy.gid } else { None })
    }
}

impl Drop for Disguise {
    fn drop(&mut self) {
        setfsuid(self.uid);
        setfsgid(self.gid);
    }
}
