//! What is sent again, what is not, whole, and elsewhere.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use outrigger_e2e::{
    harness::{
        self, Mesh, Pod, Reply, Shop,
        client::{Body, body},
        script::{self, Script},
        shop::{ORDERS, request, unhindered_orders},
    },
    pattern,
    workload::{body::PatternBody, grpc::FrameBody},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

/// What a request keeps of its body (`MAX_REPLAY` of the sidecar).
const REPLAY: usize = 64 * 1024;

/// A request that reached an application.
#[derive(Debug, Clone)]
struct Arrival {
    replica: usize,
    length: usize,
    is_pattern: bool,
}

/// Applications that read every request to its end, then answer the next of `statuses`, 200 when there is none left.
#[derive(Clone, Default)]
struct Applications {
    statuses: Arc<Mutex<Vec<u16>>>,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
}

impl Applications {
    fn at(&self, pod: &Pod, replica: usize) -> Script {
        let this = self.clone();
        script::http(pod, 8080, move |request: Request<Incoming>| {
            let this = this.clone();
            async move {
                let is_head = request.method() == Method::HEAD;
                let data = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                this.arrivals.lock().unwrap().push(Arrival {
                    replica,
                    length: data.len(),
                    is_pattern: pattern::matches(0, &data),
                });
                let mut statuses = this.statuses.lock().unwrap();
                let status = if statuses.is_empty() { 200 } else { statuses.remove(0) };
                Response::builder()
                    .status(status)
                    .body(body(if is_head { String::new() } else { format!("replica {replica}") }))
                    .unwrap()
            }
        })
    }

    fn next(&self, statuses: &[u16]) {
        *self.statuses.lock().unwrap() = statuses.to_vec();
    }

    fn taken(&self) -> Vec<Arrival> {
        std::mem::take(&mut self.arrivals.lock().unwrap())
    }
}

/// A shop whose applications are scripted.
async fn scripted(replicas: usize, settings: Value) -> (Shop, Applications, Vec<Script>) {
    let mut shop = Shop::open(Mesh::new(), replicas, 60, unhindered_orders(settings)).await;
    let script = Applications::default();
    let mut running = Vec::new();
    for (n, replica) in shop.replicas.iter_mut().enumerate() {
        replica.origin.kill();
        running.push(script.at(&replica.pod, n));
    }
    (shop, script, running)
}

async fn send(shop: &Shop, h2: bool, method: &Method, data: Body) -> Reply {
    shop.client.send(shop.replicas[0].pod.at4(8080), h2, request(h2, method, "/", data)).await
}

async fn retries(pod: &Pod, reason: &str) -> f64 {
    pod.metric("outrigger_retries_total", &[("service", ORDERS), ("reason", reason)]).await
}

#[test]
fn a_body_of_64_kib_is_sent_again_whole_and_one_byte_more_is_not() {
    harness::run(async {
        let (shop, script, _running) = scripted(2, json!({})).await;
        let mut again = 0.0;
        for (h2, sized) in [(false, true), (false, false), (true, true), (true, false)] {
            for size in [0, 1, REPLAY - 1, REPLAY, REPLAY + 1, 3 * REPLAY] {
                let context = format!("h2={h2} sized={sized} {size} B");
                // An idempotent method with a body.
                let data = if sized {
                    body(pattern::bytes(size))
                } else {
                    PatternBody::new(size as u64, false).boxed_unsync()
                };
                script.next(&[503]);
                let reply = send(&shop, h2, &Method::PUT, data).await;
                let arrivals = script.taken();
                let whole = arrivals.iter().all(|a| a.length == size && a.is_pattern);
                assert!(whole, "{context}: {arrivals:?}");
                if size <= REPLAY {
                    again += 1.0;
                    assert_eq!((reply.status.as_u16(), arrivals.len()), (200, 2), "{context}: {arrivals:?}");
                    assert_ne!(arrivals[0].replica, arrivals[1].replica, "{context}: elsewhere");
                } else {
                    assert_eq!((reply.status.as_u16(), arrivals.len()), (503, 1), "{context}: {arrivals:?}");
                    assert_eq!(reply.header("outrigger-error"), "", "{context}: it is the application's own answer");
                    assert_eq!(reply.text(), format!("replica {}", arrivals[0].replica), "{context}");
                }
            }
        }
        assert_eq!(retries(&shop.client, "status").await, again);
    });
}

#[test]
fn only_idempotent_methods_and_listed_codes_are_tried_again() {
    harness::run(async {
        let (shop, script, _running) = scripted(2, json!({})).await;
        let mut again = 0.0;
        for h2 in [false, true] {
            for (method, is_retried) in [
                (Method::GET, true),
                (Method::HEAD, true),
                (Method::PUT, true),
                (Method::DELETE, true),
                (Method::OPTIONS, true),
                (Method::POST, false),
                (Method::PATCH, false),
                (Method::from_bytes(b"PURGE").unwrap(), false),
            ] {
                script.next(&[503]);
                let reply = send(&shop, h2, &method, body("")).await;
                let arrived = script.taken().len();
                let expected = if is_retried { (200, 2) } else { (503, 1) };
                assert_eq!((reply.status.as_u16(), arrived), expected, "h2={h2} {method}");
                assert_eq!(reply.header("outrigger-error"), "", "h2={h2} {method}");
                again += f64::from(is_retried);
            }
        }
        for code in [500, 501, 502, 504, 429, 404] {
            script.next(&[code]);
            let reply = send(&shop, false, &Method::GET, body("")).await;
            assert_eq!((reply.status.as_u16(), script.taken().len()), (code, 1));
        }
        assert_eq!(retries(&shop.client, "status").await, again);

        let (shop, script, _running) = scripted(2, json!({ "retry": { "codes": [502, 429] } })).await;
        for (code, arrivals) in [(502, 2), (429, 2), (503, 1)] {
            script.next(&[code]);
            let reply = send(&shop, false, &Method::GET, body("")).await;
            let status = if arrivals == 2 { 200 } else { code };
            assert_eq!((reply.status.as_u16(), script.taken().len()), (status, arrivals), "{code}");
        }
    });
}

