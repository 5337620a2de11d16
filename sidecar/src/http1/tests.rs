//! Both sides of HTTP/1.1 against bytes as they are on the wire.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{cell::Cell, future::poll_fn, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    net::TcpStream,
    task::{LocalSet, spawn_local},
};

use super::{
    client::{Client, Pool},
    server::serve,
};
use crate::{
    http::{Body, Error, Incoming, SendError},
    net::{
        Accepted,
        accepted::{Accept as _, Listener},
        listen::bind_loopback,
    },
};

/// Takes a body to its end.
async fn collect(mut body: Incoming) -> Result<(Vec<u8>, Option<http::HeaderMap>), Error> {
    let (mut all, mut trailers) = (Vec::new(), None);
    while let Some(frame) = poll_fn(|cx| body.poll(cx)).await {
        match frame?.into_data() {
            Ok(data) => all.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((all, trailers))
}

/// Says back what it was sent: method, target, body, and the trailer `x`.
async fn echo(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    if parts.uri.path() == "/unread" {
        return Response::new(Body::Full("unread".into()));
    }
    let Ok((body, trailers)) = collect(body).await else {
        return Response::builder().status(500).body(Body::Empty).unwrap();
    };
    let trailer = trailers.map_or(String::new(), |t| format!(" x={}", t["x"].to_str().unwrap()));
    let text = format!("{} {} {}{trailer}", parts.method, parts.uri, String::from_utf8_lossy(&body));
    let mut response = Response::new(Body::Full(text.into()));
    if let Some(status) = parts.uri.path().strip_prefix("/status/") {
        *response.status_mut() = status.parse().unwrap();
    }
    response
}

async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

/// What the server answers to `said`, until it closes or `said` has been answered and the client closes.
async fn answers(said: &[u8]) -> (String, Result<(), Error>) {
    local(async {
        let (mut client, io) = tokio::io::duplex(1 << 20);
        let serving = spawn_local(serve(io, echo, std::future::pending()));
        client.write_all(said).await.unwrap();
        let mut heard = Vec::new();
        // A client that closes its side is taken for gone, so this one waits until there is silence.
        while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_millis(100), client.read_buf(&mut heard)).await {}
        drop(client);
        (String::from_utf8(heard).unwrap(), serving.await.unwrap())
    })
    .await
}

#[tokio::test]
async fn requests_are_answered_in_their_order_however_they_arrive() {
    let said = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n\r\nPOST /b HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nxyz\
        POST /c HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2;e=1\r\nhe\r\n3\r\nllo\r\n0\r\nx: 1\r\n\r\n\
        HEAD /d HTTP/1.1\r\nhost: h\r\n\r\nGET /status/204 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let heard = "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nGET /a \
        HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nPOST /b xyz\
        HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\nPOST /c hello x=1\
        HTTP/1.1 200 OK\r\n\r\n\
        HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
    let (at_once, ended) = answers(said).await;
    assert_eq!(at_once, heard);
    ended.unwrap();
    // In two pieces, cut at each place.
    for at in 1..said.len() {
        let heard_in_two = local(async {
            let (mut client, io) = tokio::io::duplex(1 << 20);
            let serving = spawn_local(serve(io, echo, std::future::pending()));
            client.write_all(&said[..at]).await.unwrap();
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
            client.write_all(&said[at..]).await.unwrap();
            let mut heard = String::new();
            client.read_to_string(&mut heard).await.unwrap();
            serving.await.unwrap().unwrap();
            heard
        })
        .await;
        assert_eq!(heard_in_two, heard, "cut at {at}");
    }
}

#[tokio::test]
async fn what_two_readers_could_read_differently_is_refused() {
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "a: b\r\n".repeat(101));
    let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(70_000));
    let big = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(140_000));
    for (bad, status) in [
        ("GET / HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.1\r\nhost: a\r\n folded: b\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.1\r\nhost: a\rb\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.1\r\nhost: a\0\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/2.0\r\nhost: a\r\n\r\n", "400 Bad Request"),
        ("GET  / HTTP/1.1\r\nhost: a\r\n\r\n", "400 Bad Request"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", "400 Bad Request"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\nx", "400 Bad Request"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 1\r\n\r\nx", "400 Bad Request"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\nx", "400 Bad Request"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", "400 Bad Request"),
        ("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n", "400 Bad Request"),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n", "501 Not Implemented"),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n", "501 Not Implemented"),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            "501 Not Implemented",
        ),
        ("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", "501 Not Implemented"),
        (&*long, "414 URI Too Long"),
        (&*many, "431 Request Header Fields Too Large"),
        (&*big, "431 Request Header Fields Too Large"),
    ] {
        let (said, ended) = answers(bad.as_bytes()).await;
        let shown = &bad[..bad.len().min(200)];
        assert!(said.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{shown:?}: {said}");
        assert!(said.contains("\r\noutrigger-error: bad_request\r\n"), "{shown:?}: {said}");
        assert!(said.contains("\r\nconnection: close\r\n"), "{shown:?}: {said}");
        assert!(ended.unwrap_err().is_parse(), "{shown:?}");
    }
    // A length that is said twice alike is one length.
    let (said, _) = answers(b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx").await;
    assert!(said.ends_with("POST / x"), "{said}");
}

#[tokio::test]
async fn a_chunked_body_that_is_none_breaks_off() {
    let extended = format!("1;{}\r\na\r\n", "e".repeat(4_000)).repeat(5);
    for bad in [
        &*extended,
        "5\r\r\nhello\r\n",
        "5\x0c\r\nhello\r\n",
        "x\r\n",
        "5\nhello\r\n",
        "5\r\nhelloX\r\n",
        "5 5\r\n",
        "\r\n",
        "10000000000000000\r\n",
        "-1\r\n",
    ] {
        let said =
            format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{bad}0\r\n\r\nGET /next HTTP/1.1\r\n\r\n");
        let (said, _) = answers(said.as_bytes()).await;
        assert!(said.starts_with("HTTP/1.1 500 "), "{bad:?}: {said}");
        assert!(!said.contains("/next"), "{bad:?}: {said}");
    }
}

#[tokio::test]
async fn leave_to_send_a_body_is_given_when_somebody_wants_it() {
    let ask = "POST /a HTTP/1.1\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n";
    let (said, _) = answers(ask.as_bytes()).await;
    assert_eq!(said, "HTTP/1.1 100 Continue\r\n\r\n");
    let (said, _) = answers(format!("{ask}ab").as_bytes()).await;
    assert_eq!(said, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nPOST /a ab");
    // Who answers without it cannot know what comes next.
    let (said, _) = answers(ask.replace("/a", "/unread").as_bytes()).await;
    assert_eq!(said, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 6\r\n\r\nunread");
}

#[tokio::test]
async fn a_body_that_nobody_took_is_read_over() {
    let said = "POST /unread HTTP/1.1\r\ncontent-length: 100000\r\n\r\n".to_owned()
        + &"x".repeat(100_000)
        + "GET /next HTTP/1.1\r\n\r\n";
    let (said, _) = answers(said.as_bytes()).await;
    assert!(said.contains("unreadHTTP/1.1 200 OK") && said.ends_with("GET /next "), "{said}");
}

#[tokio::test]
async fn http_1_0_closes_unless_it_was_asked_not_to() {
    let (said, _) = answers(b"GET /a HTTP/1.0\r\n\r\nGET /b HTTP/1.0\r\n\r\n").await;
    assert_eq!(said, "HTTP/1.0 200 OK\r\nconnection: close\r\ncontent-length: 7\r\n\r\nGET /a ");
    let (said, _) = answers(b"GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET /b HTTP/1.0\r\n\r\n").await;
    assert_eq!(said.matches("HTTP/1.0 200 OK").count(), 2, "{said}");
}

#[tokio::test]
async fn finishing_ends_an_idle_connection_and_lets_a_request_finish() {
    local(async {
        let (client, io) = tokio::io::duplex(1 << 20);
        serve(io, echo, std::future::ready(())).await.unwrap();
        drop(client);
        let (mut client, io) = tokio::io::duplex(1 << 20);
        client.write_all(b"POST /a HTTP/1.1\r\ncontent-length: 2\r\n\r\na").await.unwrap();
        let serving = spawn_local(serve(io, echo, tokio::time::sleep(Duration::from_millis(20))));
        tokio::time::sleep(Duration::from_millis(60)).await;
        client.write_all(b"b").await.unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).await.unwrap();
        assert!(said.contains("connection: close") && said.ends_with("POST /a ab"), "{said}");
        serving.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn who_asks_for_more_and_then_closes_its_half_gets_its_first_answer() {
    local(async {
        let (mut client, io) = tokio::io::duplex(1 << 20);
        let slow = async |request: Request<Incoming>| {
            tokio::time::sleep(Duration::from_millis(30)).await;
            echo(request).await
        };
        let serving = spawn_local(serve(io, slow, std::future::pending()));
        client.write_all(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n").await.unwrap();
        client.shutdown().await.unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).await.unwrap();
        assert!(said.contains("GET /a "), "{said}");
        // A client that has closed its half is taken for gone.
        assert!(matches!(serving.await.unwrap(), Err(Error::Closed)));
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_its_upload_unfinished_ends_the_answer() {
    local(async {
        let (mut client, io) = tokio::io::duplex(1 << 20);
        let endless = async |request: Request<Incoming>| {
            let (sender, body) = crate::http::tunnel::channel();
            // The upload is read by a task of its own.
            spawn_local(async move { collect(request.into_body()).await });
            sender.send(Bytes::from_static(b"early")).await;
            std::mem::forget(sender);
            Response::new(Body::Tunnel(body))
        };
        let serving = spawn_local(serve(io, endless, std::future::pending()));
        client.write_all(b"POST /a HTTP/1.1\r\ncontent-length: 10\r\n\r\nabc").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(client);
        let ended = tokio::time::timeout(Duration::from_secs(1), serving).await.unwrap().unwrap();
        assert!(ended.is_err(), "{ended:?}");
    })
    .await;
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_work_for_it() {
    local(async {
        struct Gone(Rc<Cell<bool>>);
        impl Drop for Gone {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let (mut client, io) = tokio::io::duplex(1 << 20);
        let gone = Rc::new(Cell::new(false));
        let watch = Rc::clone(&gone);
        let handler = move |_| {
            let gone = Gone(Rc::clone(&watch));
            async move {
                std::future::pending::<()>().await;
                drop(gone);
                Response::new(Body::Empty)
            }
        };
        let serving = spawn_local(serve(io, handler, std::future::pending()));
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        tokio::task::yield_now().await;
        assert!(!gone.get());
        drop(client);
        assert!(matches!(serving.await.unwrap(), Err(Error::Closed)));
        assert!(gone.get());
    })
    .await;
}

#[tokio::test]
async fn a_client_that_goes_away_is_noticed_also_on_a_connection_that_nobody_watches() {
    struct Gone(Rc<Cell<bool>>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    local(async {
        let listener = bind_loopback(0).unwrap().remove(0);
        let address = listener.local_addr().unwrap();
        let listener = Listener::new(listener).unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let (begun, gone) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let handler = {
            let (begun, gone) = (Rc::clone(&begun), Rc::clone(&gone));
            move |_| {
                begun.set(true);
                let gone = Gone(Rc::clone(&gone));
                async move {
                    let _gone = gone;
                    std::future::pending().await
                }
            }
        };
        let io = Accepted::unwatched(socket, bytes::BytesMut::from("GET / HTTP/1.1\r\nhost: h\r\n\r\n"));
        let serving = spawn_local(serve(io, handler, std::future::pending()));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(begun.get() && !gone.get());
        client.shutdown().await.unwrap();
        drop(client);
        let ended = tokio::time::timeout(Duration::from_secs(5), serving).await;
        assert!(ended.unwrap().unwrap().is_err());
        assert!(gone.get());
    })
    .await;
}

#[tokio::test]
async fn noise_is_survived() {
    let parts: [&[u8]; 12] = [
        b"GET / HTTP/1.1\r\n",
        b"POST /a HTTP/1.1\r\n",
        b"content-length: 5\r\n",
        b"transfer-encoding: chunked\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"expect: 100-continue\r\n",
        b"\n",
        b"\0\xff",
        b"host: a\r\n",
    ];
    for _ in 0..2_000 {
        let mut noise = Vec::new();
        for _ in 0..fastrand::usize(1..12) {
            if fastrand::u8(..) < 200 {
                noise.extend_from_slice(parts[fastrand::usize(..parts.len())]);
            } else {
                noise.extend((0..fastrand::usize(..20)).map(|_| fastrand::u8(..)));
            }
        }
        local(async {
            let (mut client, io) = tokio::io::duplex(1 << 16);
            let serving = spawn_local(serve(io, echo, std::future::pending()));
            client.write_all(&noise).await.unwrap();
            client.shutdown().await.unwrap();
            let mut said = Vec::new();
            client.read_to_end(&mut said).await.unwrap();
            let _ = tokio::time::timeout(Duration::from_secs(5), serving).await.unwrap().unwrap();
        })
        .await;
    }
}

/// A client and the other end of its connection.
fn pair() -> (Rc<Pool>, Client, DuplexStream) {
    let pool = Rc::new(Pool::default());
    let (io, server) = tokio::io::duplex(1 << 20);
    let client = Client::new(io, &pool);
    (pool, client, server)
}

fn get() -> Request<Body> {
    Request::get("/x?y").header("host", "h").body(Body::Empty).unwrap()
}

async fn send(client: Client, request: Request<Body>) -> Result<Response<Incoming>, SendError> {
    let (head, body) = request.into_parts();
    client.send(&head, body).await
}

/// What a client makes of `answer`, and whether its connection can be used again.
async fn hears(answer: &[u8]) -> (Result<(StatusCode, Vec<u8>), Error>, bool) {
    local(async {
        let (pool, client, mut server) = pair();
        let answering = async {
            let mut asked = vec![0; 29];
            server.read_exact(&mut asked).await.unwrap();
            assert_eq!(asked, b"GET /x?y HTTP/1.1\r\nhost: h\r\n\r\n"[..29]);
            server.write_all(answer).await.unwrap();
            if !answer.windows(2).any(|w| w == b"~~") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            server
        };
        let asking = async {
            let response = send(client, get()).await.map_err(|e: SendError| e.error)?;
            let status = response.status();
            Ok((status, collect(response.into_body()).await?.0))
        };
        let (heard, server) = tokio::join!(
            async { tokio::time::timeout(Duration::from_millis(200), asking).await.unwrap_or(Err(Error::Closed)) },
            answering
        );
        let reusable = pool.take().is_some();
        drop(server);
        (heard, reusable)
    })
    .await
}

#[tokio::test]
async fn responses_end_where_they_end() {
    for (answer, body, reusable) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab", Ok("ab"), true),
        ("HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nab", Ok("ab"), true),
        ("HTTP/1.1 204 No Content\r\n\r\n", Ok(""), true),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n", Ok(""), true),
        ("HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na", Ok("a"), true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", Ok("a"), true),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            Ok("a"),
            false,
        ),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\na", Ok("a"), false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na", Ok("a"), false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\naHTTP/1.1 200 OK\r\n", Ok("a"), false),
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", Err("it switches protocols"), false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", Err("its transfer coding"), false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na", Err("content-length"), false),
        ("SSH-2.0-x\r\n", Err("its head is not HTTP/1.1"), false),
    ] {
        let (heard, again) = hears(answer.as_bytes()).await;
        match (heard, body) {
            (Ok((_, heard)), Ok(body)) => assert_eq!(String::from_utf8_lossy(&heard), body, "{answer:?}"),
            (Err(e), Err(words)) => assert!(e.to_string().starts_with(words), "{answer:?}: {e}"),
            (heard, _) => panic!("{answer:?}: {heard:?}"),
        }
        assert_eq!(again, reusable, "{answer:?}");
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_is_no_end() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n",
    ] {
        local(async {
            let (_, client, mut server) = pair();
            server.write_all(answer.as_bytes()).await.unwrap();
            let response = send(client, get()).await.unwrap();
            drop(server);
            assert!(matches!(collect(response.into_body()).await, Err(Error::Incomplete)), "{answer:?}");
        })
        .await;
    }
    // Without a length the end of the connection is that of the body.
    local(async {
        let (_, client, mut server) = pair();
        server.write_all(b"HTTP/1.1 200 OK\r\n\r\nall").await.unwrap();
        let response = send(client, get()).await.unwrap();
        drop(server);
        assert_eq!(collect(response.into_body()).await.unwrap().0, b"all");
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_not_used_and_nothing_was_sent_on_a_dead_one() {
    local(async {
        let (pool, client, mut server) = pair();
        server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        send(client, get()).await.unwrap();
        drop(server);
        assert!(pool.take().is_none());
        let (_, client, server) = pair();
        drop(server);
        let e = send(client, get()).await.unwrap_err();
        assert!(e.unsent, "{e:?}");
    })
    .await;
}

#[tokio::test]
async fn an_early_answer_is_heard_and_the_upload_goes_on() {
    local(async {
        let (pool, client, mut server) = pair();
        let (sender, body) = crate::http::tunnel::channel();
        let request = Request::post("/").header("host", "h").body(Body::Tunnel(body)).unwrap();
        server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        let response = send(client, request).await.unwrap();
        assert_eq!(collect(response.into_body()).await.unwrap().0, b"ok");
        assert!(pool.take().is_none(), "the upload still goes on");
        sender.send(Bytes::from_static(b"late")).await;
        drop(sender);
        let mut said = vec![0; 1_000];
        let mut all = String::new();
        while !all.ends_with("0\r\n\r\n") {
            let n = server.read(&mut said).await.unwrap();
            all.push_str(std::str::from_utf8(&said[..n]).unwrap());
        }
        assert!(all.contains("transfer-encoding: chunked\r\n\r\n4\r\nlate\r\n0\r\n\r\n"), "{all}");
        tokio::task::yield_now().await;
        assert!(pool.take().is_some());
    })
    .await;
}

#[tokio::test]
async fn cookies_that_came_apart_are_put_together() {
    local(async {
        let (_, client, mut server) = pair();
        let mut request = get();
        for cookie in ["a=1", "b=2"] {
            request.headers_mut().append("cookie", HeaderValue::from_static(cookie));
        }
        server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        send(client, request).await.unwrap();
        let mut said = Vec::new();
        server.read_buf(&mut said).await.unwrap();
        assert!(String::from_utf8(said).unwrap().contains("\r\ncookie: a=1; b=2\r\n"));
    })
    .await;
}
