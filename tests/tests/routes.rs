//! Routes through real sidecars: what matches, what is done, where it goes.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use outrigger_e2e::{
    harness::{
        self, Mesh, Pod, Replica, Reply, Sidecar,
        client::{Body, body, grpc_call, request},
        pki::Ca,
        script::{self, Script},
    },
    pattern,
    workload::grpc,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::sleep,
};

const HOST: &str = "orders.mesh:8080";

/// A client whose routes are under test, and services of one replica each. Fields end in their order.
struct Town {
    _sidecar: Sidecar,
    services: Vec<Replica>,
    client: Pod,
    _mesh: Mesh,
}

impl Town {
    /// Services of these names (`NAME.mesh`), the first of which is called; and the client's configuration.
    async fn open(names: &[&str], config: Value) -> Self {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        let client = mesh.pod("client");
        ca.issue(&client, &[], "1h");
        let mut services = Vec::new();
        for name in names {
            let (pod, host) = (mesh.pod(name), format!("{name}.mesh"));
            ca.issue(&pod, &[&host], "1h");
            mesh.dns.set(&host, 60, &[pod.v4.into()]);
            let origin = pod.serve(&["--http", "8080"]).await;
            let sidecar = Sidecar::launch(&mesh, &pod, json!({}));
            services.push(Replica { sidecar, origin, pod });
        }
        for service in &mut services {
            service.sidecar.ready(&service.pod).await;
        }
        let sidecar = Sidecar::start(&mesh, &client, config).await;
        Self { _sidecar: sidecar, services, client, _mesh: mesh }
    }

    fn to(&self) -> SocketAddr {
        self.services[0].pod.at4(8080)
    }

    async fn send(&self, h2: bool, method: Method, path: &str, headers: &[(&str, &str)]) -> Reply {
        let builder = request(HOST, h2, method, path);
        let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
        self.client.send(self.to(), h2, builder.body(body("")).unwrap()).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(false, Method::GET, path, &[]).await
    }

    async fn call(&self, method: &str, headers: &[(&str, &str)]) -> Reply {
        self.client.send(self.to(), true, grpc_call(HOST, method, body(grpc::frame(b"hello")), headers)).await
    }
}

/// Routes of `orders.mesh` of one rule each.
fn routes(rules: &[(&str, Value)]) -> Value {
    let routes: Vec<_> = rules
        .iter()
        .map(|(name, rule)| json!({ "name": name, "hostnames": ["orders.mesh"], "rules": [rule] }))
        .collect();
    json!({ "routes": routes })
}

/// A rule that answers with the name of what it matches.
fn telling(name: &str, matches: Value) -> Value {
    let tell = json!({ "set": [{ "name": "x-rule", "value": name }] });
    json!({ "matches": matches, "filters": [{ "type": "ResponseHeaderModifier", "responseHeaderModifier": tell }] })
}

