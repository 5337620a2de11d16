//! What an overloaded replica asks for: `Retry-After` and gRPC's pushback.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderName, Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use outrigger_e2e::{
    harness::{
        self, Mesh, Pod, Reply, Shop,
        client::{body, grpc_call},
        script::{self, Script},
        shop::{ORDERS, request, unhindered_orders},
    },
    workload::grpc,
};
use serde_json::{Value, json};
use tokio::time::sleep;

/// What a replica answers.
#[derive(Clone, Default)]
struct Answer {
    status: u16,
    headers: HeaderMap,
}

/// Replicas that answer what a test tells each of them to; 200 where it tells nothing.
#[derive(Clone, Default)]
struct Replicas {
    answers: Arc<Mutex<Vec<Option<Answer>>>>,
    arrivals: Arc<Mutex<Vec<usize>>>,
}

impl Replicas {
    fn at(&self, pod: &Pod, replica: usize) -> Script {
        self.answers.lock().unwrap().push(None);
        let this = self.clone();
        script::http(pod, 8080, move |request: Request<Incoming>| {
            let this = this.clone();
            async move {
                let _ = request.into_body().collect().await;
                this.arrivals.lock().unwrap().push(replica);
                let mut response = Response::new(body("own words"));
                if let Some(answer) = this.answers.lock().unwrap()[replica].clone() {
                    *response.status_mut() = answer.status.try_into().unwrap();
                    *response.headers_mut() = answer.headers;
                }
                response
            }
        })
    }

