//! Segments out of the window of a connection, and in the window of somebody else's.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{Namespace, PROXY, Pair, ROOT, Tools};

/// A segment out of the window of a redirected connection passes NAT untouched, and the application's port would answer
/// it with a reset. The pod's own counter of resets sent tells.
#[test]
fn a_stray_segment_is_answered_with_silence() {
    thread::scope(|scope| {
        for mode in ["redirect", "tproxy"] {
            for tools in Tools::all() {
                scope.spawn(move || stray(&tools, mode));
            }
        }
    });
}

fn stray(tools: &Tools, mode: &str) {
    let Pair { pod, peer } = &Pair::new();
    let resets = || {
        let text = pod.sh("cat /proc/thread-self/net/snmp");
        let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let index = names.split(' ').position(|name| name == "OutRsts").unwrap();
        values.split(' ').nth(index).unwrap().parse::<u64>().unwrap()
    };
    tools.must(pod, &format!("install --mode {mode}"));
    let mut call = peer.dial(ROOT, None, "10.77.1.2", 8080);
    assert_eq!(call.landed, "inbound 10.77.1.2:8080 from 10.77.1.1");
    let before = resets();
    send_stray(peer, call.local_port());
    assert!(call.is_alive());
    assert_eq!(resets(), before, "the pod has reset the stray segment's connection");
    if mode == "tproxy" {
        // The socket that has the connection is found by its addresses, and knows what is stray.
        return;
    }
    // The same without that rule, to know that this test can fail.
    tools.must(pod, &format!("install --mode {mode} --drop-invalid false"));
    send_stray(peer, call.local_port());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(3);
    while resets() == before && std::time::Instant::now() < deadline {
        thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(resets() > before, "without the rule nothing was reset either: the segment was not stray");
}

/// ACKs all over the sequence space, from 10.77.1.1:`port` to 10.77.1.2:8080. One would do, but whether it lies before
/// the window (then connection tracking lets it be) or beyond depends on the connection's random start.
fn send_stray(peer: &Namespace, port: u16) {
    peer.run(ROOT, || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
        let to: std::net::SocketAddr = "10.77.1.2:0".parse().unwrap();
        for step in 0..64_u32 {
            let (sequence, acknowledged) = ((step % 8) << 29, (step / 8) << 29);
            socket.send_to(&segment(port, sequence, acknowledged, b""), &to.into()).unwrap();
        }
    });
}

/// From 10.77.1.1:`port` to 10.77.1.2:8080.
fn segment(port: u16, sequence: u32, acknowledged: u32, data: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(port.to_be_bytes());
    segment.extend(8080_u16.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([5 << 4, 0x18, 0xff, 0xff, 0, 0, 0, 0]); // header length, PSH ACK, window, checksum, urgent
    segment.extend(data);
    let pseudo = [10, 77, 1, 1, 10, 77, 1, 2, 0, 6, 0, u8::try_from(segment.len()).unwrap()];
    let mut words = pseudo.iter().chain(&segment).copied().collect::<Vec<u8>>();
    words.resize(words.len().next_multiple_of(2), 0);
    let mut sum: u32 = words.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    segment[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    segment
}

/// In TPROXY mode the sidecar's leg bears the client's address. The client that sends from the leg's port, in its window,
/// must not be read by the application as if the sidecar had said it.
#[test]
fn a_client_cannot_speak_into_the_sidecars_leg() {
    for tools in Tools::all() {
        let Pair { pod, peer } = &Pair::new();
        tools.must(pod, "install --mode tproxy");
        // The sequence numbers are on lo for everybody to see who may.
        let mut watch = pod.run(ROOT, || {
            Command::new("tcpdump")
                .args(["-i", "lo", "-n", "-S", "-l", "-c", "2", "tcp port 8080"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("tcpdump: apt-get install tcpdump")
        });
        let mut told = BufReader::new(watch.stderr.take().unwrap()).lines();
        assert!(told.any(|line| line.unwrap().contains("listening on")), "tcpdump did not begin");
        let leg = pod.dial(PROXY, Some("10.77.1.1"), "10.77.1.2", 8080);
        let greeting = "direct 8080 from 10.77.1.1";
        assert_eq!(leg.landed, greeting, "{}", tools.backend);
        let seen: Vec<String> = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
        watch.wait().unwrap();
        let [client, application] = [0, 1].map(|at| {
            let number = seen[at].split("seq ").nth(1).unwrap().split(|c: char| !c.is_ascii_digit()).next().unwrap();
            number.parse::<u32>().unwrap().wrapping_add(1)
        });
        let read = application.wrapping_add(u32::try_from(greeting.len() + 1).unwrap());
        let port = leg.local_port();
        let speak = || {
            peer.run(ROOT, || {
                let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
                let to: std::net::SocketAddr = "10.77.1.2:0".parse().unwrap();
                socket.send_to(&segment(port, client, read, b"ping\n"), &to.into()).unwrap();
            });
        };
        // The leg would not read an answer to what it never said: the application's socket tells.
        let is_read_within = |time: Duration| {
            let deadline = Instant::now() + time;
            loop {
                let said = pod.sh("ss -tniH sport = :8080").contains("bytes_received:5");
                if said || Instant::now() > deadline {
                    return said;
                }
                thread::sleep(Duration::from_millis(20));
            }
        };
        speak();
        assert!(!is_read_within(Duration::from_millis(500)), "{}: the application was spoken to", tools.backend);
        // The same without our rules there, to know that this test can fail.
        match tools.backend {
            "nft" => _ = pod.sh("nft flush chain inet outrigger transparent"),
            _ => tools.sh(pod, "iptables -t mangle -F OUTRIGGER_TRANSPARENT"),
        }
        speak();
        assert!(is_read_within(Duration::from_secs(3)), "{}: it cannot be spoken to at all", tools.backend);
    }
}