#[test]
fn each_kind_of_match_takes_its_rule_in_every_version_of_http() {
    harness::run(async {
        let rules = [
            ("exact", json!([{ "path": { "type": "Exact", "value": "/whoami" } }])),
            ("prefix", json!([{ "path": { "value": "/whoami/" } }])),
            ("longer", json!([{ "path": { "type": "PathPrefix", "value": "/whoami/a" } }])),
            ("regex", json!([{ "path": { "type": "RegularExpression", "value": "/whoami/[0-9]+" } }])),
            ("method", json!([{ "path": { "value": "/whoami" }, "method": "DELETE" }])),
            (
                "header",
                json!([{ "path": { "value": "/whoami" }, "headers": [{ "name": "X-Canary", "value": "yes" }] }]),
            ),
            (
                "header-regex",
                json!([{ "path": { "value": "/whoami" },
                    "headers": [{ "type": "RegularExpression", "name": "x-user", "value": "b.*" }] }]),
            ),
            ("param", json!([{ "path": { "value": "/whoami" }, "queryParams": [{ "name": "v", "value": "2 a" }] }])),
            ("either", json!([{ "path": { "value": "/status/201" } }, { "path": { "value": "/status/202" } }])),
            ("call", json!([{ "method": { "service": "test.Echo", "method": "Unary" } }])),
            ("calls", json!([{ "method": { "service": "test.Echo" } }])),
            ("any-call", json!([{ "method": { "type": "RegularExpression", "method": "F.*" } }])),
        ];
        let rules: Vec<_> = rules.into_iter().map(|(name, matches)| (name, telling(name, matches))).collect();
        let town = Town::open(&["orders"], routes(&rules)).await;
        let get = Method::GET;
        for h2 in [false, true] {
            for (method, path, headers, rule) in [
                (&get, "/whoami", &[][..], "exact"),
                (&get, "/whoami/x", &[], "prefix"),
                (&get, "/whoami/a/x", &[], "longer"),
                (&get, "/whoami/ab", &[], "prefix"),
                (&get, "/whoami/17", &[], "regex"),
                (&Method::DELETE, "/whoami/x", &[], "method"),
                (&get, "/whoami/x", &[("x-canary", "yes")], "header"),
                (&get, "/whoami/x", &[("x-canary", "yes!")], "prefix"),
                (&get, "/whoami/x", &[("x-user", "bob")], "header-regex"),
                (&get, "/whoami/x", &[("x-user", "abob")], "prefix"),
                (&get, "/whoami/x?u&v=2+a", &[], "param"),
                (&get, "/status/201", &[], "either"),
                (&get, "/status/202", &[], "either"),
                (&Method::POST, "/test.Echo/Unary", &[], ""),
                (&get, "/elsewhere", &[], ""),
            ] {
                let reply = town.send(h2, method.clone(), path, headers).await;
                assert_eq!(reply.header("x-rule"), rule, "h2={h2} {method} {path} {headers:?}");
                if rule.is_empty() {
                    assert_eq!((reply.status.as_u16(), reply.header("outrigger-error")), (404, "no_route"), "{path}");
                }
            }
        }
        for (method, rule) in [("Unary", "call"), ("ServerStream", "calls"), ("Fail", "any-call")] {
            let reply = town.call(method, &[]).await;
            assert_eq!(reply.header("x-rule"), rule, "{method}");
        }
        let nobody = grpc_call(HOST, "x", body(""), &[]);
        let (mut parts, data) = nobody.into_parts();
        parts.uri = format!("http://{HOST}/other.Service/Get").parse().unwrap();
        let reply = town.client.send(town.to(), true, Request::from_parts(parts, data)).await;
        assert_eq!((reply.status.as_u16(), reply.trailer("grpc-status")), (200, "12"), "a call that no rule matches");
        // Each rule is a route of its own, and counts as that.
        town.client.until_metric("outrigger_route_requests_total", &[("route", "either")], 4.0).await;
        town.client
            .until_metric("outrigger_route_requests_total", &[("route", "call"), ("status_class", "2xx")], 1.0)
            .await;
    });
}

#[test]
fn of_one_path_the_more_specific_conditions_come_first() {
    harness::run(async {
        let path = json!({ "value": "/whoami" });
        let rules = [
            ("plain", json!([{ "path": path }])),
            ("param", json!([{ "path": path, "queryParams": [{ "name": "v", "value": "2 a" }] }])),
            ("header", json!([{ "path": path, "headers": [{ "name": "x-a", "value": "1" }] }])),
            (
                "two",
                json!([{ "path": path, "headers": [{ "name": "x-a", "value": "1" }, { "name": "x-b", "value": "2" }] }]),
            ),
            ("method", json!([{ "path": path, "method": "PUT" }])),
        ];
        let rules: Vec<_> = rules.into_iter().map(|(name, matches)| (name, telling(name, matches))).collect();
        let town = Town::open(&["orders"], routes(&rules)).await;
        for h2 in [false, true] {
            for (method, path, headers, rule) in [
                (Method::GET, "/whoami", &[][..], "plain"),
                (Method::GET, "/whoami?v=2+a", &[], "param"),
                (Method::GET, "/whoami?v=2%20a&x", &[], "param"),
                (Method::GET, "/whoami?v=3&v=2+a", &[], "plain"),
                (Method::GET, "/whoami?v=2+a", &[("x-a", "1")], "header"),
                (Method::GET, "/whoami?v=2+a", &[("x-a", "1"), ("x-b", "2")], "two"),
                (Method::GET, "/whoami", &[("x-a", "1"), ("x-a", "1")], "plain"),
                (Method::PUT, "/whoami?v=2+a", &[("x-a", "1"), ("x-b", "2")], "method"),
            ] {
                let reply = town.send(h2, method.clone(), path, headers).await;
                assert_eq!(reply.header("x-rule"), rule, "h2={h2} {method} {path} {headers:?}");
            }
        }
    });
}

