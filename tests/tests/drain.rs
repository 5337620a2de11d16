//! An endpoint leaves DNS: what is under way there finishes, what is new goes elsewhere, and its connections close.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use http::Method;
use outrigger_e2e::{
    harness::{
        self, Mesh, Pod, Process, Reply, Shop,
        client::{body, grpc_call, request},
        pair::ECHO,
        pki::id,
        shop::ORDERS,
    },
    workload::{grpc, websocket},
};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    task::spawn_local,
    time::{sleep, timeout},
};

const SOON: Duration = Duration::from_secs(5);
const HOST: &str = "orders.mesh:8080";
/// The opaque service on the same replicas.
const STREAMS: &str = "streams.mesh";

/// Two replicas that serve HTTP and an opaque echo; DNS names the first of them alone.
async fn open() -> (Shop, Vec<Process>) {
    let services = json!({ "services": [
        { "name": ORDERS, "port": 8080 },
        { "name": STREAMS, "port": ECHO, "identities": [id("orders1"), id("orders2")] },
    ] });
    let shop = Shop::open(Mesh::new(), 2, 1, services).await;
    let mut echoes = Vec::new();
    for replica in &shop.replicas {
        echoes.push(replica.pod.serve(&["--tcp-echo", &ECHO.to_string()]).await);
    }
    point(&shop, &[0]).await;
    (shop, echoes)
}

/// Lets both names mean these replicas, and waits until every worker of the client's sidecar knows.
async fn point(shop: &Shop, replicas: &[usize]) {
    let ips: Vec<IpAddr> = replicas.iter().map(|&n| shop.replicas[n].pod.v4.into()).collect();
    for (name, port) in [(ORDERS, 8080), (STREAMS, ECHO)] {
        shop.mesh.dns.set(name, 1, &ips);
        let wanted: BTreeSet<_> = ips.iter().map(|ip| format!("{ip}:{port}")).collect();
        harness::eventually("the client's sidecar takes up the change", SOON, || async {
            // The union of the workers' views: what has left is in none of them.
            let service = shop.endpoints(name).await;
            let all = service["endpoints"].as_array().cloned().unwrap_or_default();
            let now: BTreeSet<_> = all.iter().filter_map(|e| Some(e["address"].as_str()?.to_owned())).collect();
            if now == wanted { Ok(()) } else { Err(format!("{now:?}, not {wanted:?}")) }
        })
        .await;
    }
}

/// Mesh connections that are open now, as this pod's sidecar counts them.
async fn mesh_connections(pod: &Pod, direction: &str) -> f64 {
    pod.metric("outrigger_connections_open", &[("direction", direction), ("transport", "mtls")]).await
}

async fn until_no_mesh_connection(pod: &Pod) {
    harness::eventually("the departed endpoint's mesh connections close", SOON, || async {
        let open = mesh_connections(pod, "inbound").await;
        if open == 0.0 { Ok(()) } else { Err(format!("{open} open")) }
    })
    .await;
}

async fn echo(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    stream.write_all(b"\x01still here").await.unwrap();
    let mut back = [0; 11];
    timeout(SOON, stream.read_exact(&mut back)).await.expect("the echo").unwrap();
    assert_eq!(&back, b"\x01still here");
}

async fn echo_frame(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    websocket::write_frame(io, 0x82, b"still here", Some([1, 2, 3, 4])).await.unwrap();
    let frame = timeout(SOON, websocket::read_frame(io)).await.expect("the echo").unwrap();
    assert_eq!(frame, (0x82, b"still here".to_vec()));
}

/// A request in that version that is answered after `ms`, under way from now on.
async fn delayed(shop: &Shop, h2: bool, ms: u32) -> tokio::task::JoinHandle<Reply> {
    let (mut sender, cut) = shop.client.http(shop.replicas[0].pod.at4(8080), h2).await;
    let ask = request(HOST, h2, Method::POST, &format!("/delay/{ms}")).body(body("x")).unwrap();
    spawn_local(async move {
        let _cut = cut;
        Reply::read(sender.send(ask).await.unwrap()).await.unwrap()
    })
}

