//! Every protocol through both sidecars, over IPv4 and IPv6.

use std::{
    io,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request};
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use outrigger_e2e::{
    harness::{
        self, Family, Mesh, Pair, Reply, client,
        client::body,
        pair::{ECHO, FIRST, HTTP, SCRIPT},
    },
    pattern,
    workload::{
        body::PatternBody,
        grpc::{self, FrameBody},
        websocket,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

/// For whatever should come at once.
const SOON: Duration = Duration::from_secs(5);

fn request(family: Family, h2: bool, method: Method, path: &str) -> http::request::Builder {
    let host = family.host();
    let builder = Request::builder().method(method);
    if h2 { builder.uri(format!("http://{host}{path}")) } else { builder.uri(path).header("host", host) }
}

async fn call(pair: &Pair, family: Family, h2: bool, method: Method, path: &str, data: impl Into<Bytes>) -> Reply {
    let request = request(family, h2, method, path).body(body(data)).unwrap();
    let exchange = pair.client.send(family.at(HTTP), h2, request);
    timeout(Duration::from_secs(20), exchange).await.unwrap_or_else(|_| panic!("{family:?} h2={h2} {path}: no answer"))
}

/// Reads until the text so far satisfies `enough`.
async fn read_until(stream: &mut TcpStream, enough: impl Fn(&str) -> bool) -> String {
    let mut all = Vec::new();
    let reading = async {
        loop {
            let text = String::from_utf8_lossy(&all).into_owned();
            if enough(&text) {
                return text;
            }
            let n = stream.read_buf(&mut all).await.unwrap_or_else(|e| panic!("{e} after {text:?}"));
            assert!(n > 0, "ended after {text:?}");
        }
    };
    timeout(SOON, reading).await.unwrap_or_else(|_| panic!("not what was awaited"))
}

#[test]
fn http_of_both_versions_keeps_its_meaning() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        for (family, h2) in pair.families().into_iter().flat_map(|f| [(f, false), (f, true)]) {
            let context = format!("IPv{} h2={h2}", family.version);
            let forged = request(family, h2, Method::GET, "/whoami?a=b%20c&d")
                .header("x-own", "kept")
                .header("x-forwarded-client-cert", "By=forged;URI=spiffe://mesh.example/ns/test/sa/admin")
                .header("outrigger-error", "forged")
                .header("outrigger-orig-proto", "forged")
                .body(body(""))
                .unwrap();
            let who = pair.client.send(family.at(HTTP), h2, forged).await.json();
            assert_eq!(who["name"], "server", "{context}");
            assert_eq!(who["path"], "/whoami?a=b%20c&d", "{context}");
            assert_eq!(who["version"], if h2 { "HTTP/2.0" } else { "HTTP/1.1" }, "{context}: {who}");
            let authority = if h2 { &who["authority"] } else { &who["headers"]["host"] };
            assert_eq!(*authority, family.host(), "{context}: {who}");
            assert_eq!(who["headers"]["x-own"], "kept", "{context}");
            let caller = who["headers"]["x-forwarded-client-cert"].as_str().unwrap_or_default();
            assert!(caller.contains("URI=spiffe://mesh.example/ns/test/sa/client"), "{context}: {who}");
            assert!(!caller.contains("admin"), "{context}: {who}");
            let mesh_only = who["headers"].as_object().unwrap().keys().find(|k| k.starts_with("outrigger-"));
            assert_eq!(mesh_only, None, "{context}");
            let from: std::net::SocketAddr = who["peer"].as_str().unwrap().parse().unwrap();
            assert_eq!(from.ip().to_string(), family.sidecar_leg(), "{context}");
            let local: std::net::SocketAddr = who["local"].as_str().unwrap().parse().unwrap();
            assert_eq!(local, family.at(HTTP), "{context}");

            for status in [200, 201, 302, 400, 404, 418, 429, 500, 502] {
                let reply = call(&pair, family, h2, Method::GET, &format!("/status/{status}"), "").await;
                assert_eq!(reply.status, status, "{context}");
                assert_eq!(reply.header("outrigger-error"), "", "{context}: the application's own answer");
            }
            for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS] {
                let who = call(&pair, family, h2, method.clone(), "/whoami", "x").await.json();
                assert_eq!(who["method"], method.as_str(), "{context}");
            }
            let head = call(&pair, family, h2, Method::HEAD, "/bytes/1000", "").await;
            assert_eq!((head.header("content-length"), head.body.len()), ("1000", 0), "{context}");
        }
    });
}