#[test]
fn the_path_that_is_matched_is_the_path_that_is_forwarded() {
    harness::run(async {
        let rules = [
            ("whoami", telling("whoami", json!([{ "path": { "value": "/whoami" } }]))),
            (
                "admin",
                json!({ "matches": [{ "path": { "value": "/admin" } }],
                "filters": [{ "type": "FaultInjection", "faultInjection": { "abort": { "httpStatus": 403 } } }] }),
            ),
            ("rest", telling("rest", json!([]))),
        ];
        let town = Town::open(&["orders", "plain"], routes(&rules)).await;
        // Byte for byte, as no client library would write it.
        let raw = async |target: &str, host: &str| {
            let mut stream = town.client.connect(town.to()).await.unwrap();
            let text = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            stream.write_all(text.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let path =
                answer.split("\"path\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("").to_owned();
            let status: u16 = answer.split(' ').nth(1).unwrap().parse().unwrap();
            (status, path)
        };
        for (target, path) in [
            ("/whoami", "/whoami"),
            ("/whoami/%7e/./x?a=%7e/../b", "/whoami/~/x?a=%7e/../b"),
            ("/x/../whoami/%41%2d%2f", "/whoami/A-%2F"),
            ("/%77hoami//y", "/whoami//y"),
            ("/whoami/100%", "/whoami/100%25"),
            ("/x/%2e%2E/whoami", "/whoami"),
            ("http://orders.mesh:8080/./whoami/..%2f", "/whoami/..%2F"),
        ] {
            assert_eq!(raw(target, HOST).await, (200, path.to_owned()), "{target}");
        }
        for target in [
            "/admin",
            "/x/../admin/y",
            "/%61dmin",
            "/whoami/../admin",
            "/./admin/",
            "/whoami/%2e%2e/admin",
            "/x\\..\\admin",
        ] {
            assert_eq!(raw(target, HOST).await.0, 403, "{target}");
        }
        // A service without routes gets what the application wrote.
        let odd = "/whoami/%7e/./x/../y";
        assert_eq!(raw(odd, "plain.mesh:8080").await, (200, odd.to_owned()));
    });
}

#[test]
fn slashes_are_what_the_options_say() {
    harness::run(async {
        for (action, escaped) in [
            ("keep_unchanged", (200, "/whoami/a%2Fb/c")),
            ("reject_request", (400, "bad_request")),
            ("unescape_and_redirect", (307, "http://orders.mesh:8080/whoami/a/b/c?q=%2f")),
            ("unescape_and_forward", (200, "/whoami/a/b/c")),
        ] {
            let mut config = routes(&[("whoami", telling("whoami", json!([{ "path": { "value": "/whoami" } }])))]);
            config["outbound"]["path_normalization"] =
                json!({ "merge_slashes": true, "path_with_escaped_slashes_action": action });
            let town = Town::open(&["orders"], config).await;
            for h2 in [false, true] {
                let reply = town.send(h2, Method::GET, "/whoami//a%2fb///c?q=%2f", &[]).await;
                let seen = match reply.status.as_u16() {
                    200 => reply.json()["path"].as_str().unwrap().trim_end_matches("?q=%2f").to_owned(),
                    307 => reply.header("location").to_owned(),
                    _ => reply.header("outrigger-error").to_owned(),
                };
                assert_eq!((reply.status.as_u16(), seen.as_str()), escaped, "{action} h2={h2}");
            }
        }
    });
}

#[test]
fn whoever_calls_a_service_by_address_or_wildcard_takes_its_routes() {
    harness::run(async {
        // One worker: each knows for itself whose address is whose.
        let config = json!({ "workers": 1, "routes": [
            { "name": "one", "hostnames": ["orders.mesh"], "port": 8080,
              "rules": [telling("one", json!([]))] },
            { "name": "all", "hostnames": ["*.mesh"], "rules": [telling("all", json!([]))] },
        ] });
        let town = Town::open(&["orders", "users"], config).await;
        for service in &town.services {
            let (name, to) = (&service.pod.name, service.pod.at4(8080));
            let rule = if name == "orders" { "one" } else { "all" };
            for h2 in [false, true] {
                let by_name = request(&format!("{name}.mesh:8080"), h2, Method::GET, "/").body(body("")).unwrap();
                assert_eq!(town.client.send(to, h2, by_name).await.header("x-rule"), rule, "{name} h2={h2}");
                // By now it is known whose address this is.
                let by_address = request(&to.to_string(), h2, Method::GET, "/").body(body("")).unwrap();
                assert_eq!(town.client.send(to, h2, by_address).await.header("x-rule"), rule, "{to} h2={h2}");
            }
        }
    });
}

#[test]
fn headers_hosts_and_paths_are_changed_as_filters_say() {
    harness::run(async {
        let changes = json!({
            "set": [{ "name": "x-set", "value": "new" }, { "name": "X-Fresh", "value": "1" }],
            "add": [{ "name": "x-add", "value": "more" }],
            "remove": ["x-gone"],
        });
        let modify = json!([
            { "type": "RequestHeaderModifier", "requestHeaderModifier": changes },
            { "type": "ResponseHeaderModifier",
              "responseHeaderModifier": { "set": [{ "name": "content-type", "value": "text/odd" }], "remove": ["date"] } },
            { "type": "URLRewrite", "urlRewrite": { "hostname": "inner.example",
              "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/whoami/" } } },
        ]);
        let full = json!([{ "type": "URLRewrite",
            "urlRewrite": { "path": { "type": "ReplaceFullPath", "replaceFullPath": "/whoami/all" } } }]);
        let away = json!([{ "type": "RequestRedirect", "requestRedirect": { "scheme": "https", "hostname": "new.example",
            "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/moved" }, "statusCode": 308 } }]);
        let near = json!([{ "type": "RequestRedirect", "requestRedirect": {
            "path": { "type": "ReplaceFullPath", "replaceFullPath": "/here" } } }]);
        let at = |path: &str, filters: Value| json!({ "matches": [{ "path": { "value": path } }], "filters": filters });
        let rules = [
            ("modify", at("/old", modify)),
            ("full", at("/full", full)),
            ("away", at("/away", away)),
            ("near", at("/near", near)),
        ];
        let town = Town::open(&["orders"], routes(&rules)).await;
        for h2 in [false, true] {
            let headers = [("x-set", "old"), ("x-add", "some"), ("x-gone", "1"), ("x-kept", "1")];
            let reply = town.send(h2, Method::GET, "/old/a?q=1", &headers).await;
            let seen = reply.json();
            assert_eq!(seen["path"], "/whoami/a?q=1", "h2={h2}");
            let host = if h2 { &seen["authority"] } else { &seen["headers"]["host"] };
            assert_eq!(host, "inner.example", "h2={h2}");
            let header = |name: &str| seen["headers"][name].clone();
            assert_eq!(
                [header("x-set"), header("x-fresh"), header("x-add"), header("x-gone"), header("x-kept")],
                [json!("new"), json!("1"), json!("some, more"), Value::Null, json!("1")],
                "h2={h2}"
            );
            assert_eq!((reply.header("content-type"), reply.header("date")), ("text/odd", ""), "h2={h2}");
            let seen = town.send(h2, Method::GET, "/full/of/it?q=2", &[]).await.json();
            assert_eq!(seen["path"], "/whoami/all?q=2");
            let reply = town.send(h2, Method::POST, "/away/x?q=3", &[]).await;
            let location = "https://new.example/moved/x?q=3";
            assert_eq!((reply.status.as_u16(), reply.header("location")), (308, location), "h2={h2}");
            assert_eq!(reply.header("outrigger-error"), "", "a redirect is no error");
            let reply = town.send(h2, Method::GET, "/near", &[]).await;
            assert_eq!((reply.status.as_u16(), reply.header("location")), (302, "http://orders.mesh:8080/here"));
        }
        assert_eq!(town.services[0].count().await, 4, "who is redirected never reaches the application");
        // An upgrade takes its route like every request.
        let rules = [("ws", at("/upgrade", json!([]))), ("none", at("/none", json!([])))];
        let mut config = routes(&rules);
        config["routes"][0]["rules"][0]["backendRefs"] = json!([{ "name": "orders-v2.mesh", "port": 8080 }]);
        let town = Town::open(&["orders", "orders-v2"], config).await;
        let (mut io, _cut) = town.client.upgraded(town.to(), HOST, "raw-bytes").await;
        io.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        io.read_exact(&mut back).await.unwrap();
        assert_eq!((&back, town.services[0].count().await, town.services[1].count().await), (b"hello", 0, 1));
    });
}

