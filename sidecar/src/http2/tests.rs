//! Both sides of HTTP/2 against each other, against hyper's, and against bytes that nobody should send.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{cell::Cell, future::poll_fn, rc::Rc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    task::{LocalSet, spawn_local},
};

use super::{
    Code, KeepAlive, client,
    frame::{self, Head},
    server::serve,
};
use crate::http::{Body, Error, Incoming, SendError, tunnel};

mod abuse;

async fn local<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), LocalSet::new().run_until(test)).await.unwrap()
}

async fn collect(mut body: Incoming) -> Result<(Vec<u8>, Option<HeaderMap>), Error> {
    let (mut all, mut trailers) = (Vec::new(), None);
    while let Some(frame) = poll_fn(|cx| body.poll(cx)).await {
        match frame?.into_data() {
            Ok(data) => all.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((all, trailers))
}

/// By its path: `/echo` says back what it gets, trailers too, `/bytes/N` gives N bytes, `/never` nothing.
async fn app(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if let Some(n) = path.strip_prefix("/bytes/") {
        return Response::new(Body::Full(vec![b'x'; n.parse().unwrap()].into()));
    }
    match &*path {
        "/never" => std::future::pending().await,
        "/early" => Response::new(Body::Full("early".into())),
        "/stream" => {
            let (sender, body) = tunnel::channel();
            spawn_local(async move {
                for _ in 0..1_000 {
                    sender.send(Bytes::from_static(&[b'y'; 5_000])).await;
                }
            });
            Response::new(Body::Tunnel(body))
        }
        _ => match collect(request.into_body()).await {
            Ok((body, trailers)) => {
                let mut response = Response::new(Body::Full(body.into()));
                if let Some(trailers) = trailers {
                    response.headers_mut().insert("x-trailer", trailers["t"].clone());
                }
                response
            }
            Err(_) => Response::builder().status(500).body(Body::Empty).unwrap(),
        },
    }
}

fn served() -> DuplexStream {
    let (near, far) = tokio::io::duplex(100_000);
    spawn_local(async move { serve(far, app, std::future::pending()).await });
    near
}

fn ours() -> client::Sender {
    let (sender, driver) = client::start(served(), None);
    spawn_local(driver);
    sender
}

fn request(method: &str, path: &str, body: Body) -> Request<Body> {
    Request::builder().method(method).uri(format!("http://a.mesh{path}")).body(body).unwrap()
}

async fn send(sender: &client::Sender, request: Request<Body>) -> Result<Response<Incoming>, SendError> {
    let (head, body) = request.into_parts();
    sender.send(&head, body).await
}

async fn ask(sender: &client::Sender, method: &str, path: &str, body: Body) -> Result<(u16, Vec<u8>), Error> {
    let response = send(sender, request(method, path, body)).await.map_err(|e: SendError| e.error)?;
    let status = response.status().as_u16();
    Ok((status, collect(response.into_body()).await?.0))
}

#[tokio::test]
async fn ours_with_ours() {
    local(async {
        let sender = ours();
        for n in [0, 1, 1_024, 16_384, 16_385, 70_000, 5_000_000] {
            let (status, got) = ask(&sender, "GET", &format!("/bytes/{n}"), Body::Empty).await.unwrap();
            assert_eq!((status, got.len()), (200, n));
            let (_, got) = ask(&sender, "POST", "/echo", Body::Full(vec![b'z'; n].into())).await.unwrap();
            assert_eq!(got.len(), n);
        }
        let (status, got) = ask(&sender, "HEAD", "/bytes/9", Body::Empty).await.unwrap();
        assert_eq!((status, got.len()), (200, 0));
        let all = (0..300).map(|i| {
            let sender = &sender;
            async move { ask(sender, "GET", &format!("/bytes/{}", i * 100), Body::Empty).await.unwrap().1.len() }
        });
        let sizes = futures_util::future::join_all(all).await;
        assert!(sizes.into_iter().enumerate().all(|(i, n)| n == i * 100));
        let (_, got) = ask(&sender, "GET", "/stream", Body::Empty).await.unwrap();
        assert_eq!(got.len(), 5_000_000);
    })
    .await;
}

#[tokio::test]
async fn an_upload_streams_and_an_early_answer_is_heard() {
    local(async {
        let sender = ours();
        let (feed, body) = tunnel::channel();
        let feeding = async move {
            for _ in 0..500 {
                feed.send(Bytes::from_static(&[b'u'; 9_000])).await;
            }
        };
        let (got, ()) = tokio::join!(ask(&sender, "POST", "/echo", Body::Tunnel(body)), feeding);
        assert_eq!(got.unwrap().1.len(), 4_500_000);
        let (_feed, body) = tunnel::channel();
        let (_, got) = ask(&sender, "POST", "/early", Body::Tunnel(body)).await.unwrap();
        assert_eq!(got, b"early");
        assert_eq!(ask(&sender, "GET", "/bytes/3", Body::Empty).await.unwrap().1, b"xxx");
    })
    .await;
}

#[tokio::test]
async fn a_client_of_hypers_is_served() {
    local(async {
        let (mut sender, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(served())).await.unwrap();
        spawn_local(driver);
        for n in [0, 1, 1_024, 70_000, 3_000_000] {
            let ask = Request::get(format!("http://a/bytes/{n}")).body(String::new()).unwrap();
            let got = sender.send_request(ask).await.unwrap().into_body().collect().await.unwrap().to_bytes();
            assert_eq!(got.len(), n);
            let ask = Request::post("http://a/echo").body("p".repeat(n)).unwrap();
            let got = sender.send_request(ask).await.unwrap().into_body().collect().await.unwrap().to_bytes();
            assert_eq!(got.len(), n);
        }
        // A head in several frames, and one that is too large.
        let ask = Request::get("http://a/bytes/1").header("x", "v".repeat(40_000)).body(String::new()).unwrap();
        assert_eq!(sender.send_request(ask).await.unwrap().status(), 200);
        let ask = Request::get("http://a/bytes/1").header("x", "v".repeat(70_000)).body(String::new()).unwrap();
        let refused = sender.send_request(ask).await;
        assert!(refused.is_err() || refused.unwrap().status() == 431);
    })
    .await;
}

#[tokio::test]
async fn a_server_of_hypers_is_asked() {
    local(async {
        let (near, far) = tokio::io::duplex(100_000);
        let service = hyper::service::service_fn(async |request: Request<hyper::body::Incoming>| {
            let all = request.into_body().collect().await.unwrap();
            let trailer = all.trailers().map(|t| t["t"].clone());
            let mut response = Response::new(http_body_util::Full::new(all.to_bytes()));
            if let Some(trailer) = trailer {
                response.headers_mut().insert("x-trailer", trailer);
            }
            Ok::<_, std::convert::Infallible>(response)
        });
        spawn_local(async move {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(3)
                .serve_connection(TokioIo::new(far), service)
                .await
        });
        let (sender, driver) = client::start(near, None);
        spawn_local(driver);
        for n in [0, 1, 70_000, 3_000_000] {
            let (_, got) = ask(&sender, "POST", "/echo", Body::Full(vec![b'z'; n].into())).await.unwrap();
            assert_eq!(got.len(), n);
        }
        // More than it takes at once wait for each other.
        let all = (0..50).map(|_| ask(&sender, "POST", "/", Body::Full("q".into())));
        assert!(futures_util::future::join_all(all).await.into_iter().all(|got| got.unwrap().1 == b"q"));
    })
    .await;
}

#[tokio::test]
async fn who_goes_away_ends_the_work_and_the_connection_goes_on() {
    local(async {
        struct Gone(Rc<Cell<bool>>);
        impl Drop for Gone {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let gone = Rc::new(Cell::new(false));
        let watch = Rc::clone(&gone);
        let handler = move |request: Request<Incoming>| {
            let gone = Gone(Rc::clone(&watch));
            async move {
                if request.uri().path() == "/never" {
                    std::future::pending::<()>().await;
                }
                std::mem::forget(gone);
                Response::new(Body::Full("here".into()))
            }
        };
        let (near, far) = tokio::io::duplex(100_000);
        spawn_local(async move { serve(far, handler, std::future::pending()).await });
        let (sender, driver) = client::start(near, None);
        let driven = spawn_local(driver);
        let waiting = ask(&sender, "GET", "/never", Body::Empty);
        assert!(tokio::time::timeout(Duration::from_millis(20), waiting).await.is_err());
        assert_eq!(ask(&sender, "GET", "/", Body::Empty).await.unwrap().1, b"here");
        assert!(gone.get());
        drop(sender);
        driven.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn finishing_lets_the_streams_under_way_end() {
    local(async {
        let (near, far) = tokio::io::duplex(100_000);
        let slow = async |_| {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Response::new(Body::Full("late".into()))
        };
        let serving = spawn_local(serve(far, slow, tokio::time::sleep(Duration::from_millis(30))));
        let (sender, driver) = client::start(near, None);
        spawn_local(driver);
        let under_way = ask(&sender, "GET", "/", Body::Empty).await;
        assert_eq!(under_way.unwrap().1, b"late");
        let e = send(&sender, request("GET", "/", Body::Empty)).await.unwrap_err();
        assert!(e.unsent, "{e:?}");
        serving.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn who_does_not_answer_is_given_up() {
    local(async {
        let (near, _far) = tokio::io::duplex(100_000);
        let every = Duration::from_millis(40);
        let (sender, driver) = client::start(near, Some(KeepAlive { every, timeout: every, idle: false }));
        spawn_local(driver);
        let e = ask(&sender, "GET", "/", Body::Empty).await.unwrap_err();
        assert!(matches!(e, Error::Silent(_)), "{e:?}");
    })
    .await;
}

/// A client of bytes.
struct Raw {
    io: DuplexStream,
    out: BytesMut,
}

impl Raw {
    async fn open() -> Self {
        let mut out = BytesMut::from(frame::PREFACE);
        frame::settings(&mut out, &[]);
        Self { io: served(), out }
    }

    /// A request for `path` on stream `id`, as literals.
    fn ask(&mut self, id: u32, path: &str, end: bool) {
        let mut block = vec![0x82, 0x86, 0x04, path.len() as u8];
        block.extend_from_slice(path.as_bytes());
        block.extend_from_slice(b"\x01\x01a");
        let flags = frame::END_HEADERS | if end { frame::END_STREAM } else { 0 };
        frame::put(&mut self.out, frame::HEADERS, flags, id, &block);
    }

    /// Sends what there is.
    async fn flush(&mut self) {
        self.io.write_all(&self.out).await.unwrap();
        self.out.clear();
    }

    /// Sends all, and gives the frames that come until the connection ends or is silent.
    async fn hear(mut self) -> Vec<(Head, Vec<u8>)> {
        // What it does not take any more it has refused.
        let _ = tokio::time::timeout(Duration::from_millis(200), self.io.write_all(&self.out)).await;
        let mut heard = Vec::new();
        while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_millis(100), self.io.read_buf(&mut heard)).await {}
        let mut frames = Vec::new();
        let mut rest = &heard[..];
        while let Some(head) = Head::read(rest) {
            frames.push((head, rest[frame::HEAD..frame::HEAD + head.len].to_vec()));
            rest = &rest[frame::HEAD + head.len..];
        }
        frames
    }
}

/// The code of the GOAWAY among them.
fn gone(frames: &[(Head, Vec<u8>)]) -> Option<Code> {
    let (_, payload) = frames.iter().find(|(head, _)| head.kind == frame::GOAWAY)?;
    Some(Code(u32::from_be_bytes(*payload[4..].first_chunk().unwrap())))
}

#[tokio::test]
async fn what_was_asked_before_the_end_is_not_called_undone() {
    local(async {
        let mut raw = Raw::open().await;
        raw.ask(1, "/never", true);
        raw.ask(3, "/never", true);
        frame::put(&mut raw.out, frame::PING, 0, 0, &[0; 7]);
        let heard = raw.hear().await;
        let (_, goodbye) = heard.iter().find(|(head, _)| head.kind == frame::GOAWAY).unwrap();
        assert_eq!(goodbye[..4], [0, 0, 0, 3]);
    })
    .await;
}

#[tokio::test]
async fn a_wait_for_a_stream_that_was_given_up_does_not_hold_up_the_next() {
    local(async {
        let (near, far) = tokio::io::duplex(100_000);
        let service = hyper::service::service_fn(async |_| {
            tokio::time::sleep(Duration::from_millis(80)).await;
            Ok::<_, std::convert::Infallible>(Response::new(http_body_util::Empty::<Bytes>::new()))
        });
        spawn_local(async move {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(1)
                .serve_connection(TokioIo::new(far), service)
                .await
        });
        let (sender, driver) = client::start(near, None);
        spawn_local(driver);
        ask(&sender, "GET", "/", Body::Empty).await.unwrap();
        let given_up = async {
            let _ = tokio::time::timeout(Duration::from_millis(20), ask(&sender, "GET", "/", Body::Empty)).await;
        };
        let (first, (), second) =
            tokio::join!(ask(&sender, "GET", "/", Body::Empty), given_up, ask(&sender, "GET", "/", Body::Empty));
        assert_eq!((first.unwrap().0, second.unwrap().0), (200, 200));
    })
    .await;
}

/// The code of the RST_STREAM of a stream.
fn reset(frames: &[(Head, Vec<u8>)], id: u32) -> Option<Code> {
    let (_, payload) = frames.iter().find(|(head, _)| head.kind == frame::RST_STREAM && head.id == id)?;
    Some(Code(u32::from_be_bytes(*payload.first_chunk().unwrap())))
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection() {
    type Break = fn(&mut Raw);
    let cases: [(&str, Code, Break); 18] = [
        ("a frame too large", Code::FRAME_SIZE_ERROR, |raw| frame::put(&mut raw.out, 99, 0, 0, &[0; 16_385])),
        ("DATA on an idle stream", Code::PROTOCOL_ERROR, |raw| frame::put(&mut raw.out, frame::DATA, 0, 7, b"x")),
        ("HEADERS on an even stream", Code::PROTOCOL_ERROR, |raw| raw.ask(2, "/", true)),
        ("SETTINGS on a stream", Code::PROTOCOL_ERROR, |raw| frame::put(&mut raw.out, frame::SETTINGS, 0, 1, &[])),
        ("SETTINGS of 5 bytes", Code::FRAME_SIZE_ERROR, |raw| frame::put(&mut raw.out, frame::SETTINGS, 0, 0, &[0; 5])),
        ("a window out of bounds", Code::FLOW_CONTROL_ERROR, |raw| {
            frame::settings(&mut raw.out, &[(frame::INITIAL_WINDOW_SIZE, 0x8000_0000)]);
        }),
        ("a frame size out of bounds", Code::PROTOCOL_ERROR, |raw| {
            frame::settings(&mut raw.out, &[(frame::MAX_FRAME_SIZE, 1)]);
        }),
        ("the connection's window too large", Code::FLOW_CONTROL_ERROR, |raw| {
            frame::window_update(&mut raw.out, 0, 0x7fff_ffff);
        }),
        ("PING of 7 bytes", Code::FRAME_SIZE_ERROR, |raw| frame::put(&mut raw.out, frame::PING, 0, 0, &[0; 7])),
        ("PUSH_PROMISE", Code::PROTOCOL_ERROR, |raw| frame::put(&mut raw.out, frame::PUSH_PROMISE, 0, 1, &[0; 4])),
        ("CONTINUATION of nothing", Code::PROTOCOL_ERROR, |raw| {
            frame::put(&mut raw.out, frame::CONTINUATION, 0, 1, &[]);
        }),
        ("a head broken off", Code::PROTOCOL_ERROR, |raw| {
            frame::put(&mut raw.out, frame::HEADERS, 0, 1, &[0x82]);
            frame::put(&mut raw.out, frame::PING, 0, 0, &[0; 8]);
        }),
        ("a head without end", Code::ENHANCE_YOUR_CALM, |raw| {
            frame::put(&mut raw.out, frame::HEADERS, 0, 1, &[0x82]);
            (0..100).for_each(|_| frame::put(&mut raw.out, frame::CONTINUATION, 0, 1, &[]));
        }),
        ("padding without room", Code::PROTOCOL_ERROR, |raw| {
            frame::put(&mut raw.out, frame::HEADERS, frame::PADDED | frame::END_HEADERS, 1, &[9, 0x82]);
        }),
        ("fields that cannot be read", Code::COMPRESSION_ERROR, |raw| {
            frame::put(&mut raw.out, frame::HEADERS, frame::END_HEADERS, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        }),
        ("resets without end", Code::ENHANCE_YOUR_CALM, |raw| {
            for i in 0..1_100 {
                raw.ask(i * 2 + 1, "/never", true);
                frame::reset(&mut raw.out, i * 2 + 1, Code::CANCEL);
            }
        }),
        ("frames that do nothing", Code::ENHANCE_YOUR_CALM, |raw| {
            (0..1_100).for_each(|_| frame::put(&mut raw.out, 99, 0, 0, &[]));
        }),
        ("empty DATA without end", Code::ENHANCE_YOUR_CALM, |raw| {
            raw.ask(1, "/echo", false);
            (0..1_100).for_each(|_| frame::put(&mut raw.out, frame::DATA, 0, 1, &[]));
        }),
    ];
    for (name, code, breaks) in cases {
        local(async {
            let mut raw = Raw::open().await;
            breaks(&mut raw);
            assert_eq!(gone(&raw.hear().await), Some(code), "{name}");
        })
        .await;
    }
}

#[tokio::test]
async fn what_breaks_a_request_ends_its_stream_alone() {
    type Break = fn(&mut Raw);
    let cases: [(&str, Code, Break); 6] = [
        ("more than it said", Code::PROTOCOL_ERROR, |raw| {
            let block = [b"\x83\x86\x84\x01\x01a".as_slice(), b"\x0f\x0d\x012"].concat();
            frame::put(&mut raw.out, frame::HEADERS, frame::END_HEADERS, 1, &block);
            frame::put(&mut raw.out, frame::DATA, frame::END_STREAM, 1, b"abc");
        }),
        ("less than it said", Code::PROTOCOL_ERROR, |raw| {
            let block = [b"\x83\x86\x84\x01\x01a".as_slice(), b"\x0f\x0d\x012"].concat();
            frame::put(&mut raw.out, frame::HEADERS, frame::END_HEADERS, 1, &block);
            frame::put(&mut raw.out, frame::DATA, frame::END_STREAM, 1, b"a");
        }),
        ("a connection's header", Code::PROTOCOL_ERROR, |raw| {
            let block = [b"\x82\x86\x84\x01\x01a".as_slice(), b"\x00\x0aconnection\x05close"].concat();
            frame::put(&mut raw.out, frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, &block);
        }),
        ("no path", Code::PROTOCOL_ERROR, |raw| {
            frame::put(&mut raw.out, frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, b"\x82\x86\x01\x01a");
        }),
        ("a name in upper case", Code::PROTOCOL_ERROR, |raw| {
            let block = b"\x82\x86\x84\x00\x01X\x01y";
            frame::put(&mut raw.out, frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, block);
        }),
        ("a window of nothing", Code::PROTOCOL_ERROR, |raw| {
            raw.ask(1, "/never", true);
            frame::window_update(&mut raw.out, 1, 0);
        }),
    ];
    for (name, code, breaks) in cases {
        local(async {
            let mut raw = Raw::open().await;
            breaks(&mut raw);
            raw.ask(3, "/bytes/2", true);
            let heard = raw.hear().await;
            assert_eq!((reset(&heard, 1), gone(&heard)), (Some(code), None), "{name}");
            assert!(
                heard.iter().any(|(head, data)| head.kind == frame::DATA && head.id == 3 && data == b"xx"),
                "{name}"
            );
        })
        .await;
    }
}

#[tokio::test]
async fn more_streams_than_are_taken_are_refused_and_windows_are_kept() {
    local(async {
        let mut raw = Raw::open().await;
        (0..1_025).for_each(|i| raw.ask(i * 2 + 1, "/never", true));
        let heard = raw.hear().await;
        assert_eq!(reset(&heard, 2_049), Some(Code::REFUSED_STREAM));
        assert_eq!(heard.iter().filter(|(head, _)| head.kind == frame::RST_STREAM).count(), 1);
        // Nobody reads: what is beyond the window of a stream ends it.
        let mut raw = Raw::open().await;
        raw.ask(1, "/never", false);
        (0..65).for_each(|_| frame::put(&mut raw.out, frame::DATA, 0, 1, &[0; 16_384]));
        assert_eq!(reset(&raw.hear().await, 1), Some(Code::FLOW_CONTROL_ERROR));
        // A window of 10 bytes gets 10 bytes.
        let mut raw = Raw::open().await;
        frame::settings(&mut raw.out, &[(frame::INITIAL_WINDOW_SIZE, 10)]);
        raw.ask(1, "/bytes/100", true);
        let heard = raw.hear().await;
        let sent: usize = heard.iter().filter(|(head, _)| head.kind == frame::DATA).map(|(head, _)| head.len).sum();
        assert_eq!(sent, 10);
    })
    .await;
}

#[tokio::test]
async fn noise_is_survived() {
    for _ in 0..3_000 {
        local(async {
            let mut raw = Raw::open().await;
            for _ in 0..fastrand::usize(1..10) {
                if fastrand::bool() {
                    raw.ask(fastrand::u32(0..9), "/echo", fastrand::bool());
                } else {
                    let noise: Vec<u8> = (0..fastrand::usize(0..40)).map(|_| fastrand::u8(..)).collect();
                    frame::put(&mut raw.out, fastrand::u8(0..11), fastrand::u8(..), fastrand::u32(0..9), &noise);
                }
            }
            raw.out.extend((0..fastrand::usize(0..20)).map(|_| fastrand::u8(..)));
            let (mut near, far) = tokio::io::duplex(1 << 20);
            near.write_all(&raw.out).await.unwrap();
            near.shutdown().await.unwrap();
            // Only that it ends.
            let _ = serve(far, app, std::future::pending()).await;
        })
        .await;
    }
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    fn frames() -> impl http_body::Body<Data = Bytes, Error = std::convert::Infallible> + Unpin {
        let mut trailers = HeaderMap::new();
        trailers.insert("t", HeaderValue::from_static("1"));
        let frames = [http_body::Frame::data(Bytes::from_static(b"body")), http_body::Frame::trailers(trailers)];
        http_body_util::StreamBody::new(futures_util::stream::iter(frames.map(Ok)))
    }
    local(async {
        let (mut sender, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(served())).await.unwrap();
        spawn_local(driver);
        let response = sender.send_request(Request::post("http://a/echo").body(frames()).unwrap()).await.unwrap();
        assert_eq!(response.headers()["x-trailer"], "1");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "body");

        let (near, far) = tokio::io::duplex(100_000);
        let service = hyper::service::service_fn(async |_| Ok::<_, std::convert::Infallible>(Response::new(frames())));
        spawn_local(async move {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(far), service)
                .await
        });
        let (sender, driver) = client::start(near, None);
        spawn_local(driver);
        let response = send(&sender, request("GET", "/", Body::Empty)).await.unwrap();
        let (body, trailers) = collect(response.into_body()).await.unwrap();
        assert_eq!((&*body, &trailers.unwrap()["t"]), (&b"body"[..], &HeaderValue::from_static("1")));
    })
    .await;
}