#[test]
fn bodies_of_every_size_arrive_whole() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        for (family, h2) in pair.families().into_iter().flat_map(|f| [(f, false), (f, true)]) {
            for size in [0, 1, 100, 16_384, 65_535, 65_536, 65_537, 3_000_000] {
                let context = format!("IPv{} h2={h2} {size} B", family.version);
                let sized = call(&pair, family, h2, Method::GET, &format!("/bytes/{size}"), "").await;
                assert_eq!(sized.header("content-length"), size.to_string(), "{context}");
                assert!(sized.body.len() == size && pattern::matches(0, &sized.body), "{context}: sized");
                let chunked = call(&pair, family, h2, Method::GET, &format!("/chunked/{size}"), "").await;
                // Between sidecars nothing tells an empty body in chunks from none.
                let length = if size == 0 {
                    chunked.header("content-length").trim_matches('0')
                } else {
                    chunked.header("content-length")
                };
                assert_eq!(length, "", "{context}");
                assert!(chunked.body.len() == size && pattern::matches(0, &chunked.body), "{context}: chunked");
                let echoed = call(&pair, family, h2, Method::POST, "/echo", pattern::bytes(size)).await;
                assert!(echoed.body.len() == size && pattern::matches(0, &echoed.body), "{context}: echoed");
                let unsized_body = PatternBody::new(size as u64, false).boxed_unsync();
                let sink = request(family, h2, Method::POST, "/sink").body(unsized_body).unwrap();
                let sunk = pair.client.send(family.at(HTTP), h2, sink).await.json();
                assert_eq!((sunk["length"].as_u64(), &sunk["pattern"]), (Some(size as u64), &true.into()), "{context}");
            }
        }
    });
}

/// Reads a body of the pattern to its end without keeping it.
async fn drain_pattern(mut body: hyper::body::Incoming) -> u64 {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.unwrap().into_data() {
            assert!(pattern::matches(read, &data), "wrong bytes after {read}");
            read += data.len() as u64;
        }
    }
    read
}

#[test]
fn a_gibibyte_passes_in_flat_memory() {
    const GIB: u64 = 1 << 30;
    /// A sidecar with a few connections; buffers of one connection are far below a MiB.
    const PEAK_KIB: u64 = 64 * 1024;
    harness::run(async {
        let pair = Pair::new(Mesh::alone()).await;
        let [v4, v6] = pair.families();
        for (family, h2, upload) in [(v4, false, false), (v6, false, true), (v6, true, false), (v4, true, true)] {
            pair.client_sidecar.reset_peak();
            pair.server_sidecar.reset_peak();
            let begun = Instant::now();
            if upload {
                let data = PatternBody::new(GIB, true).boxed_unsync();
                let post = request(family, h2, Method::POST, "/sink").body(data).unwrap();
                let sunk = pair.client.send(family.at(HTTP), h2, post).await;
                assert_eq!(sunk.status, 200, "{}", sunk.text());
                assert_eq!((sunk.json()["length"].as_u64(), &sunk.json()["pattern"]), (Some(GIB), &true.into()));
            } else {
                let get = request(family, h2, Method::GET, &format!("/bytes/{GIB}")).body(body("")).unwrap();
                let (mut sender, _cut) = pair.client.http(family.at(HTTP), h2).await;
                let response = sender.send(get).await.unwrap();
                assert_eq!(drain_pattern(response.into_body()).await, GIB);
            }
            let peaks = [&pair.client_sidecar, &pair.server_sidecar].map(|s| s.memory_kib("VmHWM"));
            println!("IPv{} h2={h2} upload={upload}: {:?}, peaks {peaks:?} KiB", family.version, begun.elapsed());
            assert!(peaks.iter().all(|peak| *peak < PEAK_KIB), "{peaks:?} KiB");
        }
    });
}