#[test]
fn requests_are_shared_out_by_weight_and_a_weight_of_zero_gets_none() {
    harness::run(async {
        let to = |name: &str, weight: u32| json!({ "name": format!("{name}.mesh"), "port": 8080, "weight": weight });
        let split =
            json!({ "backendRefs": [to("orders", 70), to("orders-v2", 20), to("orders-v3", 10), to("orders-v4", 0)] });
        let nobody = json!({ "matches": [{ "path": { "value": "/nobody" } }],
            "backendRefs": [to("orders", 0), to("orders-v2", 0)] });
        let names = ["orders", "orders-v2", "orders-v3", "orders-v4"];
        let town = Town::open(&names, routes(&[("split", split), ("nobody", nobody)])).await;
        let all = 4_000_u32;
        for h2 in [false, true] {
            let (mut sender, _cut) = town.client.http(town.to(), h2).await;
            for _ in 0..all / 2 {
                let request = request(HOST, h2, Method::GET, "/").body(body("")).unwrap();
                let reply = Reply::read(sender.send(request).await.unwrap()).await.unwrap();
                assert_eq!(reply.status, 200);
            }
        }
        let mut counts = Vec::new();
        for service in &town.services {
            counts.push(service.count().await as f64);
        }
        // Pearson's chi-square; 13.8 is its 0.999 quantile for two degrees of freedom.
        let expected = [0.7, 0.2, 0.1].map(|share| share * f64::from(all));
        let chi: f64 = counts.iter().zip(expected).map(|(n, e)| (n - e).powi(2) / e).sum();
        println!("{counts:?}, chi-square {chi:.2}");
        assert!(chi < 13.8, "{counts:?}, chi-square {chi}");
        assert_eq!(counts[3], 0.0);
        let reply = town.get("/nobody").await;
        assert_eq!((reply.status.as_u16(), reply.header("outrigger-error")), (500, "no_backend"));
        town.client
            .until_metric("outrigger_route_requests_total", &[("route", "nobody"), ("status_class", "5xx")], 1.0)
            .await;
        let split = [("route", "split"), ("status_class", "2xx")];
        town.client.until_metric("outrigger_route_requests_total", &split, f64::from(all)).await;
    });
}