#[test]
fn what_is_under_way_at_an_endpoint_that_leaves_is_finished_there() {
    const MESSAGES: usize = 100;
    harness::run(async {
        let (shop, _echoes) = open().await;
        let (first, second) = (&shop.replicas[0], &shop.replicas[1]);
        let to = first.pod.at4(8080);

        let requests = [delayed(&shop, false, 5_000).await, delayed(&shop, true, 5_000).await];
        let (mut sender, _cut) = shop.client.http(to, true).await;
        let ask = grpc::frame(MESSAGES.to_string().as_bytes());
        let ask = grpc_call(HOST, "ServerStream", body(ask), &[("x-pause-ms", "50")]);
        let mut stream = grpc::Messages::new(sender.send(ask).await.unwrap().into_body());
        let stream = spawn_local(async move {
            let mut received = Vec::new();
            while let Some(message) = stream.next().await.unwrap() {
                received.push(String::from_utf8_lossy(&message).into_owned());
            }
            (received, stream.trailers)
        });
        let (mut upgraded, cut) = shop.client.upgraded(to, HOST, "websocket").await;
        echo_frame(&mut upgraded).await;
        let mut opaque = shop.client.connect(first.pod.at4(ECHO)).await.unwrap();
        echo(&mut opaque).await;
        harness::eventually("all four requests are at the first replica", SOON, || async {
            let n = first.count().await;
            if n == 4 { Ok(()) } else { Err(format!("{n}")) }
        })
        .await;

        point(&shop, &[1]).await;
        assert!(requests.iter().all(|r| !r.is_finished()) && !stream.is_finished(), "all of them outlast the change");
        for _ in 0..20 {
            assert_eq!(shop.get("/").await.text(), "orders2\n", "what is new goes elsewhere");
            let ask = request(HOST, true, Method::GET, "/").body(body("")).unwrap();
            assert_eq!(shop.client.send(to, true, ask).await.text(), "orders2\n");
            echo_frame(&mut upgraded).await;
            echo(&mut opaque).await;
        }
        assert!(requests.iter().all(|r| !r.is_finished()) && !stream.is_finished(), "all of them are still under way");
        assert!(mesh_connections(&first.pod, "inbound").await >= 2.0, "streams and opaque bytes need theirs");

        for request in requests {
            let reply = request.await.unwrap();
            assert_eq!((reply.status.as_u16(), reply.text()), (200, "orders1\n".to_owned()));
        }
        let (received, trailers) = stream.await.unwrap();
        let all: Vec<_> = (1..=MESSAGES).map(|n| n.to_string()).collect();
        assert_eq!(received, all);
        assert_eq!(trailers.expect("trailers")["grpc-status"], "0");
        echo_frame(&mut upgraded).await;
        echo(&mut opaque).await;
        websocket::write_frame(&mut upgraded, 0x88, &[3, 232], Some([9; 4])).await.unwrap();
        assert_eq!(timeout(SOON, websocket::read_frame(&mut upgraded)).await.unwrap().unwrap().0, 0x88);
        drop((upgraded, cut));
        opaque.shutdown().await.unwrap();
        assert_eq!(timeout(SOON, opaque.read(&mut [0; 1])).await.unwrap().unwrap(), 0, "its end, and no reset");

        until_no_mesh_connection(&first.pod).await;
        assert_eq!(first.count().await, 4, "nothing new reached it");
        let (ours, theirs) = (mesh_connections(&shop.client, "outbound").await, second);
        assert_eq!(ours, mesh_connections(&theirs.pod, "inbound").await, "only the second replica is connected to");
        for pod in [&shop.client, &first.pod, &second.pod] {
            assert_eq!(pod.metric("outrigger_errors_total", &[]).await, 0.0, "{}", pod.name);
        }
        assert_eq!(shop.client.metric("outrigger_retries_total", &[]).await, 0.0);
    });
}

#[test]
fn an_idle_connection_to_an_endpoint_that_leaves_is_closed_at_once() {
    harness::run(async {
        let (shop, _echoes) = open().await;
        let first = &shop.replicas[0].pod;
        for _ in 0..8 {
            assert_eq!(shop.get("/").await.text(), "orders1\n");
        }
        assert!(mesh_connections(first, "inbound").await >= 1.0);
        point(&shop, &[1]).await;
        until_no_mesh_connection(first).await;
        // It comes back while a request that began before is still under way at the other.
        point(&shop, &[0]).await;
        let old = delayed(&shop, false, 8_000).await;
        sleep(Duration::from_millis(300)).await;
        point(&shop, &[1]).await;
        point(&shop, &[0]).await;
        assert_eq!(shop.get("/").await.text(), "orders1\n");
        assert!(!old.is_finished());
        assert_eq!(old.await.unwrap().text(), "orders1\n");
    });
}

#[test]
fn the_last_endpoint_that_leaves_finishes_its_requests_too() {
    harness::run(async {
        let (shop, _echoes) = open().await;
        let requests = [delayed(&shop, false, 3_500).await, delayed(&shop, true, 3_500).await];
        sleep(Duration::from_millis(300)).await;
        point(&shop, &[]).await;
        let refused = shop.get("/").await;
        assert_eq!((refused.status.as_u16(), refused.header("outrigger-error")), (503, "no_endpoints"));
        assert!(requests.iter().all(|r| !r.is_finished()));
        for request in requests {
            assert_eq!(request.await.unwrap().text(), "orders1\n");
        }
        until_no_mesh_connection(&shop.replicas[0].pod).await;
    });
}