#[test]
fn a_slow_reader_holds_the_sender_back_and_not_the_memory() {
    harness::run(async {
        let pair = Pair::new(Mesh::alone()).await;
        for (family, h2) in pair.families().into_iter().flat_map(|f| [(f, false), (f, true)]) {
            pair.client_sidecar.reset_peak();
            pair.server_sidecar.reset_peak();
            let get = request(family, h2, Method::GET, "/bytes/1073741824").body(body("")).unwrap();
            let (mut client, _cut) = pair.client.http(family.at(HTTP), h2).await;
            let mut response = client.send(get).await.unwrap();
            response.body_mut().frame().await.unwrap().unwrap();
            // Nobody reads: what can be on its way is bounded by windows and socket buffers.
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            for sidecar in [&pair.client_sidecar, &pair.server_sidecar] {
                let peak = sidecar.memory_kib("VmHWM");
                assert!(peak < 64 * 1024, "IPv{} h2={h2}: {peak} KiB", family.version);
            }
            // Another call is not held up by it.
            assert_eq!(call(&pair, family, h2, Method::GET, "/", "").await.text(), "server\n");
        }
    });
}

async fn cancelled(pair: &Pair) -> u64 {
    let family = pair.families()[0];
    call(pair, family, false, Method::GET, "/cancelled", "").await.text().trim().parse().unwrap()
}

async fn until_cancelled(pair: &Pair, wanted: u64) {
    harness::eventually("the application learns that its caller left", SOON, || async {
        let now = cancelled(pair).await;
        if now == wanted { Ok(()) } else { Err(format!("{now} cancelled, not {wanted}")) }
    })
    .await;
}

#[test]
fn endless_bodies_flow_in_both_directions_until_the_caller_leaves() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        let mut left = 0;
        for (family, h2) in pair.families().into_iter().flat_map(|f| [(f, false), (f, true)]) {
            // Down: every line comes when it is written, not when a buffer is full.
            let get = request(family, h2, Method::GET, "/endless").body(body("")).unwrap();
            let begun = Instant::now();
            {
                let (mut client, _cut) = pair.client.http(family.at(HTTP), h2).await;
                let mut response = client.send(get).await.unwrap();
                let mut text = String::new();
                while text.lines().count() < 50 {
                    let frame = timeout(SOON, response.body_mut().frame()).await.unwrap().unwrap().unwrap();
                    text += &String::from_utf8_lossy(frame.data_ref().unwrap());
                }
                assert!(text.starts_with("1\n2\n3\n"), "{text}");
                assert!(begun.elapsed() < Duration::from_secs(5), "50 lines took {:?}", begun.elapsed());
            }
            left += 1;
            until_cancelled(&pair, left).await;

            // Both ways at once: what is sent comes back before anything more is sent.
            let (sender, receiver) = mpsc::channel(1);
            let post =
                request(family, h2, Method::POST, "/echo").body(FrameBody::new(receiver).boxed_unsync()).unwrap();
            {
                sender.send(Ok(Frame::data(Bytes::from_static(b"first")))).await.unwrap();
                let (mut client, _cut) = pair.client.http(family.at(HTTP), h2).await;
                let mut response = client.send(post).await.unwrap();
                for text in ["first", "second", "third"] {
                    if text != "first" {
                        sender.send(Ok(Frame::data(Bytes::from_static(text.as_bytes())))).await.unwrap();
                    }
                    let frame = timeout(SOON, response.body_mut().frame()).await;
                    let frame = frame.unwrap_or_else(|_| panic!("IPv{} h2={h2}: {text} is held back", family.version));
                    assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), text);
                }
            }
            left += 1;
            until_cancelled(&pair, left).await;
        }
    });
}

