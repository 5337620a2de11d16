//! A connection whose one half is closed and whose other is silent for longer than connection tracking remembers it.

use std::{
    io::{Read, Write},
    thread,
    time::Duration,
};

use crate::support::{APP, Namespace, PROXY, Pair, ROOT, Tools, transparent_listener};

/// Says a word when the caller has closed its half, and this long has passed.
fn listen_late(namespace: &Namespace, uid: u32, port: u16, silence: Duration) {
    let listener = namespace.run(uid, || transparent_listener(port));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                stream.write_all(b"hello\n").unwrap();
                let _ = stream.read_to_end(&mut Vec::new());
                thread::sleep(silence);
                let _ = stream.write_all(b"late\n");
            });
        }
    });
}

/// The late word over each kind of connection that our rules carry: the names of those over which it came.
fn survivors(tools: &Tools, options: &str, kernel_remembers: &str, silence: Duration) -> Vec<&'static str> {
    let Pair { pod, peer } = &Pair::without_sidecar();
    for (port, uid) in [(15001, PROXY), (15006, PROXY), (8081, APP)] {
        listen_late(pod, uid, port, silence);
    }
    tools.must(pod, &format!("install {options}"));
    pod.sh(kernel_remembers);
    let mut calls = vec![
        ("in", peer.dial(ROOT, None, "10.77.1.2", 8080)),
        ("in by IPv6", peer.dial(ROOT, None, "fd77:1::2", 8080)),
        ("out", pod.dial(APP, None, "10.77.1.1", 80)),
        ("out by IPv6", pod.dial(APP, None, "fd77:1::1", 80)),
    ];
    if options.contains("tproxy") {
        calls.push(("leg", pod.dial(PROXY, Some("10.77.1.1"), "10.77.1.2", 8081)));
        calls.push(("leg by IPv6", pod.dial(PROXY, Some("fd77:1::1"), "fd77:1::2", 8081)));
    }
    for (name, call) in &calls {
        assert_eq!(call.landed, "hello", "{name} with {}", tools.backend);
        call.half_close();
    }
    thread::sleep(silence);
    // A word that does not come the first time is sent again, in vain.
    let heard = |(name, mut call): (&'static str, crate::support::Call)| {
        (call.next_line(Duration::from_millis(1_500)).as_deref() == Some("late")).then_some(name)
    };
    thread::scope(|scope| {
        let waiting: Vec<_> = calls.into_iter().map(|call| scope.spawn(move || heard(call))).collect();
        waiting.into_iter().filter_map(|waiting| waiting.join().unwrap()).collect()
    })
}

/// With the kernel's memory cut down to one second.
#[test]
fn a_half_closed_connection_outlives_the_kernels_memory() {
    let short = "echo 1 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
    let silence = Duration::from_millis(2_500);
    thread::scope(|scope| {
        for mode in ["redirect", "tproxy"] {
            for tools in Tools::all() {
                scope.spawn(move || {
                    let options = format!("--mode {mode} --close-wait-timeout 1h");
                    let wanted: &[_] = match mode {
                        "redirect" => &["in", "in by IPv6", "out", "out by IPv6"],
                        _ => &["in", "in by IPv6", "out", "out by IPv6", "leg", "leg by IPv6"],
                    };
                    assert_eq!(survivors(&tools, &options, short, silence), wanted, "{} {mode}", tools.backend);
                });
            }
        }
        // Without the option what is translated, or marked, is lost: this test can fail.
        scope.spawn(move || {
            assert_eq!(survivors(&Tools::nft(), "--mode redirect", short, silence), [""; 0]);
        });
        scope.spawn(move || {
            // By TPROXY nothing is translated on the way in.
            assert_eq!(survivors(&Tools::nft(), "--mode tproxy", short, silence), ["in", "in by IPv6"]);
        });
    });
}

/// With the kernel's own 60 seconds.
#[test]
fn a_half_closed_connection_is_silent_for_61_seconds() {
    let (nft, silence) = (Tools::nft(), Duration::from_secs(61));
    let heard = survivors(&nft, "--close-wait-timeout 5m", "true", silence);
    assert_eq!(heard, ["in", "in by IPv6", "out", "out by IPv6"]);
}