/// A service without a sidecar that a test answers for.
fn plain(pod: &Pod, name: &str) -> Value {
    json!({ "name": name, "port": 8080, "mtls": "off", "endpoints": { "static": [pod.at4(8080)] },
        "retry": { "budget_floor": 1000, "backoff": "5ms" },
        "outlier_detection": { "consecutive_5xx": 0, "consecutive_gateway_failure": 0, "consecutive_local_origin_failure": 0 } })
}

/// A client with these routes before two services that the test answers for.
struct Scripted {
    _scripts: Vec<Script>,
    _sidecar: Sidecar,
    client: Pod,
    first: Pod,
    _second: Pod,
    _mesh: Mesh,
}

impl Scripted {
    async fn open<F, G, A, B>(config: Value, first: F, second: G) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
        G: Fn(Request<Incoming>) -> B + Send + Sync + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
        B: Future<Output = Response<Body>> + Send + 'static,
    {
        let mesh = Mesh::new();
        let [client, one, two] = ["client", "orders", "shadow"].map(|name| mesh.pod(name));
        Ca::init(&mesh).issue(&client, &[], "1h");
        let scripts = vec![script::http(&one, 8080, first), script::http(&two, 8080, second)];
        let mut whole = json!({ "workers": 1, "services": [plain(&one, "orders.mesh"), plain(&two, "shadow.mesh")] });
        harness::sidecar::merge(&mut whole, config);
        let sidecar = Sidecar::start(&mesh, &client, whole).await;
        Self { _scripts: scripts, _sidecar: sidecar, client, first: one, _second: two, _mesh: mesh }
    }

    async fn send(&self, h2: bool, method: Method, path: &str, data: Body) -> Reply {
        let request = request(HOST, h2, method, path).body(data).unwrap();
        self.client.send(self.first.at4(8080), h2, request).await
    }
}

async fn always(request: Request<Incoming>) -> Response<Body> {
    let _ = request.into_body().collect().await;
    Response::new(body("first"))
}

#[test]
fn a_mirror_gets_whole_copies_and_neither_delays_nor_changes_the_answer() {
    harness::run(async {
        let heads = Arc::new(std::sync::Mutex::new(Vec::new()));
        let taken = Arc::clone(&heads);
        let shadow = move |request: Request<Incoming>| {
            let taken = Arc::clone(&taken);
            async move {
                let (head, data) = request.into_parts();
                let bytes = data.collect().await.unwrap().to_bytes();
                taken.lock().unwrap().push((head, bytes));
                sleep(Duration::from_secs(5)).await;
                Response::builder().status(500).body(body("shadow")).unwrap()
            }
        };
        let mirror = |share: Value| {
            let mut mirror = json!({ "backendRef": { "name": "shadow.mesh" } });
            harness::sidecar::merge(&mut mirror, share);
            json!({ "type": "RequestMirror", "requestMirror": mirror })
        };
        let add = json!({ "set": [{ "name": "x-by", "value": "route" }] });
        let all = json!({ "filters": [mirror(json!({})), { "type": "RequestHeaderModifier", "requestHeaderModifier": add }] });
        let quarter = json!({ "matches": [{ "path": { "value": "/quarter" } }],
            "filters": [mirror(json!({ "fraction": { "numerator": 1, "denominator": 4 } }))] });
        let never =
            json!({ "matches": [{ "path": { "value": "/never" } }], "filters": [mirror(json!({ "percent": 0 }))] });
        let config = routes(&[("all", all), ("quarter", quarter), ("never", never)]);
        let scripted = Scripted::open(config, always, shadow).await;
        let arrived = async |wanted: usize| {
            harness::eventually("the copies are there", Duration::from_secs(5), async || {
                let now = heads.lock().unwrap().len();
                if now >= wanted { Ok(()) } else { Err(format!("{now} of {wanted}")) }
            })
            .await;
            std::mem::take(&mut *heads.lock().unwrap())
        };
        for h2 in [false, true] {
            for size in [0, 1, 3_000, 64 * 1024] {
                let method = if size == 0 { Method::GET } else { Method::POST };
                let begun = Instant::now();
                let data = body(pattern::bytes(size));
                let reply = scripted.send(h2, method.clone(), "/x?q=1", data).await;
                assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, "first"));
                assert!(
                    begun.elapsed() < Duration::from_secs(3),
                    "the mirror answers after 5 s: {:?}",
                    begun.elapsed()
                );
                let copies = arrived(1).await;
                let (head, bytes) = &copies[0];
                assert_eq!((copies.len(), &head.method, bytes.len()), (1, &method, size), "h2={h2}");
                assert_eq!(head.uri.path_and_query().unwrap(), "/x?q=1");
                assert_eq!(head.headers["x-by"], "route", "as the service gets it");
                assert!(pattern::matches(0, bytes));
            }
        }
        let reply = scripted.send(false, Method::POST, "/x", body(pattern::bytes(64 * 1024 + 1))).await;
        assert_eq!(reply.text(), "first");
        scripted
            .client
            .until_metric("outrigger_route_mirrored_total", &[("route", "all"), ("result", "body")], 1.0)
            .await;
        scripted
            .client
            .until_metric("outrigger_route_mirrored_total", &[("route", "all"), ("result", "sent")], 8.0)
            .await;
        for _ in 0..400 {
            scripted.send(false, Method::GET, "/quarter", body("")).await;
            if fastrand::u8(..4) == 0 {
                scripted.send(false, Method::GET, "/never", body("")).await;
            }
        }
        sleep(Duration::from_millis(300)).await;
        let copies = arrived(1).await;
        // Five standard deviations of a binomial of 400 with p = 1/4: 43.
        assert!((57..=143).contains(&copies.len()), "{} of 400", copies.len());
        assert!(copies.iter().all(|(head, _)| head.uri.path() == "/quarter"));
    });
}

