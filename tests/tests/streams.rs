//! Long streams: who hears of a cancellation and of a deadline, trailers of requests, a gibibyte without HTTP, and
//! receivers that are slower than their senders.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body::Frame;
use http_body_util::BodyExt as _;
use outrigger_e2e::{
    harness::{
        self, Family, Mesh, Pair,
        client::{self, Body, Sender, body, grpc_call, request},
        pair::{ECHO, HTTP, SCRIPT},
    },
    pattern,
    workload::{
        body::{Broken, PatternBody},
        grpc::{self, FrameBody},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
    task::spawn_local,
    time::{sleep, timeout},
};

const SOON: Duration = Duration::from_secs(5);
const GIB: u64 = 1 << 30;
/// A sidecar with a few connections; the buffers of one connection are far below a MiB.
const PEAK_KIB: u64 = 64 * 1024;

type Frames = mpsc::Sender<Result<Frame<Bytes>, Broken>>;

/// A body whose frames the test sends.
fn frames() -> (Frames, Body) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, FrameBody::new(receiver).boxed_unsync())
}

async fn push(to: &Frames, message: &[u8]) {
    timeout(SOON, to.send(Ok(Frame::data(grpc::frame(message))))).await.expect("room").unwrap();
}

/// What the application says of itself, asked past the sidecars.
async fn origin(pair: &Pair, path: &str) -> u64 {
    let to = (std::net::Ipv4Addr::LOCALHOST, HTTP).into();
    pair.server.get(to, "localhost", path).await.text().trim().parse().unwrap()
}

async fn until_cancelled(pair: &Pair, wanted: u64, what: &str) {
    harness::eventually(&format!("the application learns of the end of {what}"), SOON, || async {
        let now = origin(pair, "/cancelled").await;
        if now == wanted { Ok(()) } else { Err(format!("{now} cancelled, not {wanted}")) }
    })
    .await;
}

fn flat(pair: &Pair, what: &str) {
    let peaks = [&pair.client_sidecar, &pair.server_sidecar].map(|s| s.memory_kib("VmHWM"));
    println!("{what}: peaks {peaks:?} KiB");
    assert!(peaks.iter().all(|peak| *peak < PEAK_KIB), "{what}: {peaks:?} KiB");
}

fn reset_peaks(pair: &Pair) {
    pair.client_sidecar.reset_peak();
    pair.server_sidecar.reset_peak();
}

#[test]
fn a_grpc_call_that_its_caller_cancels_is_cancelled_at_the_server_and_no_other() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        let mut left = 0;
        for family in pair.families() {
            // One connection for all: only the stream that is cancelled ends.
            let (sender, _cut) = pair.client.http(family.at(HTTP), true).await;
            let Sender::H2(h2) = sender else { unreachable!() };
            let (bystander, data) = frames();
            let call = h2.clone().send_request(grpc_call(&family.host(), "Bidi", data, &[])).await.unwrap();
            let mut bystander_hears = grpc::Messages::new(call.into_body());
            for method in ["ServerStream", "ClientStream", "Bidi"] {
                let (frames, data) = frames();
                let pause = [("x-pause-ms", "20")];
                let call = h2.clone().send_request(grpc_call(&family.host(), method, data, &pause));
                push(&frames, b"100000").await;
                let response = timeout(SOON, call).await.expect("the head comes at once").unwrap();
                let mut answers = grpc::Messages::new(response.into_body());
                if method == "ClientStream" {
                    for _ in 0..10 {
                        push(&frames, b"more").await;
                    }
                } else {
                    timeout(SOON, answers.next()).await.unwrap().unwrap().unwrap();
                }
                assert_eq!(origin(&pair, "/cancelled").await, left, "{method} is under way");
                // The caller drops the call: RST_STREAM with CANCEL.
                drop((frames, answers));
                left += 1;
                until_cancelled(&pair, left, method).await;
                push(&bystander, b"still here").await;
                assert_eq!(timeout(SOON, bystander_hears.next()).await.unwrap().unwrap().unwrap(), "still here");
            }
            drop(bystander);
            assert_eq!(bystander_hears.next().await.unwrap(), None);
            assert_eq!(bystander_hears.trailers.unwrap()["grpc-status"], "0");
            assert_eq!(origin(&pair, "/cancelled").await, left);
        }
    });
}