fn grpc_call(family: Family, method: &str, data: client::Body, headers: &[(&str, &str)]) -> Request<client::Body> {
    let mut builder = request(family, true, Method::POST, &format!("/test.Echo/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(data).unwrap()
}

fn messages(reply: &Reply) -> Vec<String> {
    let mut buffer = bytes::BytesMut::from(&reply.body[..]);
    std::iter::from_fn(|| grpc::unframe(&mut buffer)).map(|m| String::from_utf8_lossy(&m).into_owned()).collect()
}

#[test]
fn grpc_calls_of_all_four_kinds() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        for family in pair.families() {
            let to = family.at(HTTP);
            let unary = grpc_call(family, "Unary", body(grpc::frame(b"hello")), &[]);
            let unary = pair.client.send(to, true, unary).await;
            assert_eq!(messages(&unary), ["hello"]);
            assert_eq!((unary.trailer("grpc-status"), unary.trailer("grpc-message")), ("0", "fine"));
            assert!(unary.trailers.is_some(), "the status came in the head");
            assert_eq!(unary.header("x-grpc-timeout"), "", "no deadline is made up");
            for deadline in ["5S", "2M", "1H", "30000m", "99999999u"] {
                let unary = grpc_call(family, "Unary", body(grpc::frame(b"x")), &[("grpc-timeout", deadline)]);
                let unary = pair.client.send(to, true, unary).await;
                assert_eq!(unary.header("x-grpc-timeout"), deadline, "the deadline is passed on as it is");
            }

            let stream = grpc_call(family, "ServerStream", body(grpc::frame(b"500")), &[]);
            let stream = pair.client.send(to, true, stream).await;
            assert_eq!(messages(&stream).len(), 500);
            assert_eq!(stream.trailer("grpc-status"), "0");

            let many: Vec<u8> = (0..100).flat_map(|_| grpc::frame(&[7; 1_000]).to_vec()).collect();
            let stream = pair.client.send(to, true, grpc_call(family, "ClientStream", body(many), &[])).await;
            assert_eq!(messages(&stream), ["100 100000"]);
            assert_eq!(stream.trailer("grpc-status"), "0");

            // Bidirectional: each message is answered before the next is sent.
            let (sender, receiver) = mpsc::channel(1);
            let call = grpc_call(family, "Bidi", FrameBody::new(receiver).boxed_unsync(), &[]);
            let (mut client, _cut) = pair.client.http(to, true).await;
            let response = timeout(SOON, client.send(call)).await.expect("headers before any message").unwrap();
            let mut answers = grpc::Messages::new(response.into_body());
            for text in ["a", "bb", "ccc"] {
                sender.send(Ok(Frame::data(grpc::frame(text.as_bytes())))).await.unwrap();
                assert_eq!(timeout(SOON, answers.next()).await.unwrap().unwrap().unwrap(), text);
            }
            drop(sender);
            assert_eq!(answers.next().await.unwrap(), None);
            assert_eq!(answers.trailers.unwrap()["grpc-status"], "0");

            let fail = grpc_call(family, "Fail", body(grpc::frame(b"")), &[("x-fail-code", "9")]);
            let fail = pair.client.send(to, true, fail).await;
            assert_eq!((fail.status.as_u16(), fail.header("grpc-status")), (200, "9"), "trailers only");
        }
    });
}

#[test]
fn grpc_deadlines_and_cancellation_reach_the_other_side() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        let mut left = 0;
        for family in pair.families() {
            let to = family.at(HTTP);
            let begun = Instant::now();
            let headers = [("grpc-timeout", "300m"), ("x-sleep-ms", "20000")];
            let late = pair.client.send(to, true, grpc_call(family, "Unary", body(grpc::frame(b"x")), &headers)).await;
            assert_eq!(late.trailer("grpc-status"), "4", "DEADLINE_EXCEEDED: {late:?}");
            assert_eq!(late.header("outrigger-error"), "request_timeout", "the mesh says that it spoke");
            let took = begun.elapsed();
            assert!((Duration::from_millis(300)..Duration::from_millis(1_300)).contains(&took), "{took:?}");
            left += 1;
            until_cancelled(&pair, left).await;

            let sleeping = grpc_call(family, "Unary", body(grpc::frame(b"x")), &[("x-sleep-ms", "20000")]);
            let (mut client, _cut) = pair.client.http(to, true).await;
            assert!(timeout(Duration::from_millis(300), client.send(sleeping)).await.is_err());
            left += 1;
            until_cancelled(&pair, left).await;
        }
    });
}

