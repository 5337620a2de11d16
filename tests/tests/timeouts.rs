//! Every timeout: what ends, after how long, and in which words.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use outrigger_e2e::{
    harness::{
        self, Mesh, Pair, Reply, Shop,
        client::{Body, body},
        pair::{ECHO, FIRST, HTTP, SCRIPT},
        script,
        shop::{ORDERS, orders, request, unhindered_orders},
    },
    workload::grpc::FrameBody,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    time::{sleep, timeout},
};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn ask(h2: bool, method: &str, path: &str, data: Body) -> Request<Body> {
    request(h2, &method.parse().unwrap(), path, data)
}

/// What came, and how long it took.
async fn timed<T>(call: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    let reply = timeout(Duration::from_secs(20), call).await.expect("an answer within 20 s");
    (reply, begun.elapsed())
}

/// Panics unless the reply is the sidecar's own, of this status and reason, says all of `words`, and took at least
/// `least` and not much longer.
fn assert_refused(reply: &(Reply, Duration), status: u16, reason: &str, words: &[&str], least: Duration) {
    let (reply, took) = reply;
    let text = reply.text();
    assert_eq!((reply.status.as_u16(), reply.header("outrigger-error")), (status, reason), "{text}");
    assert!(text.starts_with("outrigger: ") && text.contains("look at: "), "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    let retry_after = if status == 503 { "1" } else { "" };
    assert_eq!(reply.header("retry-after"), retry_after, "{text}");
    assert!((least..least + ms(1_500)).contains(took), "{took:?}, not {least:?} and a little: {text}");
}

#[test]
fn a_connect_that_nobody_answers_ends_at_its_timeout() {
    harness::run(async {
        let once = json!({ "timeouts": { "connect": "700ms" }, "retry": { "attempts": 0 } });
        let mut config = orders(once.clone());
        let mesh = Mesh::new();
        // Takes connections and says nothing: the handshake counts, too.
        let mute = mesh.pod("mute");
        let _mute = script::connections(&mute, 8080, |stream| async move {
            sleep(Duration::from_secs(60)).await;
            drop(stream);
        });
        let mut service = json!({ "name": "mute.mesh", "port": 8080, "endpoints": { "static": [mute.at4(8080)] } });
        service.as_object_mut().unwrap().extend(once.as_object().unwrap().clone());
        config["services"].as_array_mut().unwrap().push(service);
        let shop = Shop::open(mesh, 1, 5, config).await;
        let replica = shop.replicas[0].pod.at4(8080);
        shop.replicas[0].pod.black_hole();

        for (h2, method) in [(false, "GET"), (true, "POST")] {
            let call = timed(shop.client.send(replica, h2, ask(h2, method, "/", body("")))).await;
            let address = replica.to_string();
            let words = ["orders.mesh", &address, "within 700ms (timeouts.connect)", "NetworkPolicy"];
            assert_refused(&call, 503, "connect_timeout", &words, ms(700));
        }
        let call = timed(shop.client.get(mute.at4(8080), "mute.mesh:8080", "/")).await;
        assert_refused(&call, 503, "connect_timeout", &["mute.mesh", "within 700ms (timeouts.connect)"], ms(700));

        // Bytes have no words: their connection is reset.
        let mut opaque = shop.client.connect(replica).await.unwrap();
        let begun = Instant::now();
        opaque.write_all(b"\x01not HTTP").await.unwrap();
        let ended = timeout(Duration::from_secs(5), opaque.read_u8()).await.expect("an end within 5 s").unwrap_err();
        assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
        assert!((ms(700)..ms(2_200)).contains(&begun.elapsed()), "{:?}", begun.elapsed());

        let count = |name, labels| shop.client.metric(name, labels);
        let timed_out = [("service", ORDERS), ("reason", "connect_timeout")];
        assert_eq!(count("outrigger_connect_failures_total", &timed_out).await, 3.0);
        let told = [("direction", "outbound"), ("reason", "connect_timeout")];
        assert_eq!(count("outrigger_errors_total", &told).await, 4.0);

        shop.replicas[0].pod.heal();
        harness::eventually("the replica is called again", Duration::from_secs(5), || async {
            let reply = shop.get("/").await;
            if reply.status == 200 { Ok(()) } else { Err(reply.text()) }
        })
        .await;
    });
}

#[test]
fn a_request_without_an_answer_in_time_gets_504() {
    harness::run(async {
        let shop = Shop::open(Mesh::new(), 1, 5, orders(json!({ "timeouts": { "request": "600ms" } }))).await;
        let replica = shop.replicas[0].pod.at4(8080);
        for (n, (h2, method)) in
            [(false, "GET"), (true, "GET"), (false, "POST"), (true, "POST")].into_iter().enumerate()
        {
            let call = timed(shop.client.send(replica, h2, ask(h2, method, "/delay/3000", body("x")))).await;
            let words = ["orders.mesh", "within 600ms", "the service's timeouts"];
            assert_refused(&call, 504, "request_timeout", &words, ms(600));
            harness::eventually("the application learns of it", Duration::from_secs(2), || async {
                let cancelled = shop.replicas[0].ask("/cancelled").await.text();
                if cancelled.trim() == (n + 1).to_string() { Ok(()) } else { Err(cancelled) }
            })
            .await;
        }
        assert_eq!(shop.count().await, 4, "none was sent twice");
        let told = [("direction", "outbound"), ("reason", "request_timeout")];
        assert_eq!(shop.client.metric("outrigger_errors_total", &told).await, 4.0);
        // It is a limit for the head: a long answer is not cut.
        let (mut client, _cut) = shop.client.http(replica, false).await;
        let mut endless = client.send(ask(false, "GET", "/endless", body(""))).await.unwrap();
        let begun = Instant::now();
        while begun.elapsed() < ms(1_500) {
            endless.body_mut().frame().await.expect("the body goes on").unwrap();
        }
        // And an answer in time is not touched.
        assert_eq!(shop.get("/delay/200").await.text(), "orders1\n");
    });
}

#[test]
fn a_try_without_an_answer_in_time_goes_to_another_endpoint() {
    harness::run(async {
        let settings = json!({
            "timeouts": { "backendRequest": "400ms" },
            // Nothing but the retry may keep the frozen replica away from the callers.
            "outlier_detection": { "consecutive_5xx": 0, "consecutive_local_origin_failure": 0 },
            "retry": { "budget_floor": 100 },
        });
        let shop = Shop::open(Mesh::new(), 2, 5, orders(settings)).await;
        let replica = shop.replicas[0].pod.at4(8080);
        let retried = async || {
            let labels = [("service", ORDERS), ("reason", "try_timeout")];
            shop.client.metric("outrigger_retries_total", &labels).await
        };
        // Frozen, not dead: the kernel takes connections for it, and no answer comes.
        shop.replicas[0].origin.signal(Signal::SIGSTOP);
        let mut slow = 0.0;
        for _ in 0..200 {
            let (reply, took) = timed(shop.get("/")).await;
            assert_eq!(reply.text(), "orders2\n");
            assert!(took < ms(1_400), "one try more at most: {took:?}");
            slow += f64::from(took >= ms(400));
            if slow >= 3.0 {
                break;
            }
        }
        assert!(slow >= 1.0, "the frozen replica was never tried");
        // On a busy machine the other one may be late as well, once.
        assert!((1.0..=2.0 * slow).contains(&retried().await), "each retry is one slow answer");

        shop.replicas[1].origin.signal(Signal::SIGSTOP);
        let call = timed(shop.client.send(replica, false, ask(false, "GET", "/", body("")))).await;
        // The first try and two retries, with at most 25 ms and 75 ms between them.
        assert_refused(&call, 504, "try_timeout", &["orders.mesh at 10.77.0.", "within 400ms"], ms(1_200));
        // A POST may have been processed.
        let before = retried().await;
        let call = timed(shop.client.send(replica, false, ask(false, "POST", "/", body("x")))).await;
        assert_refused(&call, 504, "try_timeout", &["orders.mesh at 10.77.0.", "within 400ms"], ms(400));
        assert!(call.1 < ms(1_100), "tried once: {:?}", call.1);
        assert_eq!(retried().await, before);
        for replica in &shop.replicas {
            replica.origin.signal(Signal::SIGCONT);
        }
    });
}

#[test]
fn a_new_try_is_not_idle_since_the_last_one() {
    harness::run(async {
        let settings = json!({ "timeouts": { "idle": "1300ms", "backendRequest": "1s" } });
        let shop = Shop::open(Mesh::new(), 2, 5, unhindered_orders(settings)).await;
        shop.replicas[0].origin.signal(Signal::SIGSTOP);
        // The head of the second try moves at 1 s, and its answer comes 500 ms later.
        for _ in 0..20 {
            let (reply, took) = timed(shop.get("/delay/500")).await;
            assert_eq!(reply.text(), "orders2\n", "after {took:?}");
            if took >= ms(1_000) {
                return;
            }
        }
        panic!("the frozen replica was never tried");
    });
}

#[test]
fn a_request_on_which_nothing_moves_ends_at_its_idle_timeout() {
    harness::run(async {
        let shop = Shop::open(Mesh::new(), 1, 5, orders(json!({ "timeouts": { "idle": "800ms" } }))).await;
        let replica = shop.replicas[0].pod.at4(8080);
        for h2 in [false, true] {
            let call = timed(shop.client.send(replica, h2, ask(h2, "GET", "/delay/4000", body("")))).await;
            let words = ["orders.mesh", "no byte", "800ms (timeouts.idle)"];
            assert_refused(&call, 504, "idle_timeout", &words, ms(800));

            // An answer that has begun cannot be taken back: it is cut, and not made to look complete.
            let (sender, receiver) = mpsc::channel(1);
            sender.send(Ok(Frame::data(Bytes::from_static(b"first")))).await.unwrap();
            let (mut client, _cut) = shop.client.http(replica, h2).await;
            let post = ask(h2, "POST", "/echo", FrameBody::new(receiver).boxed_unsync());
            let mut answer = client.send(post).await.unwrap();
            assert_eq!(answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "first");
            let (rest, took) = timed(answer.body_mut().frame()).await;
            assert!(matches!(rest, Some(Err(_))), "h2={h2}: {rest:?}");
            // What is echoed may have come a little before we looked.
            assert!((ms(750)..ms(2_500)).contains(&took), "h2={h2}: {took:?}");

            // As long as anything moves in either direction, nothing ends: up ...
            let (sender, receiver) = mpsc::channel(1);
            let feed = async {
                for _ in 0..6 {
                    sleep(ms(250)).await;
                    sender.send(Ok(Frame::data(Bytes::from_static(b"x")))).await.unwrap();
                }
                drop(sender);
            };
            let sink = ask(h2, "PUT", "/sink", FrameBody::new(receiver).boxed_unsync());
            let (sunk, ()) = tokio::join!(shop.client.send(replica, h2, sink), feed);
            assert_eq!((sunk.status.as_u16(), sunk.text().contains("\"length\":6")), (200, true), "{}", sunk.text());
            // ... and down.
            let (mut client, _cut) = shop.client.http(replica, h2).await;
            let mut endless = client.send(ask(h2, "GET", "/endless", body(""))).await.unwrap();
            let begun = Instant::now();
            while begun.elapsed() < ms(1_500) {
                endless.body_mut().frame().await.expect("the body goes on").unwrap();
            }
        }
        // A caller that stalls its own upload is told, too.
        let (_open, receiver) = mpsc::channel(1);
        let stalled = ask(false, "PUT", "/sink", FrameBody::new(receiver).boxed_unsync());
        let call = timed(shop.client.send(replica, false, stalled)).await;
        assert_refused(&call, 504, "idle_timeout", &["no byte", "800ms (timeouts.idle)"], ms(800));
        let told = [("direction", "outbound"), ("reason", "idle_timeout")];
        assert_eq!(shop.client.metric("outrigger_errors_total", &told).await, 3.0);
    });
}

#[test]
fn a_caller_that_takes_nothing_holds_a_request_for_no_longer_than_the_idle_timeout() {
    harness::run(async {
        let shop = Shop::open(Mesh::new(), 1, 5, orders(json!({ "timeouts": { "idle": "800ms" } }))).await;
        let replica = shop.replicas[0].pod.at4(8080);
        let (out, inn) = ([("direction", "outbound")], [("direction", "inbound")]);
        for h2 in [false, true] {
            let (mut client, _cut) = shop.client.http(replica, h2).await;
            let mut answer = client.send(ask(h2, "GET", "/bytes/50000000", body(""))).await.unwrap();
            answer.body_mut().frame().await.unwrap().unwrap();
            shop.client.until_metric("outrigger_requests_in_flight", &out, 1.0).await;
            // Its connection stays; over HTTP/2 it even answers pings, and only the stream's window is used up.
            let (_, took) = timed(shop.client.until_metric("outrigger_requests_in_flight", &out, 0.0)).await;
            assert!(took < ms(6_000), "h2={h2}: {took:?}");
            shop.replicas[0].pod.until_metric("outrigger_requests_in_flight", &inn, 0.0).await;
            drop(answer);
        }
    });
}

#[test]
fn idle_connections_are_the_callers_to_keep_and_the_pools_to_close() {
    harness::run(async {
        let mesh = Mesh::new();
        let plain = mesh.pod("plain");
        let (events, mut seen) = mpsc::unbounded_channel();
        let begun = Instant::now();
        // An HTTP/1.1 server of an endpoint without a sidecar that never closes by itself, and tells what it sees.
        let _server = script::connections(&plain, 8080, move |mut stream| {
            let events = events.clone();
            async move {
                events.send(("opened", begun.elapsed())).unwrap();
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    events.send(("asked", begun.elapsed())).unwrap();
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
                events.send(("closed", begun.elapsed())).unwrap();
            }
        });
        let config = json!({ "workers": 1, "services": [{
            "name": "plain.mesh", "port": 8080, "mtls": "off", "timeouts": { "idle": "300ms" },
            "endpoints": { "static": [plain.at4(8080)] },
        }]});
        let shop = Shop::open(mesh, 1, 5, config).await;
        let (mut client, _cut) = shop.client.http(plain.at4(8080), false).await;
        let mut get = async || {
            let request = Request::get("/").header("host", "plain.mesh:8080").body(body("")).unwrap();
            let reply = Reply::read(client.send(request).await.expect("the workload's connection is kept")).await;
            assert_eq!(reply.unwrap().text(), "ok");
        };
        get().await;
        // timeouts.idle is of a request: between requests it ends nothing, on either side.
        sleep(ms(1_000)).await;
        get().await;
        let mut next = async || timeout(Duration::from_secs(8), seen.recv()).await.expect("within 8 s").unwrap();
        assert_eq!(next().await.0, "opened");
        assert_eq!(next().await.0, "asked");
        let (event, last) = next().await;
        assert_eq!(event, "asked", "the pooled connection was used again");
        // 3 s without use, and it is looked for every 1.5 s.
        let (event, closed) = next().await;
        assert_eq!(event, "closed");
        let idle = closed - last;
        assert!((ms(2_900)..ms(5_500)).contains(&idle), "closed after {idle:?}");
        get().await;
        assert_eq!((next().await.0, next().await.0), ("opened", "asked"));
    });
}

#[test]
fn a_silent_opaque_connection_ends_at_tcp_idle_and_only_where_it_is_set() {
    harness::run(async {
        // Of the two names of the echo one has the limit.
        let limit = json!({ "services": [
            { "name": "echo4.mesh", "port": ECHO, "timeouts": { "tcpIdle": "700ms" } },
            { "name": "echo6.mesh", "port": ECHO },
            { "name": "script4.mesh", "port": SCRIPT }, { "name": "script6.mesh", "port": SCRIPT },
            { "name": "first4.mesh", "port": FIRST }, { "name": "first6.mesh", "port": FIRST },
            { "name": "orders4.mesh", "port": HTTP }, { "name": "orders6.mesh", "port": HTTP },
        ]});
        let pair = Pair::with(Mesh::new(), limit, json!({})).await;
        let mut limited = pair.client.connect(pair.server.at4(ECHO)).await.unwrap();
        let mut unlimited = pair.client.connect(pair.server.at6(ECHO)).await.unwrap();
        unlimited.write_all(b"u").await.unwrap();
        assert_eq!(unlimited.read_u8().await.unwrap(), b'u');
        for _ in 0..7 {
            limited.write_all(b"x").await.unwrap();
            assert_eq!(limited.read_u8().await.expect("it moves, so it stays"), b'x');
            sleep(ms(200)).await;
        }
        let begun = Instant::now();
        let ended = timeout(Duration::from_secs(5), limited.read_u8()).await.expect("silence ends it").unwrap_err();
        assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset, "not to be taken for a finished one");
        // 200 ms of the silence had passed.
        assert!((ms(350)..ms(1_900)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        let told = [("direction", "outbound"), ("reason", "idle_timeout")];
        assert_eq!(pair.client.metric("outrigger_errors_total", &told).await, 1.0);
        unlimited.write_all(b"u").await.unwrap();
        assert_eq!(unlimited.read_u8().await.expect("a silent client is never closed for it"), b'u');
    });
}

fn upgrade(path: &str) -> Request<Body> {
    let request = Request::get(path).header("host", "orders.mesh:8080").header("connection", "upgrade");
    request.header("upgrade", "bytes").body(body("")).unwrap()
}

#[test]
fn a_silent_upgraded_connection_ends_at_tcp_idle() {
    harness::run(async {
        let shop = Shop::open(Mesh::new(), 1, 5, orders(json!({ "timeouts": { "tcpIdle": "700ms" } }))).await;
        let (mut sender, _cut) = shop.client.http(shop.replicas[0].pod.at4(8080), false).await;
        let mut answer = sender.send(upgrade("/upgrade")).await.unwrap();
        assert_eq!(answer.status(), 101);
        let mut io = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
        for _ in 0..7 {
            io.write_all(b"x").await.unwrap();
            assert_eq!(io.read_u8().await.expect("it moves, so it stays"), b'x');
            sleep(ms(200)).await;
        }
        let begun = Instant::now();
        let ended = timeout(Duration::from_secs(5), io.read_u8()).await;
        assert!(ended.expect("nothing moves: timeouts.tcpIdle ends an upgraded connection, too").is_err());
        assert!((ms(350)..ms(1_900)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_request_for_an_upgrade_has_the_limits_of_any_request() {
    harness::run(async {
        for (settings, reason, least) in [
            (json!({ "request": "600ms" }), "request_timeout", ms(600)),
            (json!({ "idle": "500ms" }), "idle_timeout", ms(500)),
        ] {
            let shop = Shop::open(Mesh::new(), 1, 5, orders(json!({ "timeouts": settings }))).await;
            // The application takes the request and does not answer it for long.
            let replica = shop.replicas[0].pod.at4(8080);
            let call = timed(shop.client.send(replica, false, upgrade("/delay/4000"))).await;
            assert_refused(&call, 504, reason, &["orders.mesh"], least);
        }
    });
}