#[test]
fn a_server_that_breaks_off_in_mid_stream_is_not_taken_for_an_end() {
    harness::run(async {
        let mut pair = Pair::new(Mesh::new()).await;
        let family = pair.families()[0];
        let (mut sender, _cut) = pair.client.http(family.at(HTTP), true).await;
        let call = grpc_call(&family.host(), "ServerStream", body(grpc::frame(b"100000")), &[("x-pause-ms", "10")]);
        let mut answers = grpc::Messages::new(sender.send(call).await.unwrap().into_body());
        assert_eq!(timeout(SOON, answers.next()).await.unwrap().unwrap().unwrap(), "1");
        pair.origin.kill();
        let end = async {
            loop {
                match answers.next().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return answers.trailers.clone().is_some_and(|t| t["grpc-status"] != "0"),
                    Err(_) => return true,
                }
            }
        };
        assert!(timeout(SOON, end).await.expect("no hang"), "a stream that broke off ended well");
    });
}

#[test]
fn a_grpc_deadline_ends_a_stream_in_its_middle() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        for (n, family) in pair.families().into_iter().enumerate() {
            let (mut sender, _cut) = pair.client.http(family.at(HTTP), true).await;
            let headers = [("grpc-timeout", "1S"), ("x-pause-ms", "50")];
            let call = grpc_call(&family.host(), "ServerStream", body(grpc::frame(b"100000")), &headers);
            let begun = Instant::now();
            let mut answers = grpc::Messages::new(sender.send(call).await.unwrap().into_body());
            let mut received = 0_u32;
            let ended = loop {
                match timeout(SOON, answers.next()).await.expect("no hang after the deadline") {
                    Ok(Some(_)) => received += 1,
                    Ok(None) => break answers.trailers.as_ref().map(|t| t["grpc-status"].clone()),
                    // A reset stream: gRPC clients take it for CANCELLED, by then their own deadline has passed as well.
                    Err(_) => break None,
                }
                assert!(begun.elapsed() < SOON, "the stream runs on {:?} after its deadline of 1 s", begun.elapsed());
            };
            let took = begun.elapsed();
            assert!((Duration::from_millis(950)..Duration::from_millis(2_000)).contains(&took), "{took:?}");
            assert!(received >= 5, "{received} messages came before");
            assert!(ended.as_ref().is_none_or(|status| status == "4"), "DEADLINE_EXCEEDED, not {ended:?}");
            until_cancelled(&pair, n as u64 + 1, "a call whose deadline passed").await;
        }
    });
}

#[test]
fn trailers_of_a_request_reach_the_application() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        for family in pair.families() {
            for size in [0, 10, 200_000] {
                let (frames, data) = frames();
                let post = request(&family.host(), true, Method::POST, "/echo").body(data).unwrap();
                let feed = spawn_local(async move {
                    if size > 0 {
                        frames.send(Ok(Frame::data(pattern::bytes(size).into()))).await.unwrap();
                    }
                    let mut trailers = HeaderMap::new();
                    trailers.insert("x-checksum", "abc".parse().unwrap());
                    trailers.append("x-part", "1".parse().unwrap());
                    trailers.append("x-part", "2".parse().unwrap());
                    frames.send(Ok(Frame::trailers(trailers))).await.unwrap();
                });
                let reply = timeout(SOON, pair.client.send(family.at(HTTP), true, post)).await.expect("an answer");
                feed.await.unwrap();
                assert!(reply.body.len() == size && pattern::matches(0, &reply.body), "{size} B");
                let trailers = reply.trailers.unwrap_or_else(|| panic!("no trailers after {size} B"));
                assert_eq!(trailers["x-checksum"], "abc");
                let parts: Vec<_> = trailers.get_all("x-part").iter().collect();
                assert_eq!(parts, ["1", "2"]);
            }
        }
    });
}