#[test]
fn faults_are_injected_into_the_share_that_was_asked_for() {
    harness::run(async {
        let fault = |path: &str, fault: Value| {
            json!({ "matches": [{ "path": { "value": path } }],
            "filters": [{ "type": "FaultInjection", "faultInjection": fault }] })
        };
        let rules = [
            ("some", fault("/some", json!({ "abort": { "httpStatus": 418, "percent": 30 } }))),
            ("late", fault("/late", json!({ "delay": { "fixedDelay": "400ms" } }))),
            ("both", fault("/both", json!({ "delay": { "fixedDelay": "400ms" }, "abort": {} }))),
            ("calls", fault("/test.Echo", json!({ "abort": { "grpcStatus": "RESOURCE_EXHAUSTED" } }))),
        ];
        let town = Town::open(&["orders"], routes(&rules)).await;
        let (mut sender, _cut) = town.client.http(town.to(), true).await;
        let mut aborted = 0_u32;
        for _ in 0..1_000 {
            let request = request(HOST, true, Method::GET, "/some").body(body("")).unwrap();
            let reply = Reply::read(sender.send(request).await.unwrap()).await.unwrap();
            match (reply.status.as_u16(), reply.header("outrigger-error")) {
                (418, "fault_injected") => aborted += 1,
                (404, "") => {}
                other => panic!("{other:?}"),
            }
        }
        // Five standard deviations of a binomial of 1,000 with p = 0.3: 72.
        assert!((228..=372).contains(&aborted), "{aborted} of 1000");
        let faults = town.client.metric("outrigger_route_faults_total", &[("route", "some"), ("fault", "abort")]).await;
        assert_eq!(faults, f64::from(aborted));
        assert_eq!(town.services[0].count().await, 1_000 - u64::from(aborted), "what is aborted reaches nobody");
        for (path, status) in [("/late", 404), ("/both", 503)] {
            let begun = Instant::now();
            let reply = town.get(path).await;
            let took = begun.elapsed();
            assert_eq!(reply.status, status, "{path}");
            assert!(took >= Duration::from_millis(400) && took < Duration::from_secs(3), "{path} took {took:?}");
        }
        let reply = town.call("Unary", &[]).await;
        assert_eq!((reply.status.as_u16(), reply.trailer("grpc-status")), (200, "8"));
    });
}