#[test]
fn an_upgraded_connection_carries_any_bytes() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        for family in pair.families() {
            let ask = |token: &str, path: &str| {
                request(family, false, Method::GET, path)
                    .header("connection", "upgrade")
                    .header("upgrade", token)
                    .header("sec-websocket-version", "13")
                    .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
                    .body(body(""))
                    .unwrap()
            };
            // Any protocol: bytes both ways, then half-close.
            let (mut client, _cut) = pair.client.http(family.at(HTTP), false).await;
            let mut response = client.send(ask("raw-bytes", "/upgrade")).await.unwrap();
            assert_eq!(response.status(), 101);
            assert_eq!(response.headers()["upgrade"], "raw-bytes");
            let io = hyper::upgrade::on(&mut response).await.unwrap();
            let (mut reader, mut writer) = tokio::io::split(TokioIo::new(io));
            let sent = pattern::bytes(2_000_000);
            let write = async {
                writer.write_all(&sent).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let mut back = Vec::new();
            let both = async { tokio::join!(write, reader.read_to_end(&mut back)) };
            timeout(Duration::from_secs(20), both).await.expect("the echo and its end").1.unwrap();
            assert_eq!(back.len(), sent.len());
            assert!(back == sent);

            // WebSocket: the accept value, messages of every length form, ping, close.
            let (mut client, _cut) = pair.client.http(family.at(HTTP), false).await;
            let mut response = client.send(ask("websocket", "/upgrade")).await.unwrap();
            assert_eq!(response.status(), 101);
            assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
            let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
            for (first, size, back) in [(0x81, 5, 0x81), (0x82, 60_000, 0x82), (0x82, 100_000, 0x82), (0x89, 4, 0x8a)] {
                let data = pattern::bytes(size);
                websocket::write_frame(&mut io, first, &data, Some([1, 2, 3, 4])).await.unwrap();
                let (kind, answer) = timeout(SOON, websocket::read_frame(&mut io)).await.unwrap().unwrap();
                assert_eq!(kind, back);
                assert!(answer == data, "{size} B");
            }
            websocket::write_frame(&mut io, 0x88, &[3, 232], Some([9; 4])).await.unwrap();
            assert_eq!(timeout(SOON, websocket::read_frame(&mut io)).await.unwrap().unwrap(), (0x88, vec![3, 232]));
            assert_eq!(timeout(SOON, io.read(&mut [0; 8])).await.unwrap().unwrap(), 0, "the end after the close frame");

            // A server that does not want to: its answer comes as it is.
            let (mut client, _cut) = pair.client.http(family.at(HTTP), false).await;
            let refused = client.send(ask("raw-bytes", "/status/404")).await.unwrap();
            assert_eq!(Reply::read(refused).await.unwrap().text(), "404\n");
        }
    });
}

#[test]
fn expect_100_continue_gets_its_go_ahead_or_its_refusal() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        for family in pair.families() {
            let head = |path: &str| {
                let host = family.host();
                format!("POST {path} HTTP/1.1\r\nhost: {host}\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
            };
            let mut stream = pair.client.connect(family.at(HTTP)).await.unwrap();
            stream.write_all(head("/echo").as_bytes()).await.unwrap();
            let go = read_until(&mut stream, |t| t.contains("\r\n\r\n")).await;
            assert!(go.starts_with("HTTP/1.1 100 "), "{go}");
            stream.write_all(b"hello").await.unwrap();
            let answer = read_until(&mut stream, |t| t.ends_with("hello")).await;
            assert!(answer.contains("HTTP/1.1 200 "), "{answer}");

            // The body is never sent; the refusal comes all the same.
            let mut stream = pair.client.connect(family.at(HTTP)).await.unwrap();
            stream.write_all(head("/status/417").as_bytes()).await.unwrap();
            read_until(&mut stream, |t| t.contains("HTTP/1.1 417 ")).await;
        }
    });
}

#[test]
fn http_that_comes_one_byte_at_a_time_is_http() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        for family in pair.families() {
            let host = family.host();
            let text = format!("GET /whoami HTTP/1.1\r\nHost: {host}\r\nX-Slow: yes\r\n\r\n");
            let mut stream = pair.client.connect(family.at(HTTP)).await.unwrap();
            for byte in text.bytes() {
                stream.write_all(&[byte]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let answer = read_until(&mut stream, |t| t.contains("}\n")).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            // Only a request that was understood carries its caller's name.
            assert!(answer.contains("URI=spiffe://mesh.example/ns/test/sa/client"), "{answer}");

            // And slower than the wait for a silent client, in the middle of a word.
            let mut stream = pair.client.connect(family.at(HTTP)).await.unwrap();
            for part in ["GE", "T /whoami HTT", "P/1.1\r\nHo", &format!("st: {host}\r\n"), "\r\n"] {
                stream.write_all(part.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
            let answer = read_until(&mut stream, |t| t.contains("}\n")).await;
            assert!(answer.contains("URI=spiffe://mesh.example/ns/test/sa/client"), "{answer}");

            // HTTP/2 with its preface in two halves.
            let (near, mut far) = tokio::io::duplex(64 * 1024);
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), TokioIo::new(near))
                    .await
                    .unwrap();
            tokio::spawn(connection);
            let mut stream = pair.client.connect(family.at(HTTP)).await.unwrap();
            let relay = async {
                let mut preface = [0; 24];
                far.read_exact(&mut preface).await.unwrap();
                stream.write_all(&preface[..7]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(150)).await;
                stream.write_all(&preface[7..]).await.unwrap();
                tokio::io::copy_bidirectional(&mut far, &mut stream).await.unwrap();
            };
            let ask = request(family, true, Method::GET, "/whoami").body(body("")).unwrap();
            let reply = tokio::select! {
                reply = async { Reply::read(sender.send_request(ask).await.unwrap()).await.unwrap() } => reply,
                () = relay => panic!("the connection ended"),
            };
            assert_eq!(reply.json()["version"], "HTTP/2.0");
        }
    });
}

