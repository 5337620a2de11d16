//! Random and truncated byte streams on every port: the sidecar stays up, stays small and still serves.

use std::{
    cell::Cell,
    io,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use fastrand::Rng;
use nix::sys::signal::Signal;
use outrigger_e2e::harness::{
    self, Mesh, Pair, Pod, Sidecar,
    pair::{ECHO, HTTP},
    pki::{Ca, Leaf, TestCa},
    tls,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Streams on each port.
const STREAMS: u32 = 10_000;
/// What a sidecar may take where it is so slow that all of [`STREAMS`] wait in it at once: 24 KiB for each. It is a tenth
/// of that otherwise.
const PEAK_KIB: u64 = STREAMS as u64 * 24;
/// At once.
const TOGETHER: usize = 32;

/// The seed of a test: a fixed one can be given to repeat a failure.
fn seed() -> u64 {
    let seed = std::env::var("OUTRIGGER_E2E_SEED").ok().map_or_else(|| fastrand::u64(..), |s| s.parse().unwrap());
    println!("OUTRIGGER_E2E_SEED={seed}");
    seed
}

/// A TLS 1.3 ClientHello as a sidecar sends it.
fn client_hello() -> Vec<u8> {
    let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty());
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![tls::H2.to_vec()];
    let name = rustls_pki_types::ServerName::try_from("orders.mesh").unwrap();
    let mut connection = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut out = Vec::new();
    connection.write_tls(&mut out).unwrap();
    out
}

/// What good clients send, to be broken.
fn seeds() -> Vec<Vec<u8>> {
    let mut h2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS; HEADERS of stream 1 (GET, http, /, authority "x"); DATA; PING; WINDOW_UPDATE; RST_STREAM; GOAWAY.
    h2.extend(b"\0\0\0\x04\0\0\0\0\0");
    h2.extend(b"\0\0\x06\x01\x04\0\0\0\x01\x82\x86\x84\x41\x01x");
    h2.extend(b"\0\0\x04\0\x01\0\0\0\x01data");
    h2.extend(b"\0\0\x08\x06\0\0\0\0\0pingping");
    h2.extend(b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\xff\xff");
    h2.extend(b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08");
    h2.extend(b"\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0\0");
    vec![
        b"GET / HTTP/1.1\r\nHost: orders4.mesh:8080\r\nAccept: */*\r\n\r\n".to_vec(),
        b"POST /sink HTTP/1.1\r\nHost: orders4.mesh:8080\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec(),
        b"POST /sink HTTP/1.1\r\nHost: orders4.mesh\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET".to_vec(),
        b"GET /upgrade HTTP/1.1\r\nHost: a.mesh\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x85".to_vec(),
        b"CONNECT orders4.mesh:8080 HTTP/1.1\r\nHost: orders4.mesh:8080\r\n\r\n".to_vec(),
        b"GET http://[::1/ HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n".to_vec(),
        b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        h2,
        client_hello(),
    ]
}

/// One stream: noise, or a good one that is cut, changed, doubled or followed by noise.
fn stream(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut noise = vec![0; rng.usize(..600)];
    rng.fill(&mut noise);
    if rng.u8(..5) == 0 {
        return noise;
    }
    let mut bytes = seeds[rng.usize(..seeds.len())].clone();
    for _ in 0..rng.usize(..4) {
        match rng.u8(..5) {
            0 => bytes.truncate(rng.usize(..=bytes.len())),
            1 if !bytes.is_empty() => {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            2 if !bytes.is_empty() => {
                let at = rng.usize(..bytes.len());
                bytes.remove(at);
            }
            3 => bytes.extend_from_within(..),
            _ => bytes.extend(&noise),
        }
    }
    bytes
}

/// What becomes of connections to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// They are taken, and some streams are answered.
    Open,
    /// They are taken, and each costs so much that in a crowd perhaps none is answered in time.
    Crowded,
    /// They are taken and reset at once, whatever comes.
    Shut,
}

/// Connects of [`STREAMS`] that may fail: a listener's queue may be full for a moment.
const FAILED: u32 = STREAMS / 100;

/// What became of an attack's streams.
#[derive(Debug, Default)]
struct Tally {
    next: Cell<u32>,
    /// Written to a connection that was made.
    delivered: Cell<u32>,
    /// Made and reset before anything could be written.
    reset: Cell<u32>,
    /// Connects that failed and were made again.
    failed: Cell<u32>,
    answered: Cell<u32>,
}

fn count(cell: &Cell<u32>) -> u32 {
    cell.replace(cell.get() + 1)
}

/// A connection, however often it takes; none where it was reset at once.
async fn persist(pod: &Pod, to: SocketAddr, tally: &Tally) -> Option<TcpStream> {
    loop {
        match pod.connect(to).await {
            Ok(stream) => return Some(stream),
            // A listener that is not there refuses; who resets has taken the connection.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                count(&tally.reset);
                return None;
            }
            Err(e) => {
                assert!(count(&tally.failed) < FAILED, "{to} does not take connections any more: {e}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Sends [`STREAMS`] streams to an address, each on a connection that was really made.
async fn attack(pod: &Rc<Pod>, to: SocketAddr, door: Door, seed: u64) {
    let (begun, seeds, tally) = (Instant::now(), Rc::new(seeds()), Rc::new(Tally::default()));
    let attackers: Vec<_> = (0..TOGETHER)
        .map(|_| {
            let (pod, seeds, tally) = (pod.clone(), seeds.clone(), tally.clone());
            tokio::task::spawn_local(async move {
                while tally.next.get() < STREAMS {
                    let n = count(&tally.next);
                    // Each stream has a seed of its own, so that one alone can be repeated.
                    let mut rng = Rng::with_seed(seed ^ u64::from(n));
                    let Some(mut stream_) = persist(&pod, to, &tally).await else { continue };
                    let bytes = stream(&mut rng, &seeds);
                    let (first, second) = bytes.split_at(rng.usize(..=bytes.len()));
                    // Whether it takes all of it is its own affair.
                    let _ = stream_.write_all(first).await;
                    count(&tally.delivered);
                    if rng.bool() {
                        tokio::task::yield_now().await;
                    }
                    let _ = stream_.write_all(second).await;
                    match rng.u8(..64) {
                        0..8 => socket2::SockRef::from(&stream_).set_linger(Some(Duration::ZERO)).unwrap(),
                        n @ 8..16 => {
                            // Few wait for long, so that some are answered however busy the machine is.
                            let wait = Duration::from_millis(if n == 8 { 1_000 } else { rng.u64(..40) });
                            if let Ok(Ok(1..)) = timeout(wait, stream_.read(&mut [0; 4096])).await {
                                count(&tally.answered);
                            }
                        }
                        16..24 => {
                            let _ = stream_.shutdown().await;
                            let _ = timeout(Duration::from_millis(20), stream_.read(&mut [0; 4096])).await;
                        }
                        _ => {}
                    }
                }
            })
        })
        .collect();
    for attacker in attackers {
        attacker.await.unwrap();
    }
    println!("{to} in {:?}: {tally:?}", begun.elapsed());
    assert_eq!(tally.delivered.get() + tally.reset.get(), STREAMS);
    // An attack that reaches nobody proves nothing.
    match door {
        Door::Open => assert!(tally.reset.get() <= FAILED && tally.answered.get() > 0, "{tally:?}"),
        Door::Crowded => assert!(tally.reset.get() <= FAILED, "{tally:?}"),
        Door::Shut => assert_eq!(tally.answered.get(), 0, "{tally:?}"),
    }
}

/// The sidecar is the same process, alive, small, and has let go of what was sent to it.
async fn is_well(pod: &Pod, sidecar: &mut Sidecar, descriptors_before: usize) {
    sidecar.assert_running();
    for path in ["/livez", "/readyz"] {
        let reply = pod.get((Ipv4Addr::LOCALHOST, 15020).into(), "x", path).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    }
    let metrics = pod.get((Ipv4Addr::LOCALHOST, 15020).into(), "x", "/metrics").await.text();
    for line in
        metrics.lines().filter(|l| ["errors_", "tls_fail", "connect_fail", "circuit_"].iter().any(|m| l.contains(m)))
    {
        println!("{line}");
    }
    let log = sidecar.log_text();
    assert!(!log.contains("panicked"), "a panic: {}", log.lines().find(|l| l.contains("panicked")).unwrap());
    let peak = sidecar.memory_kib("VmHWM");
    println!("peak {peak} KiB, {} descriptors", sidecar.descriptors());
    assert!(peak < PEAK_KIB, "{peak} KiB");
    harness::eventually("connections are let go", Duration::from_secs(20), || async {
        let now = sidecar.descriptors();
        if now <= descriptors_before + 60 {
            Ok(())
        } else {
            Err(format!("{now} descriptors, {descriptors_before} before"))
        }
    })
    .await;
}

async fn still_serves(pair: &Pair) {
    for family in pair.families() {
        assert_eq!(pair.client.get(family.at(HTTP), &family.host(), "/").await.text(), "server\n");
        let mut stream = pair.client.connect(family.at(ECHO)).await.unwrap();
        stream.write_all(b"\0hello").await.unwrap();
        timeout(Duration::from_secs(5), stream.read_exact(&mut [0; 6])).await.unwrap().unwrap();
    }
}

#[test]
fn the_inbound_port_survives() {
    harness::run(async {
        let seed = seed();
        for mode in ["strict", "permissive"] {
            let config = json!({ "inbound": { "mode": mode }, "log": { "level": "error" } });
            let mut pair = Pair::with(Mesh::alone(), json!({}), config).await;
            let before = pair.server_sidecar.descriptors();
            let outside = Rc::new(pair.mesh.pod("outside"));
            for (family, seed) in pair.families().into_iter().zip([seed, seed.wrapping_add(1)]) {
                attack(&outside, family.at(HTTP), Door::Open, seed).await;
            }
            is_well(&pair.server, &mut pair.server_sidecar, before).await;
            still_serves(&pair).await;
        }
    });
}

#[test]
fn no_connection_slips_past_a_strict_sidecar() {
    harness::run(async {
        let seed = seed();
        let config = json!({ "log": { "level": "error" } });
        let pair = Pair::with(Mesh::alone(), json!({}), config).await;
        let outside = Rc::new(pair.mesh.pod("outside"));
        // Few ports, so that each pair of addresses comes again while the kernel still remembers the last one.
        outside.run(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40400")).unwrap();
        outside.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")).unwrap();
        for family in pair.families() {
            let tally = Rc::new(Tally::default());
            let callers: Vec<_> = (0..TOGETHER)
                .map(|_| {
                    let (outside, tally) = (outside.clone(), tally.clone());
                    tokio::task::spawn_local(async move {
                        while tally.next.get() < STREAMS {
                            let mut rng = Rng::with_seed(seed ^ u64::from(count(&tally.next)));
                            let Some(mut stream) = persist(&outside, family.at(ECHO), &tally).await else { continue };
                            if stream.write_all(b"\0slip").await.is_ok() {
                                count(&tally.delivered);
                            }
                            if rng.bool() {
                                let wait = Duration::from_millis(rng.u64(1..20));
                                if let Ok(Ok(1..)) = timeout(wait, stream.read(&mut [0; 16])).await {
                                    count(&tally.answered);
                                }
                            }
                            if rng.bool() {
                                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                            }
                        }
                    })
                })
                .collect();
            for caller in callers {
                caller.await.unwrap();
            }
            println!("IPv{}: {tally:?}", family.version);
            assert!(tally.delivered.get() > STREAMS * 99 / 100, "{tally:?}");
            assert_eq!(tally.answered.get(), 0, "IPv{}: plaintext was answered by the application", family.version);
        }
    });
}

#[test]
fn the_outbound_port_survives() {
    harness::run(async {
        let seed = seed();
        let mut pair = Pair::with(Mesh::alone(), json!({ "log": { "level": "error" } }), json!({})).await;
        let (before, server_before) = (pair.client_sidecar.descriptors(), pair.server_sidecar.descriptors());
        let (to_mesh, server) = (pair.families()[0].at(HTTP), pair.families()[1].at(ECHO));
        let client = std::mem::replace(&mut pair.client, pair.mesh.pod("placeholder"));
        let client = Rc::new(client);
        attack(&client, to_mesh, Door::Open, seed).await;
        attack(&client, server, Door::Crowded, seed.wrapping_add(1)).await;
        pair.client = Rc::into_inner(client).unwrap();
        is_well(&pair.client, &mut pair.client_sidecar, before).await;
        is_well(&pair.server, &mut pair.server_sidecar, server_before).await;
        still_serves(&pair).await;
    });
}

#[test]
fn the_sidecars_own_ports_survive() {
    harness::run(async {
        let seed = seed();
        let mut pair = Pair::with(Mesh::alone(), json!({ "log": { "level": "error" } }), json!({})).await;
        let before = pair.client_sidecar.descriptors();
        let client = Rc::new(std::mem::replace(&mut pair.client, pair.mesh.pod("placeholder")));
        let outside = Rc::new(pair.mesh.pod("outside"));
        attack(&client, (Ipv4Addr::LOCALHOST, 15000).into(), Door::Open, seed).await;
        attack(&outside, client.at4(15020), Door::Open, seed).await;
        // Dialled as what they are not: connections that nothing redirected, and the outbound port from outside.
        attack(&client, (Ipv4Addr::LOCALHOST, 15001).into(), Door::Shut, seed).await;
        attack(&outside, client.at4(15006), Door::Shut, seed).await;
        pair.client = Rc::into_inner(client).unwrap();
        is_well(&pair.client, &mut pair.client_sidecar, before).await;
        still_serves(&pair).await;
    });
}

#[test]
fn noise_inside_of_mtls_is_survived() {
    harness::run(async {
        let seed = seed();
        let mesh = Mesh::alone();
        let ca = TestCa::new("test root");
        let (server, insider) = (mesh.pod("server"), mesh.pod("insider"));
        ca.install(&server, &Leaf::of("server", &["orders.mesh"]));
        let _origin = server.serve(&["--http", "8080", "--tcp-echo", "9000"]).await;
        let mut sidecar = Sidecar::start(&mesh, &server, json!({ "log": { "level": "error" } })).await;
        let before = sidecar.descriptors();
        let identity = Rc::new(ca.issue(&Leaf::of("insider", &[])));
        let (insider, seeds, begun) = (Rc::new(insider), Rc::new(seeds()), Instant::now());
        let tally = Rc::new(Tally::default());
        let insiders: Vec<_> = (0..TOGETHER)
            .map(|_| {
                let (insider, identity, seeds) = (insider.clone(), identity.clone(), seeds.clone());
                let (tally, to) = (tally.clone(), server.at4(8080));
                tokio::task::spawn_local(async move {
                    while tally.next.get() < STREAMS {
                        let mut rng = Rng::with_seed(seed ^ u64::from(count(&tally.next)));
                        let tcp = insider.connect(to).await.unwrap();
                        let alpn = if rng.u8(..4) == 0 { tls::TCP } else { tls::H2 };
                        let mut stream_ = tls::connect(tcp, Some(&identity), &[alpn]).await.unwrap();
                        let bytes = stream(&mut rng, &seeds);
                        if stream_.write_all(&bytes).await.is_ok() && stream_.flush().await.is_ok() {
                            count(&tally.delivered);
                        }
                        let wait = Duration::from_millis(10);
                        if rng.u8(..4) == 0
                            && let Ok(Ok(1..)) = timeout(wait, stream_.read(&mut [0; 4096])).await
                        {
                            count(&tally.answered);
                        }
                    }
                })
            })
            .collect();
        for insider in insiders {
            insider.await.unwrap();
        }
        println!("inside of mTLS in {:?}: {tally:?}", begun.elapsed());
        assert!(tally.delivered.get() > STREAMS * 99 / 100 && tally.answered.get() > 0, "{tally:?}");
        is_well(&server, &mut sidecar, before).await;
        sidecar.signal(Signal::SIGTERM);
        assert_eq!(sidecar.wait(Duration::from_secs(30)).await.code(), Some(0));
    });
}

#[test]
fn the_ca_survives() {
    harness::run(async {
        let seed = seed();
        let mesh = Mesh::alone();
        let ca = Ca::init(&mesh);
        let mut server = ca.serve().await;
        let outside = Rc::new(mesh.pod("outside"));
        attack(&outside, ca.pod.at4(15012), Door::Open, seed).await;
        server.assert_running();
        assert!(!server.log_text().contains("panicked"));
        let pod = mesh.pod("orders");
        let enrolment = json!({ "identity": ca.enrolment(&pod, &["orders.mesh"], "1h") });
        Sidecar::start(&mesh, &pod, enrolment).await;
    });
}