#[test]
fn timeouts_and_retries_are_those_of_the_rule() {
    harness::run(async {
        let arrivals = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&arrivals);
        let answer = move |request: Request<Incoming>| {
            let count = Arc::clone(&count);
            async move {
                let before = count.fetch_add(1, Ordering::SeqCst);
                let path = request.uri().path().to_owned();
                if path.starts_with("/slow") {
                    sleep(Duration::from_millis(if path.ends_with("try") && before > 0 { 0 } else { 1_000 })).await;
                }
                let fails = before < 2 && !path.starts_with("/slow");
                if path.contains("Call") {
                    let mut response = Response::new(body(""));
                    let status = if fails { "14" } else { "0" };
                    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
                    response.headers_mut().insert("grpc-status", status.parse().unwrap());
                    return response;
                }
                Response::builder().status(if fails { 429 } else { 200 }).body(body("done")).unwrap()
            }
        };
        let at = |path: &str, more: Value| {
            let mut rule = json!({ "matches": [{ "path": { "value": path } }] });
            harness::sidecar::merge(&mut rule, more);
            rule
        };
        let rules = [
            ("short", at("/slow/short", json!({ "timeouts": { "request": "300ms" } }))),
            (
                "try",
                at("/slow/try", json!({ "timeouts": { "backendRequest": "300ms" }, "retry": { "backoff": "5ms" } })),
            ),
            ("idle", at("/slow/idle", json!({ "timeouts": { "idle": "300ms" }, "retry": { "attempts": 0 } }))),
            ("off", at("/slow/off", json!({ "timeouts": { "request": "0s", "idle": "0s" } }))),
            ("again", at("/again", json!({ "retry": { "codes": [429], "attempts": 2 } }))),
            ("once", at("/once", json!({ "retry": { "codes": [429], "attempts": 1 } }))),
            ("call", at("/test.Call", json!({ "retry": { "grpcCodes": ["UNAVAILABLE"] } }))),
            ("other", at("/other.Call", json!({ "retry": { "grpcCodes": ["ABORTED"] } }))),
            ("never", at("/never.Call", json!({ "retry": { "grpcCodes": [] } }))),
            ("rest", json!({})),
        ];
        let scripted = Scripted::open(routes(&rules), answer, always).await;
        let ask = async |method: Method, path: &str| {
            arrivals.store(0, Ordering::SeqCst);
            let begun = Instant::now();
            let reply = scripted.send(false, method, path, body("")).await;
            (
                reply.status.as_u16(),
                reply.header("outrigger-error").to_owned(),
                arrivals.load(Ordering::SeqCst),
                begun.elapsed(),
            )
        };
        let get = Method::GET;
        let (status, error, tries, took) = ask(get.clone(), "/slow/short").await;
        assert_eq!((status, error.as_str(), tries), (504, "request_timeout", 1));
        assert!(took < Duration::from_millis(900), "{took:?}");
        let (status, _, tries, took) = ask(get.clone(), "/slow/try").await;
        assert_eq!((status, tries), (200, 2), "the second try is fast");
        assert!(took >= Duration::from_millis(300) && took < Duration::from_millis(900), "{took:?}");
        let (status, error, _, took) = ask(get.clone(), "/slow/idle").await;
        assert_eq!((status, error.as_str()), (504, "idle_timeout"));
        assert!(took < Duration::from_millis(900), "{took:?}");
        assert_eq!(ask(get.clone(), "/slow/off").await.0, 200);
        for (method, path, status, tries) in [
            (&get, "/again", 200, 3),
            (&get, "/once", 429, 2),
            (&get, "/other", 429, 1),
            // A POST is not idempotent.
            (&Method::POST, "/again", 429, 1),
        ] {
            let (is, _, made, _) = ask(method.clone(), path).await;
            assert_eq!((is, made), (status, tries), "{method} {path}");
        }
        let call = |service: &str| {
            let (mut parts, data) = grpc_call(HOST, "x", body(grpc::frame(b"a")), &[]).into_parts();
            parts.uri = format!("http://{HOST}/{service}/Get").parse().unwrap();
            Request::from_parts(parts, data)
        };
        for (service, status, tries) in
            [("test.Call", "0", 3), ("other.Call", "14", 1), ("never.Call", "14", 1), ("default.Call", "0", 3)]
        {
            arrivals.store(0, Ordering::SeqCst);
            let reply = scripted.client.send(scripted.first.at4(8080), true, call(service)).await;
            assert_eq!((reply.trailer("grpc-status"), arrivals.load(Ordering::SeqCst)), (status, tries), "{service}");
        }
        let retries = [
            ("again", "status", 2.0),
            ("once", "status", 1.0),
            ("call", "grpc_status", 2.0),
            ("try", "try_timeout", 1.0),
        ];
        for (route, reason, wanted) in retries {
            let labels = [("route", route), ("reason", reason)];
            scripted.client.until_metric("outrigger_route_retries_total", &labels, wanted).await;
        }
    });
}