#[test]
fn http_1_0_and_requests_in_a_row() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        for family in pair.families() {
            // No Host header: the address says which service is meant.
            let mut stream = pair.client.connect(family.at(HTTP)).await.unwrap();
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
            let mut all = String::new();
            timeout(SOON, stream.read_to_string(&mut all)).await.expect("the end of a 1.0 answer").unwrap();
            assert!(all.starts_with("HTTP/1.") && all.contains(" 200 ") && all.ends_with("server\n"), "{all}");

            let one = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", family.host());
            let mut stream = pair.client.connect(family.at(HTTP)).await.unwrap();
            stream.write_all(one.repeat(20).as_bytes()).await.unwrap();
            read_until(&mut stream, |t| t.matches("server\n").count() == 20).await;
        }
    });
}

#[test]
fn opaque_bytes_pass_with_half_close_from_either_side() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        let data = pattern::bytes(3_000_000);
        for family in pair.families() {
            // The client ends first: everything comes back, then the end.
            let stream = pair.client.connect(family.at(ECHO)).await.unwrap();
            let (mut reader, mut writer) = stream.into_split();
            let write = async {
                // Not HTTP, whatever it resembles.
                writer.write_all(b"\x00\x01opaque").await.unwrap();
                writer.write_all(&data).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let mut back = Vec::new();
            let both = async { tokio::join!(write, reader.read_to_end(&mut back)).1.unwrap() };
            timeout(Duration::from_secs(20), both).await.expect("the echo and its end");
            assert_eq!(&back[..8], b"\x00\x01opaque");
            assert!(back[8..] == data);

            // The server ends first, and still reads what the client says after that.
            let listener = pair.server.listen(SCRIPT);
            let server = async {
                let (mut stream, from) = listener.accept().await.unwrap();
                assert_eq!(from.ip().to_canonical().to_string(), family.sidecar_leg());
                let mut hello = [0; 5];
                stream.read_exact(&mut hello).await.unwrap();
                stream.write_all(&data).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.unwrap();
                rest
            };
            let client = async {
                let mut stream = pair.client.connect(family.at(SCRIPT)).await.unwrap();
                stream.write_all(b"hello").await.unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                assert!(all == data);
                tokio::time::sleep(Duration::from_millis(200)).await;
                stream.write_all(&data).await.unwrap();
                stream.shutdown().await.unwrap();
                // The sidecar closes when both directions have ended.
                assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
            };
            let both = async { tokio::join!(server, client).0 };
            let rest = timeout(Duration::from_secs(20), both).await.expect("both directions end");
            assert!(rest == data, "{} of {} bytes after the server's end", rest.len(), data.len());
        }
        let over_mesh = [("direction", "inbound"), ("transport", "mtls")];
        assert!(pair.server.metric("outrigger_connections_total", &over_mesh).await >= 4.0, "not through the mesh");
    });
}

#[test]
fn a_reset_is_passed_on_and_not_taken_for_an_end() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        for family in pair.families() {
            let listener = pair.server.listen(SCRIPT);
            let mut client = pair.client.connect(family.at(SCRIPT)).await.unwrap();
            client.write_all(b"hello").await.unwrap();
            let (mut server, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
            server.read_exact(&mut [0; 5]).await.unwrap();
            server.write_all(b"part of an ans").await.unwrap();
            client.read_exact(&mut [0; 14]).await.unwrap();
            socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
            drop(server);
            let end = timeout(SOON, client.read(&mut [0; 1])).await.expect("an end");
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "IPv{}", family.version);
        }
    });
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once() {
    harness::run(async {
        let pair = Pair::new(Mesh::alone()).await;
        // The same without any sidecar.
        let (bare, caller) = (pair.mesh.pod("bare"), pair.mesh.pod("caller"));
        let _origin = bare.serve(&["--tcp-first", "9001"]).await;
        for (family, bare) in pair.families().into_iter().zip(bare.ips()) {
            let direct = greeting(&caller, (bare, FIRST).into(), "220 bare ready\r\n").await;
            let meshed = greeting(&pair.client, family.at(FIRST), "220 server ready\r\n").await;
            println!("IPv{}: greetings after {meshed:?}, without a mesh {direct:?}", family.version);
            // Two waits of 30 ms for a silent client, and a handshake.
            assert!(meshed < direct + Duration::from_millis(100), "{meshed:?}, without a mesh {direct:?}");
        }
    });
}