    fn says(&self, replica: usize, status: u16, headers: &[(&'static str, &str)]) {
        let named = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        self.answers.lock().unwrap()[replica] = Some(Answer { status, headers: named.collect() });
    }

    fn recover(&self) {
        self.answers.lock().unwrap().fill(None);
    }

    fn taken(&self) -> Vec<usize> {
        std::mem::take(&mut self.arrivals.lock().unwrap())
    }
}

async fn open(replicas: usize, settings: Value) -> (Shop, Replicas, Vec<Script>) {
    // Each in turn: whose first answer is a failure is otherwise left alone for some seconds as a slow one.
    let mut all = json!({ "load_balancing": { "policy": "round_robin" } });
    harness::sidecar::merge(&mut all, settings);
    let mut shop = Shop::open(Mesh::new(), replicas, 60, unhindered_orders(all)).await;
    let script = Replicas::default();
    let mut running = Vec::new();
    for (n, replica) in shop.replicas.iter_mut().enumerate() {
        replica.origin.kill();
        running.push(script.at(&replica.pod, n));
    }
    (shop, script, running)
}

async fn send(shop: &Shop, method: Method) -> Reply {
    shop.client.send(shop.replicas[0].pod.at4(8080), false, request(false, &method, "/", body(""))).await
}

async fn call(shop: &Shop, headers: &[(&str, &str)]) -> Reply {
    let call = grpc_call("orders.mesh:8080", "Unary", body(grpc::frame(b"a")), headers);
    shop.client.send(shop.replicas[0].pod.at4(8080), true, call).await
}

async fn count(shop: &Shop, metric: &str, label: (&str, &str)) -> f64 {
    shop.client.metric(metric, &[("service", ORDERS), label]).await
}

/// Sends requests that are not tried again until the first replica is asked.
async fn until_first_is_asked(shop: &Shop, script: &Replicas) {
    script.taken();
    for _ in 0..200 {
        send(shop, Method::POST).await;
        if script.taken().contains(&0) {
            return;
        }
    }
    panic!("the first replica was not asked in 200 requests");
}

#[test]
fn a_replica_that_asks_for_it_is_left_alone_for_as_long_and_no_longer() {
    harness::run(async {
        let date = || httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(4));
        // A date has whole seconds, and so has the one that it is compared with.
        let (seconds, at_least) = (Duration::from_millis(2_000), Duration::from_millis(1_900));
        let cases = [
            (429, "2".to_owned(), json!({}), at_least, seconds),
            (503, date(), json!({}), Duration::from_millis(1_000), 2 * seconds),
            (503, "3600".to_owned(), json!({ "retry": { "max_retry_after": "2s" } }), at_least, seconds),
        ];
        for (status, text, settings, at_least, at_most) in cases {
            let (shop, script, _running) = open(3, settings).await;
            let text = if status == 503 && text != "3600" { date() } else { text };
            script.says(0, status, &[("retry-after", &text)]);
            until_first_is_asked(&shop, &script).await;
            let told = Instant::now();
            script.recover();
            let mut asked = 0;
            while told.elapsed() < at_least {
                assert_eq!(send(&shop, Method::POST).await.status, 200, "{text}");
                let taken = script.taken();
                // What began before the time was over may have been decided after it.
                assert!(!taken.contains(&0) || told.elapsed() >= at_least, "{text}: {taken:?} at {:?}", told.elapsed());
                asked += 1;
            }
            assert!(asked > 50, "{text}: {asked} requests prove little");
            assert_eq!(count(&shop, "outrigger_retry_after_total", ("outcome", "respected")).await, 1.0, "{text}");
            sleep((at_most + Duration::from_millis(200)).saturating_sub(told.elapsed())).await;
            until_first_is_asked(&shop, &script).await;
        }
        // Switched off, the same replica is asked in the same time.
        let (shop, script, _running) = open(3, json!({ "retry": { "max_retry_after": "0s" } })).await;
        script.says(0, 429, &[("retry-after", "60")]);
        for _ in 0..5 {
            until_first_is_asked(&shop, &script).await;
        }
        assert_eq!(count(&shop, "outrigger_retry_after_total", ("outcome", "respected")).await, 0.0);
    });
}

#[test]
fn a_service_that_is_overloaded_as_a_whole_is_not_emptied() {
    harness::run(async {
        let nobody_panics = json!({ "outlier_detection": { "panic_threshold": 0 } });
        let (shop, script, _running) = open(4, nobody_panics).await;
        (0..4).for_each(|replica| script.says(replica, 503, &[("retry-after", "60")]));
        for _ in 0..100 {
            let reply = send(&shop, Method::POST).await;
            assert_eq!((reply.status.as_u16(), reply.header("retry-after")), (503, "60"));
            assert_eq!(reply.header("outrigger-error"), "", "the application's own answer: {}", reply.text());
        }
        assert_eq!(count(&shop, "outrigger_retry_after_total", ("outcome", "respected")).await, 2.0, "half of four");
        assert!(count(&shop, "outrigger_retry_after_total", ("outcome", "ejection_share")).await > 50.0);
        script.recover();
        script.taken();
        for _ in 0..100 {
            assert_eq!(send(&shop, Method::POST).await.status, 200);
        }
        let asked: std::collections::BTreeSet<_> = script.taken().into_iter().collect();
        assert_eq!(asked.len(), 2, "those that are not left alone share the load: {asked:?}");
    });
}

#[test]
fn a_retry_goes_elsewhere_at_once() {
    harness::run(async {
        let (shop, script, _running) = open(2, json!({})).await;
        script.says(0, 503, &[("retry-after", "20")]);
        let mut asked = 0;
        for _ in 0..100 {
            let begun = Instant::now();
            assert_eq!(send(&shop, Method::GET).await.status, 200);
            assert!(begun.elapsed() < Duration::from_secs(2), "it waited {:?}", begun.elapsed());
            asked += script.taken().iter().filter(|replica| **replica == 0).count();
        }
        assert_eq!(asked, 1, "the first replica is asked once");
        assert_eq!(count(&shop, "outrigger_retries_total", ("reason", "status")).await, 1.0);
    });
}

#[test]
fn who_has_nobody_else_waits_within_its_deadline_or_is_told() {
    harness::run(async {
        for (deadline, text, waits) in [
            ("0s", "1", false),
            ("4s", "1", true),
            ("4s", "6", false),
            ("90s", "31", false),
            // What says nothing, or asks for nothing, delays nothing.
            ("0s", "0", true),
            ("0s", "soon", true),
        ] {
            let (shop, script, _running) =
                open(1, json!({ "timeouts": { "request": deadline }, "retry": { "backoff": "100ms" } })).await;
            script.says(0, 503, &[("retry-after", text)]);
            let begun = Instant::now();
            let recovers = async {
                sleep(Duration::from_millis(if text == "1" { 500 } else { 0 })).await;
                while script.arrivals.lock().unwrap().is_empty() {
                    sleep(Duration::from_millis(1)).await;
                }
                script.recover();
            };
            let (reply, ()) = tokio::join!(send(&shop, Method::GET), recovers);
            let (took, arrivals) = (begun.elapsed(), script.taken().len());
            let denied = count(&shop, "outrigger_retries_denied_total", ("limit", "retry_after")).await;
            if waits {
                assert_eq!((reply.status.as_u16(), denied), (200, 0.0), "{deadline} {text}");
                assert!(arrivals >= 2, "{deadline} {text}: {arrivals}");
                assert!(text != "1" || (took >= Duration::from_secs(1) && arrivals == 2), "{took:?}, {arrivals}");
            } else {
                assert_eq!((reply.status.as_u16(), arrivals, denied), (503, 1, 1.0), "{deadline} {text}");
                assert_eq!((reply.header("retry-after"), reply.text().as_str()), (text, "own words"));
                assert!(took < Duration::from_millis(900), "{deadline} {text}: told after {took:?}");
            }
            // Nobody is left alone who is alone.
            assert_eq!(send(&shop, Method::GET).await.status, 200, "{deadline} {text}");
        }
    });
}

#[test]
fn a_service_tries_again_the_calls_that_ended_with_these_statuses_alone() {
    harness::run(async {
        let own = json!({ "retry": { "grpcCodes": ["RESOURCE_EXHAUSTED"] } });
        let off = json!({ "retry": { "grpcCodes": [] } });
        for (settings, again) in [(json!({}), vec!["1", "14"]), (own, vec!["8"]), (off, vec![])] {
            let (shop, script, _running) = open(2, settings).await;
            for status in ["0", "1", "2", "4", "8", "10", "13", "14"] {
                let headers = [("content-type", "application/grpc"), ("grpc-status", status)];
                (0..2).for_each(|replica| script.says(replica, 200, &headers));
                let reply = call(&shop, &[]).await;
                let wanted = if again.contains(&status) { 3 } else { 1 };
                assert_eq!((reply.trailer("grpc-status"), script.taken().len()), (status, wanted), "{again:?}");
            }
            // The same words, and no call.
            script.says(0, 200, &[("grpc-status", "14")]);
            script.says(1, 200, &[("grpc-status", "14")]);
            assert_eq!((send(&shop, Method::POST).await.status.as_u16(), script.taken().len()), (200, 1));
            let counted = count(&shop, "outrigger_retries_total", ("reason", "grpc_status")).await;
            assert_eq!(counted, 2.0 * again.len() as f64, "{again:?}");
        }
    });
}

#[test]
fn a_pushback_delays_the_next_try_of_a_call_or_forbids_it() {
    harness::run(async {
        let (shop, script, _running) = open(2, json!({ "retry": { "attempts": 1 } })).await;
        let mut denied = 0.0;
        // Without a pushback, with one of these, and with one that the call's own deadline does not allow.
        for (pushback, deadline, tries, least) in [
            (None, "10S", 2, 0),
            (Some("0"), "10S", 2, 0),
            (Some("700"), "10S", 2, 700),
            (Some("700"), "500m", 1, 0),
            (Some("-1"), "10S", 1, 0),
            (Some("later"), "10S", 1, 0),
            (Some("31000"), "90S", 1, 0),
        ] {
            let mut headers = vec![("content-type", "application/grpc"), ("grpc-status", "14")];
            headers.extend(pushback.map(|text| ("grpc-retry-pushback-ms", text)));
            (0..2).for_each(|replica| script.says(replica, 200, &headers));
            let begun = Instant::now();
            let reply = call(&shop, &[("grpc-timeout", deadline)]).await;
            let took = begun.elapsed();
            assert_eq!((reply.trailer("grpc-status"), script.taken().len()), ("14", tries), "{pushback:?} {deadline}");
            let least = Duration::from_millis(least);
            assert!(took >= least && took < least + Duration::from_millis(600), "{pushback:?} {deadline}: {took:?}");
            denied += f64::from(u8::from(tries == 1));
            let counted = count(&shop, "outrigger_retries_denied_total", ("limit", "retry_after")).await;
            assert_eq!(counted, denied, "{pushback:?} {deadline}");
        }
    });
}