#[test]
fn preflights_are_answered_and_answers_say_who_may_read_them() {
    harness::run(async {
        let cors = json!({ "allowOrigins": ["https://*.shop.example"], "allowCredentials": true, "allowMethods": ["PUT"],
            "allowHeaders": ["x-token"], "exposeHeaders": ["x-total"], "maxAge": 600 });
        let open = json!({ "allowOrigins": ["*"], "allowMethods": ["*"] });
        let at = |path: &str, cors: Value| {
            json!({ "matches": [{ "path": { "value": path } }],
            "filters": [{ "type": "CORS", "cors": cors }] })
        };
        let town = Town::open(&["orders"], routes(&[("strict", at("/whoami", cors)), ("open", at("/", open))])).await;
        let ask = ("access-control-request-method", "PUT");
        let shop = ("origin", "https://a.shop.example");
        let cors_of = |headers: &HeaderMap| {
            let mut all: Vec<_> = headers
                .iter()
                .filter(|(name, _)| name.as_str().starts_with("access-control-") || *name == "vary")
                .map(|(name, value)| format!("{}: {}", name.as_str(), value.to_str().unwrap()))
                .collect();
            all.sort();
            all
        };
        let reply = town.send(false, Method::OPTIONS, "/whoami", &[shop, ask]).await;
        assert_eq!(reply.status, 204);
        assert_eq!(
            cors_of(&reply.headers),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-headers: x-token",
                "access-control-allow-methods: PUT, GET, HEAD, POST",
                "access-control-allow-origin: https://a.shop.example",
                "access-control-max-age: 600",
                "vary: origin",
            ]
        );
        let reply = town.send(true, Method::OPTIONS, "/whoami", &[("origin", "https://evil.example"), ask]).await;
        assert_eq!((reply.status.as_u16(), cors_of(&reply.headers)), (204, vec!["vary: origin".to_owned()]));
        let reply = town.send(true, Method::OPTIONS, "/x", &[("origin", "https://any.example"), ask]).await;
        let names = ["access-control-allow-methods: *", "access-control-allow-origin: *", "access-control-max-age: 5"];
        assert_eq!(cors_of(&reply.headers), names);
        assert_eq!(town.services[0].count().await, 0, "a preflight is nobody's request");
        let reply = town.send(false, Method::GET, "/whoami", &[shop]).await;
        assert_eq!((reply.status.as_u16(), reply.json()["path"].clone()), (200, json!("/whoami")));
        assert_eq!(
            cors_of(&reply.headers),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-origin: https://a.shop.example",
                "access-control-expose-headers: x-total",
                "vary: origin",
            ]
        );
        let reply = town.send(false, Method::GET, "/whoami", &[("origin", "https://evil.example")]).await;
        assert_eq!(cors_of(&reply.headers), ["vary: origin"]);
        // An OPTIONS that is no preflight is a request.
        assert_eq!(town.send(false, Method::OPTIONS, "/whoami", &[]).await.json()["method"], "OPTIONS");
    });
}

#[test]
fn two_thousand_services_and_five_thousand_routes_are_ready_soon_and_small() {
    const SERVICES: usize = 2_000;
    const ROUTES: usize = 5_000;
    harness::run(async {
        let mesh = Mesh::alone();
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        Ca::init(&mesh).issue(&client, &[], "1h");
        let _origin = server.serve(&["--http", "8080"]).await;
        let empty = Sidecar::start(&mesh, &client, json!({ "workers": 1 })).await;
        let before = empty.memory_kib("VmRSS");
        drop(empty);
        let services: Vec<_> = (0..SERVICES)
            .map(|i| {
                let endpoints = json!({ "static": [server.at4(8080)] });
                json!({ "name": format!("s{i}.example"), "port": 8080, "mtls": "off", "endpoints": endpoints })
            })
            .collect();
        let routes: Vec<_> = (0..ROUTES)
            .map(|i| {
                let mut rule = telling(&format!("r{i}"), json!([{ "path": { "value": format!("/whoami/{i}") } }]));
                rule["timeouts"] = json!({ "request": "5s" });
                let next = (i + 1) % SERVICES;
                rule["backendRefs"] = json!([{ "name": format!("s{next}.example") }]);
                json!({ "name": format!("r{i}"), "hostnames": [format!("s{}.example", i % SERVICES)], "rules": [rule] })
            })
            .collect();
        let begun = Instant::now();
        let config = json!({ "workers": 1, "services": services, "routes": routes });
        let sidecar = Sidecar::start(&mesh, &client, config).await;
        let (started, loaded) = (begun.elapsed(), sidecar.memory_kib("VmRSS"));
        for i in [0, 1_999, 2_000, 4_999] {
            let host = format!("s{}.example:8080", i % SERVICES);
            let reply = client.get(server.at4(8080), &host, &format!("/whoami/{i}/x")).await;
            assert_eq!((reply.status.as_u16(), reply.header("x-rule")), (200, format!("r{i}").as_str()));
            let other = client.get(server.at4(8080), &host, &format!("/whoami/{}/x", i + 1)).await;
            assert_eq!(other.header("outrigger-error"), "no_route");
        }
        println!("ready after {started:?}; {before} KiB without, {loaded} KiB with all");
        // Optimised, reading the file is what takes its time; here its parser is not.
        assert!(started < Duration::from_secs(15), "{started:?}");
        assert!(loaded - before < 120 * 1_024, "{before} KiB, then {loaded} KiB");
    });
}