/// How long a server's greeting takes from the connect on: the middle one of seven.
async fn greeting(from: &harness::Pod, to: std::net::SocketAddr, words: &str) -> Duration {
    let mut took = Vec::new();
    for _ in 0..7 {
        let begun = Instant::now();
        let mut stream = from.connect(to).await.unwrap();
        assert_eq!(read_until(&mut stream, |t| t.ends_with("\r\n")).await, words);
        took.push(begun.elapsed());
        stream.write_all(b"EHLO me\r\n").await.unwrap();
        assert_eq!(read_until(&mut stream, |t| t.ends_with("\r\n")).await, "EHLO me\r\n");
    }
    took.sort();
    took[3]
}

#[test]
fn a_silent_client_is_not_closed_for_it() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        let mut http = Vec::new();
        let mut echo = Vec::new();
        for family in pair.families() {
            http.push((family, pair.client.connect(family.at(HTTP)).await.unwrap()));
            echo.push(pair.client.connect(family.at(ECHO)).await.unwrap());
        }
        // Longer than any time limit on a handshake that is around.
        tokio::time::sleep(Duration::from_secs(12)).await;
        for (family, mut stream) in http {
            let ask = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", family.host());
            stream.write_all(ask.as_bytes()).await.unwrap();
            let answer = read_until(&mut stream, |t| t.contains("\r\n\r\n") && t.ends_with("server\n")).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        for mut stream in echo {
            stream.write_all(b"still here").await.unwrap();
            read_until(&mut stream, |t| t == "still here").await;
        }
    });
}

#[test]
fn what_is_no_service_passes_untouched() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        let outside = pair.mesh.pod("outside");
        let _origin = outside.serve(&["--http", "8080", "--tcp-echo", "9000", "--tcp-first", "9001"]).await;
        for ip in outside.ips() {
            let who = pair.client.get((ip, 8080).into(), "www.example.com", "/whoami").await.json();
            assert_eq!(who["name"], "outside");
            assert!(who["headers"].get("x-forwarded-client-cert").is_none(), "{who}");
            let mut stream = pair.client.connect((ip, 9001).into()).await.unwrap();
            read_until(&mut stream, |t| t == "220 outside ready\r\n").await;
            let mut stream = pair.client.connect((ip, 9000).into()).await.unwrap();
            stream.write_all(b"\x00\x01").await.unwrap();
            read_until(&mut stream, |t| t.len() == 2).await;
        }
    });
}

#[test]
fn first_words_that_resemble_http_are_not_held_back() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        let outside = pair.mesh.pod("outside");
        let _origin = outside.serve(&["--tcp-echo", "9000"]).await;
        // Redis inline, memcached, SMTP, PostgreSQL's SSLRequest, MQTT, a lone letter, a bare line end.
        let first_words: [&[u8]; 9] = [
            b"GET key\r\n",
            b"PING\r\n",
            b"get key\r\n",
            b"HELO me\r\n",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            b"\x10\x0c\0\x04MQTT\x04\x02\0<",
            b"*1\r\n$4\r\nPING\r\n",
            b"q",
            b"\n",
        ];
        for to in [pair.families()[0].at(ECHO), pair.families()[1].at(ECHO), outside.at4(9000), outside.at6(9000)] {
            for words in first_words {
                let mut stream = pair.client.connect(to).await.unwrap();
                stream.write_all(words).await.unwrap();
                let mut back = vec![0; words.len()];
                let read = timeout(SOON, stream.read_exact(&mut back)).await;
                let read = read.unwrap_or_else(|_| panic!("{to}: {:?} is held back", String::from_utf8_lossy(words)));
                read.unwrap();
                assert_eq!(back, words);
            }
        }
    });
}