/// Sends `total` bytes of the pattern to an echo and checks what comes back, both at once, to the end of both.
async fn there_and_back(io: impl AsyncRead + AsyncWrite + 'static, total: u64) {
    let (mut reader, mut writer) = tokio::io::split(io);
    let writing = spawn_local(async move {
        let mut sent = 0;
        while sent < total {
            let piece = pattern::slice(sent, total - sent);
            writer.write_all(&piece).await.unwrap();
            sent += piece.len() as u64;
        }
        writer.shutdown().await.unwrap();
    });
    let (mut received, mut buffer) = (0_u64, vec![0; 64 * 1024]);
    loop {
        let n = timeout(SOON, reader.read(&mut buffer)).await.expect("bytes go on").unwrap();
        if n == 0 {
            break;
        }
        assert!(pattern::matches(received, &buffer[..n]), "wrong bytes after {received}");
        received += n as u64;
    }
    writing.await.unwrap();
    assert_eq!(received, total);
}

#[test]
fn a_gibibyte_of_opaque_bytes_passes_in_flat_memory() {
    harness::run(async {
        let pair = Pair::new(Mesh::alone()).await;
        let family = pair.families()[0];
        reset_peaks(&pair);
        let begun = Instant::now();
        there_and_back(pair.client.connect(family.at(ECHO)).await.unwrap(), GIB).await;
        flat(&pair, &format!("1 GiB there and back in {:?}", begun.elapsed()));
    });
}

#[test]
fn a_gibibyte_passes_an_upgraded_connection_in_flat_memory() {
    harness::run(async {
        let pair = Pair::new(Mesh::alone()).await;
        let family = pair.families()[1];
        reset_peaks(&pair);
        let begun = Instant::now();
        let (io, _cut) = pair.client.upgraded(family.at(HTTP), &family.host(), "raw-bytes").await;
        there_and_back(io, GIB).await;
        flat(&pair, &format!("1 GiB there and back in {:?}", begun.elapsed()));
    });
}

/// An application that takes a request's head and then reads only what it is told to.
async fn slow_upload(pair: &Pair, family: Family) {
    let context = format!("IPv{}", family.version);
    let listener = pair.server.listen(SCRIPT);
    let to = family.at(SCRIPT);
    let host = format!("script{}.mesh:{SCRIPT}", family.version);
    let post = request(&host, false, Method::POST, "/").body(PatternBody::new(GIB, true).boxed_unsync()).unwrap();
    reset_peaks(pair);
    let (sender, cut) = pair.client.http(to, false).await;
    let sending = spawn_local(async move {
        let mut sender = sender;
        sender.send(post).await.map(drop)
    });
    let (mut application, _) = timeout(SOON, listener.accept()).await.expect("the application is called").unwrap();
    let mut head = [0; 4];
    timeout(SOON, application.read_exact(&mut head)).await.expect("the head").unwrap();
    // Nobody reads: what can be on its way is bounded by windows and socket buffers.
    sleep(Duration::from_millis(1_500)).await;
    flat(pair, &format!("{context}: an upload that nobody reads"));
    // And slowly: 20 times 256 KiB.
    let mut buffer = vec![0; 256 * 1024];
    for _ in 0..20 {
        timeout(SOON, application.read_exact(&mut buffer)).await.expect("it goes on").unwrap();
        sleep(Duration::from_millis(20)).await;
    }
    flat(pair, &format!("{context}: an upload that is read slowly"));
    assert!(!sending.is_finished(), "{context}: the sender is held back");
    // Another call is not held up by it.
    let other = timeout(SOON, pair.client.get(family.at(HTTP), &family.host(), "/")).await;
    assert_eq!(other.expect("another call's answer").text(), "server\n");
    drop(cut);
    sending.abort();
}

