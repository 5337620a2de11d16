//! What the end of a connection says about the requests on it: those that were certainly not taken are sent again,
//! whatever their method; those that may have been, only if they may be repeated.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::Method;
use outrigger_e2e::{
    harness::{
        self, Mesh, Pod, Reply, Shop, Sidecar,
        client::body,
        pki::{Ca, Issued},
        script::{self, Act, Arrivals, Script},
        shop::{ORDERS, request, unhindered_orders},
    },
    pattern,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A client whose `orders.mesh` are two servers of HTTP/2 frames, with sidecars' mTLS or in the clear.
struct Frames {
    client: Pod,
    acts: Arc<Mutex<Vec<Act>>>,
    arrivals: Arrivals,
    at: std::net::SocketAddr,
    _sidecar: Sidecar,
    _scripts: [Script; 2],
    _pods: [Pod; 2],
    _mesh: Mesh,
}

impl Frames {
    async fn open(mtls: bool) -> Self {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        let (client, first, second) = (mesh.pod("client"), mesh.pod("first"), mesh.pod("second"));
        ca.issue(&client, &[], "1h");
        let (acts, arrivals) = (Arc::default(), Arrivals::default());
        let serve = |pod: &Pod, name| {
            if !mtls {
                return script::frames(pod, 8080, name, &acts, &arrivals);
            }
            let dir = ca.issue(pod, &[ORDERS], "1h");
            let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
            let identity = Issued { chain: read("cert.pem"), key: read("key.pem") };
            script::mesh_frames(pod, 8080, name, identity, &acts, &arrivals)
        };
        let scripts = [serve(&first, "first"), serve(&second, "second")];
        let settings = json!({
            "mtls": if mtls { "required" } else { "off" },
            "endpoints": { "static": [first.at4(8080), second.at4(8080)] },
        });
        let sidecar = Sidecar::start(&mesh, &client, unhindered_orders(settings)).await;
        let at = first.at4(8080);
        Self { client, acts, arrivals, at, _sidecar: sidecar, _scripts: scripts, _pods: [first, second], _mesh: mesh }
    }

    /// Sends one request of which the first server that gets it makes this.
    async fn send(&self, method: &Method, act: Act) -> (Reply, Vec<&'static str>) {
        *self.acts.lock().unwrap() = vec![act];
        let data = if method == Method::POST { Bytes::from(pattern::bytes(1_000)) } else { Bytes::new() };
        let reply = self.client.send(self.at, true, request(true, method, "/", body(data))).await;
        let arrivals = std::mem::take(&mut *self.arrivals.lock().unwrap());
        (reply, arrivals.into_iter().map(|(name, _)| name).collect())
    }
}

#[test]
fn a_stream_that_was_refused_or_left_behind_by_a_goaway_is_tried_elsewhere_whatever_the_method() {
    harness::run(async {
        for mtls in [false, true] {
            let frames = Frames::open(mtls).await;
            for (act, method) in [Act::Refuse, Act::GoAwayBefore]
                .into_iter()
                .flat_map(|act| [Method::POST, Method::GET, Method::POST].map(|method| (act, method)))
            {
                let (reply, arrivals) = frames.send(&method, act).await;
                let context = format!("mtls={mtls} {act:?} {method}: {arrivals:?} {}", reply.text());
                assert_eq!(reply.status, 200, "{context}");
                assert_eq!(arrivals.len(), 2, "{context}");
                assert_ne!(arrivals[0], arrivals[1], "{context}");
            }
        }
    });
}

#[test]
fn a_post_that_was_taken_and_then_lost_is_not_sent_twice() {
    harness::run(async {
        for mtls in [false, true] {
            let frames = Frames::open(mtls).await;
            for act in [Act::Reset, Act::Close, Act::GoAwayAfter] {
                let (reply, arrivals) = frames.send(&Method::POST, act).await;
                let context = format!("mtls={mtls} {act:?} POST: {arrivals:?} {}", reply.text());
                assert_eq!(arrivals.len(), 1, "{context}");
                let told = (reply.status.as_u16(), reply.header("outrigger-error"));
                assert_eq!(told, (502, "upstream_reset"), "{context}");
                assert!(reply.text().contains("orders.mesh at 10.77.0."), "{context}");
                // What may be repeated is, elsewhere.
                let (reply, arrivals) = frames.send(&Method::GET, act).await;
                let context = format!("mtls={mtls} {act:?} GET: {arrivals:?} {}", reply.text());
                assert_eq!((reply.status.as_u16(), arrivals.len()), (200, 2), "{context}");
                assert_ne!(arrivals[0], arrivals[1], "{context}");
            }
            assert_eq!(
                frames
                    .client
                    .metric("outrigger_retries_total", &[("service", ORDERS), ("reason", "upstream_reset")])
                    .await,
                3.0
            );
        }
    });
}

#[test]
fn a_stream_that_the_application_refused_or_lost_is_tried_elsewhere_as_if_its_sidecar_had() {
    harness::run(async {
        let mut shop = Shop::open(Mesh::new(), 2, 60, unhindered_orders(json!({}))).await;
        let (acts, arrivals) = (Arc::default(), Arrivals::default());
        let _scripts = [0, 1].map(|n: usize| {
            shop.replicas[n].origin.kill();
            script::frames(&shop.replicas[n].pod, 8080, ["first", "second"][n], &acts, &arrivals)
        });
        let both = |act| [(Method::POST, act), (Method::GET, act)];
        for (method, act) in [Act::Refuse, Act::GoAwayBefore, Act::Reset, Act::GoAwayAfter].into_iter().flat_map(both) {
            *acts.lock().unwrap() = vec![act];
            let data = if method == Method::POST { "x" } else { "" };
            let reply =
                shop.client.send(shop.replicas[0].pod.at4(8080), true, request(true, &method, "/", body(data))).await;
            let arrived = std::mem::take(&mut *arrivals.lock().unwrap());
            let again = method == Method::GET || matches!(act, Act::Refuse | Act::GoAwayBefore);
            let context = format!("{method} {act:?}: {arrived:?}: {}", reply.text());
            assert_eq!(arrived.len(), if again { 2 } else { 1 }, "{context}");
            let told = if again { (200, "") } else { (502, "application_reset") };
            assert_eq!((reply.status.as_u16(), reply.header("outrigger-error")), told, "{context}");
        }
    });
}

/// How a server of HTTP/1.1 ends the connection of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Without an answer.
    Closes,
    /// Without an answer, by a reset.
    Resets,
    /// After the answer, which does not announce it.
    ClosesAfter,
}