#[test]
fn each_try_goes_to_another_endpoint_and_there_are_no_more_than_allowed() {
    harness::run(async {
        let (shop, script, _running) = scripted(4, json!({ "retry": { "attempts": 3 } })).await;
        for _ in 0..25 {
            script.next(&[503, 503, 503]);
            assert_eq!(send(&shop, false, &Method::GET, body("")).await.status, 200);
            let replicas: HashSet<_> = script.taken().iter().map(|a| a.replica).collect();
            assert_eq!(replicas.len(), 4, "every try elsewhere: {replicas:?}");
        }
        script.next(&[503; 10]);
        let reply = send(&shop, false, &Method::GET, body("")).await;
        assert_eq!((reply.status.as_u16(), script.taken().len()), (503, 4), "the first try and three retries");
        script.next(&[]);
    });
}

#[test]
fn a_post_that_no_application_took_is_tried_elsewhere_whole() {
    harness::run(async {
        // Of what was refused with its connection nothing was sent, so its length plays no part.
        for (why, size) in [("unprocessed", REPLAY), ("connect_failed", REPLAY), ("connect_failed", 20 * REPLAY)] {
            let (mut shop, script, mut running) = scripted(2, json!({})).await;
            // The first application is gone; or its sidecar as well, so that the pod refuses.
            running.remove(0);
            if why == "connect_failed" {
                shop.replicas[0].sidecar.kill();
            }
            for n in 0..20 {
                let reply = send(&shop, n % 2 == 0, &Method::POST, body(pattern::bytes(size))).await;
                assert_eq!(reply.text(), "replica 1", "{why} {size} B");
                let arrivals = script.taken();
                let whole = arrivals.len() == 1 && arrivals[0].length == size && arrivals[0].is_pattern;
                assert!(whole, "{why} {size} B: {arrivals:?}");
            }
            assert!(retries(&shop.client, why).await >= 1.0, "{why}: the first replica was tried");
        }
    });
}

#[test]
fn an_upload_that_goes_on_after_an_early_answer_is_sent_again_whole_or_not_at_all() {
    const LENGTH: usize = 4 * REPLAY;
    harness::run(async {
        let settings = json!({ "retry": { "backoff": "400ms", "budget_floor": 100 } });
        let mut shop = Shop::open(Mesh::new(), 2, 60, unhindered_orders(settings)).await;
        shop.replicas.iter_mut().for_each(|replica| replica.origin.kill());
        let applications = Applications::default();
        // The first to be asked answers before it has read, and reads on.
        let answered = Arc::new(Mutex::new(false));
        let _scripts = [0, 1].map(|replica| {
            let (answered, applications) = (Arc::clone(&answered), applications.clone());
            script::connections(&shop.replicas[replica].pod, 8080, move |mut stream| {
                let (answered, applications) = (Arc::clone(&answered), applications.clone());
                async move {
                    let mut text = Vec::new();
                    let early = !std::mem::replace(&mut *answered.lock().unwrap(), true);
                    if early {
                        let _ = stream.read_buf(&mut text).await;
                        let _ = stream
                            .write_all(b"HTTP/1.1 503 Not Now\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                            .await;
                    }
                    while !text.ends_with(b"\r\n0\r\n\r\n") {
                        if !stream.read_buf(&mut text).await.is_ok_and(|n| n > 0) {
                            return;
                        }
                    }
                    if !early {
                        let length = text.iter().filter(|b| **b == b'!').count();
                        applications.arrivals.lock().unwrap().push(Arrival { replica, length, is_pattern: false });
                        let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                        let _ = stream.write_all(answer).await;
                    }
                }
            })
        });
        let (mut whole, mut refused) = (0, 0);
        for _ in 0..12 {
            *answered.lock().unwrap() = false;
            let (sender, receiver) = mpsc::channel(1);
            let put = request(false, &Method::PUT, "/", FrameBody::new(receiver).boxed_unsync());
            let sending = async {
                let piece = Bytes::from(vec![b'!'; LENGTH / 16]);
                for n in 0..16 {
                    // The answer comes after the first piece; the rest in the time of the backoff.
                    tokio::time::sleep(Duration::from_millis(if n == 1 { 60 } else { 4 })).await;
                    if sender.send(Ok(Frame::data(piece.clone()))).await.is_err() {
                        return;
                    }
                }
                drop(sender);
            };
            let (reply, ()) = tokio::join!(shop.client.send(shop.replicas[0].pod.at4(8080), false, put), sending);
            let arrived = applications.taken();
            match reply.status.as_u16() {
                200 => {
                    assert_eq!(arrived.iter().map(|a| a.length).collect::<Vec<_>>(), [LENGTH]);
                    whole += 1;
                }
                status => {
                    assert!(arrived.is_empty(), "{status}: {arrived:?}");
                    refused += 1;
                }
            }
        }
        println!("{whole} whole, {refused} refused");
        assert!(whole > 0);
    });
}