#[test]
fn an_upload_to_a_slow_receiver_holds_the_sender_back_and_not_the_memory() {
    harness::run(async {
        let pair = Pair::new(Mesh::alone()).await;
        let [v4, v6] = pair.families();
        slow_upload(&pair, v4).await;
        slow_upload(&pair, v6).await;
        for (family, h2) in [(v4, true), (v6, false)] {
            reset_peaks(&pair);
            let data = PatternBody::new(GIB, false).boxed_unsync();
            let post = request(&family.host(), h2, Method::POST, "/echo").body(data).unwrap();
            let (mut sender, _cut) = pair.client.http(family.at(HTTP), h2).await;
            // The echo is not read, so the application stops to read.
            let mut response = timeout(SOON, sender.send(post)).await.expect("the head").unwrap();
            response.body_mut().frame().await.unwrap().unwrap();
            sleep(Duration::from_millis(1_500)).await;
            flat(&pair, &format!("IPv{} h2={h2}: an echo that nobody reads", family.version));
        }
    });
}

#[test]
fn an_endless_chunked_upload_runs_while_its_answer_flows() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        for family in pair.families() {
            // HTTP/1.1 by hand, so that nothing but the mesh could hold a chunk back.
            let stream = pair.client.connect(family.at(HTTP)).await.unwrap();
            let (mut reader, mut writer) = stream.into_split();
            let host = family.host();
            let head = format!("POST /echo HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n");
            writer.write_all(head.as_bytes()).await.unwrap();
            let mut all = Vec::new();
            let mut slowest = Duration::ZERO;
            for n in 0..200 {
                let line = format!("line {n:05}\n");
                let begun = Instant::now();
                writer.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await.unwrap();
                let reading = async {
                    while !all.windows(line.len()).any(|w| w == line.as_bytes()) {
                        assert!(reader.read_buf(&mut all).await.unwrap() > 0, "ended before {line}");
                    }
                };
                timeout(SOON, reading).await.unwrap_or_else(|_| panic!("IPv{}: {line} is held back", family.version));
                slowest = slowest.max(begun.elapsed());
                if n % 20 == 0 {
                    // Not only in one breath: the exchange lives while nothing moves.
                    sleep(Duration::from_millis(50)).await;
                    all.clear();
                }
            }
            println!("IPv{}: the slowest of 200 chunks came back after {slowest:?}", family.version);
            writer.write_all(b"0\r\n\r\n").await.unwrap();
            let reading = async {
                while !all.ends_with(b"\r\n0\r\n\r\n") {
                    assert!(reader.read_buf(&mut all).await.unwrap() > 0, "no end of the answer");
                }
            };
            timeout(SOON, reading).await.expect("the end of the answer follows the end of the upload");
        }
        // The upload goes on although the answer's head and some of its body came long ago, with another answer's end
        // before the upload's: a server may answer before it has read everything (RFC 9112 section 9.5).
        let family = pair.families()[0];
        let (frames, data) = frames();
        let post = request(&family.host(), true, Method::POST, "/endless").body(data).unwrap();
        let (mut sender, _cut): (Sender, client::Cut) = pair.client.http(family.at(HTTP), true).await;
        let mut response = timeout(SOON, sender.send(post)).await.expect("the head").unwrap();
        let (mut lines, mut sent) = (0, 0);
        while lines < 100 {
            // The application never reads; until the windows are full the upload goes on.
            if sent < 20 {
                push(&frames, &[7; 1_000]).await;
                sent += 1;
            }
            let frame = timeout(SOON, response.body_mut().frame()).await.expect("lines go on").unwrap().unwrap();
            lines += frame.data_ref().map_or(0, |d| d.iter().filter(|b| **b == b'\n').count());
        }
    });
}
