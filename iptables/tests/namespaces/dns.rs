//! DNS questions, over UDP and TCP: captured for the application, let through for the sidecar, and told apart by zones
//! when the two use the same source port one after the other.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::support::{APP, Namespace, PROXY, Pair, ROOT, Tools};

const PATIENCE: Duration = Duration::from_millis(800);

/// Answers every question, over UDP and TCP, with this word.
fn answer(namespace: &Namespace, uid: u32, address: &'static str, port: u16, word: &'static str) {
    let at = SocketAddr::new(address.parse().unwrap(), port);
    let (udp, tcp) = namespace.run(uid, || (UdpSocket::bind(at).unwrap(), std::net::TcpListener::bind(at).unwrap()));
    thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((_, from)) = udp.recv_from(&mut bytes) {
            let _ = udp.send_to(word.as_bytes(), from);
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let _ = stream.write_all(word.as_bytes());
        }
    });
}

/// Tries until the port is free: a program that another test starts holds on to our sockets between its fork and its exec.
fn once_free<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match attempt() {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
                    && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(5));
            }
            tried => return tried,
        }
    }
}

/// The word, or why there is none; from this source port, 0 for any.
fn ask_udp(pod: &Namespace, uid: u32, to: &str, port: u16) -> String {
    let to = SocketAddr::new(to.parse().unwrap(), 53);
    let local: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0; 16].into() };
    pod.run(uid, || {
        let socket = once_free(|| UdpSocket::bind((local, port))).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(b"question", to).unwrap();
        let mut bytes = [0; 512];
        match socket.recv_from(&mut bytes) {
            Ok((length, from)) if from == to => String::from_utf8_lossy(&bytes[..length]).into_owned(),
            Ok((_, from)) => format!("an answer from {from}"),
            Err(error) => format!("error: {:?}", error.kind()),
        }
    })
}

fn ask_tcp(pod: &Namespace, uid: u32, to: &str, port: u16) -> String {
    let to = SocketAddr::new(to.parse().unwrap(), 53);
    let local: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0; 16].into() };
    let ask = || -> io::Result<String> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        // No TIME_WAIT: the next one may have the port at once.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.bind(&SocketAddr::new(local, port).into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut word = String::new();
        stream.read_to_string(&mut word)?;
        Ok(word)
    };
    pod.run(uid, || once_free(ask)).unwrap_or_else(|error| format!("error: {:?}", error.kind()))
}

#[test]
fn questions_reach_whom_they_should_over_udp_and_tcp() {
    thread::scope(|scope| {
        for (tools, mode) in Tools::all().into_iter().zip(["redirect", "redirect", "tproxy"]) {
            scope.spawn(move || journeys(&tools, mode));
        }
    });
}

fn journeys(tools: &Tools, mode: &str) {
    let Pair { pod, peer } = &Pair::new();
    for loopback in ["127.0.0.1", "::1"] {
        answer(pod, PROXY, loopback, 15053, "captured");
    }
    for address in ["10.77.1.1", "fd77:1::1", "192.0.2.1", "2001:db8::1"] {
        answer(peer, ROOT, address, 53, "upstream");
    }
    for to in ["10.77.1.1", "fd77:1::1"] {
        // An interface that has just come up misses the first of its neighbours' solicitations.
        let deadline = Instant::now() + Duration::from_secs(10);
        while ask_udp(pod, APP, to, 0) != "upstream" {
            assert!(Instant::now() < deadline, "{to} does not answer at all");
        }
    }
    tools.must(
        pod,
        &format!(
            "install --mode {mode} --dns-port 15053 --exclude-outbound-cidrs 192.0.2.0/24,2001:db8::/32 --exclude-uids 7"
        ),
    );
    for (to, excluded) in [("10.77.1.1", "192.0.2.1"), ("fd77:1::1", "2001:db8::1")] {
        for (name, ask) in [("UDP", ask_udp as fn(&Namespace, u32, &str, u16) -> String), ("TCP", ask_tcp)] {
            let context = format!("{name} to {to} with {}", tools.backend);
            assert_eq!(ask(pod, APP, to, 0), "captured", "{context}");
            assert_eq!(ask(pod, PROXY, to, 0), "upstream", "{context}");
            assert_eq!(ask(pod, 7, to, 0), "upstream", "{context}: an excluded user");
            assert_eq!(ask(pod, APP, excluded, 0), "upstream", "{context}: an excluded network");
            // The same source port, by turns.
            let port = if name == "UDP" { 40_000 } else { 40_001 };
            for _ in 0..2 {
                assert_eq!(ask(pod, APP, to, port), "captured", "{context}: a reused source port");
                assert_eq!(ask(pod, PROXY, to, port), "upstream", "{context}: a reused source port");
            }
        }
    }
    if tools.backend == "nft" {
        // Without the zones the sidecar's question finds the application's translation: this test can fail.
        pod.sh("nft flush chain inet outrigger zones_out; nft flush chain inet outrigger zones_in");
        assert_eq!(ask_udp(pod, APP, "10.77.1.1", 41_000), "captured");
        assert_ne!(ask_udp(pod, PROXY, "10.77.1.1", 41_000), "upstream");
    }
}

/// A resolver as the workload: the sidecar's leg to it bears the client's address.
#[test]
fn a_transparent_leg_to_a_workload_that_serves_dns_connects() {
    for tools in Tools::all() {
        let Pair { pod, peer: _ } = &Pair::new();
        pod.listen(APP, 53, "direct");
        tools.must(pod, "install --mode tproxy --dns-port 15053");
        for (client, own) in [("10.77.1.1", "10.77.1.2"), ("fd77:1::1", "fd77:1::2")] {
            let mut leg = pod.dial(PROXY, Some(client), own, 53);
            assert_eq!(leg.landed, format!("direct 53 from {client}"), "{}", tools.backend);
            assert!(leg.is_alive(), "{}", tools.backend);
        }
    }
}

#[test]
fn without_the_option_questions_are_left_alone() {
    let Pair { pod, peer } = &Pair::new();
    answer(peer, ROOT, "10.77.1.1", 53, "upstream");
    Tools::nft().must(pod, "install");
    assert_eq!(ask_udp(pod, APP, "10.77.1.1", 0), "upstream");
}