#[test]
fn over_http_1_a_connection_that_ends_says_by_when_it_ends_what_may_be_repeated() {
    harness::run(async {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        let (client, first, second) = (mesh.pod("client"), mesh.pod("first"), mesh.pod("second"));
        ca.issue(&client, &[], "1h");
        let end: Arc<Mutex<Option<End>>> = Arc::default();
        let arrivals: Arc<Mutex<Vec<&'static str>>> = Arc::default();
        let _scripts = [(&first, "first"), (&second, "second")].map(|(pod, name)| {
            let (end, arrivals) = (Arc::clone(&end), Arc::clone(&arrivals));
            script::connections(pod, 8080, move |mut stream| {
                let (end, arrivals) = (Arc::clone(&end), Arc::clone(&arrivals));
                async move {
                    let mut text = Vec::new();
                    while stream.read_buf(&mut text).await.is_ok_and(|n| n > 0) {
                        // A POST here has a body of one byte, "x".
                        let whole = if text.starts_with(b"POST") { &b"\r\n\r\nx"[..] } else { b"\r\n\r\n" };
                        if !text.ends_with(whole) {
                            continue;
                        }
                        text.clear();
                        arrivals.lock().unwrap().push(name);
                        let end = end.lock().unwrap().take();
                        if end == Some(End::Resets) {
                            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                        }
                        if matches!(end, Some(End::Closes | End::Resets)) {
                            return;
                        }
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                        if end == Some(End::ClosesAfter) {
                            return;
                        }
                    }
                }
            })
        });
        let settings = json!({ "mtls": "off", "endpoints": { "static": [first.at4(8080), second.at4(8080)] } });
        let _sidecar = Sidecar::start(&mesh, &client, unhindered_orders(settings)).await;
        let call = async |method: &Method, how: Option<End>| {
            *end.lock().unwrap() = how;
            let data = if method == Method::POST { "x" } else { "" };
            let reply = client.send(first.at4(8080), false, request(false, method, "/", body(data))).await;
            (reply, std::mem::take(&mut *arrivals.lock().unwrap()))
        };
        for (fresh, how) in [(true, End::Closes), (false, End::Resets), (false, End::Closes)] {
            if !fresh {
                // A pooled connection to each, so that the next requests reuse one.
                for _ in 0..8 {
                    call(&Method::GET, None).await;
                }
            }
            let (reply, arrived) = call(&Method::POST, Some(how)).await;
            let told = (reply.status.as_u16(), reply.header("outrigger-error"), arrived.len());
            assert_eq!(told, (502, "upstream_reset", 1), "{how:?} fresh={fresh}: {arrived:?} {}", reply.text());
            let (reply, arrived) = call(&Method::GET, Some(how)).await;
            assert_eq!((reply.status.as_u16(), arrived.len()), (200, 2), "{how:?} fresh={fresh}: {arrived:?}");
            assert_ne!(arrived[0], arrived[1], "{how:?} fresh={fresh}");
        }
        // The server ends each connection after its answer: no caller learns of it who may be asked again.
        for n in 0..100 {
            let (reply, arrived) = call(&Method::GET, Some(End::ClosesAfter)).await;
            assert_eq!((reply.status.as_u16(), arrived.len()), (200, 1), "{n}: {arrived:?} {}", reply.text());
        }
        // A request that crosses with the end of its connection cannot be known to be lost (RFC 9112 section 9.3.1), so
        // a POST is not sent again; most do not cross.
        let mut crossed = 0;
        for n in 0..100 {
            let (reply, arrived) = call(&Method::POST, Some(End::ClosesAfter)).await;
            let lost = reply.status == 502 && arrived.is_empty();
            assert!(lost || (reply.status == 200 && arrived.len() == 1), "{n}: {arrived:?} {}", reply.text());
            crossed += u32::from(lost);
        }
        assert!(crossed < 10, "{crossed} of 100");
    });
}
