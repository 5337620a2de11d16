//! Segments out of the window of a connection.

use std::thread;

use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{Namespace, Pair, ROOT, Tools};

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
            socket.send_to(&ack_segment(port, sequence, acknowledged), &to.into()).unwrap();
        }
    });
}

fn ack_segment(port: u16, sequence: u32, acknowledged: u32) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(port.to_be_bytes());
    segment.extend(8080_u16.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([5 << 4, 0x10, 0xff, 0xff, 0, 0, 0, 0]); // header length, ACK, window, checksum, urgent
    let pseudo = [10, 77, 1, 1, 10, 77, 1, 2, 0, 6, 0, 20];
    let words = pseudo.iter().chain(&segment).copied().collect::<Vec<u8>>();
    let mut sum: u32 = words.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    segment[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    segment
}
