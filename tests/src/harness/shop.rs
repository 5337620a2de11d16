//! A client and several replicas of `orders.mesh`, each with a sidecar.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::{Mesh, Pod, Process, Reply, Sidecar, client::Body, pki::Ca};

/// The name that all replicas may serve.
pub const ORDERS: &str = "orders.mesh";
/// What the client calls.
pub const URL: &str = "http://orders.mesh:8080/";

/// The configuration of a client that calls `orders.mesh` by these settings.
pub fn orders(settings: Value) -> Value {
    let mut service = json!({ "name": ORDERS, "port": 8080 });
    super::sidecar::merge(&mut service, settings);
    json!({ "services": [service] })
}

/// The same where neither the budget of retries nor outlier detection takes part, and one worker decides.
pub fn unhindered_orders(settings: Value) -> Value {
    let mut config = orders(json!({
        "retry": { "budget_floor": 1000, "backoff": "5ms" },
        "outlier_detection": {
            "consecutive_5xx": 0, "consecutive_gateway_failure": 0, "consecutive_local_origin_failure": 0,
        },
    }));
    super::sidecar::merge(&mut config["services"][0], settings);
    config["workers"] = json!(1);
    config
}

/// A request to `orders.mesh`.
pub fn request(h2: bool, method: &http::Method, path: &str, data: Body) -> http::Request<Body> {
    let request = http::Request::builder().method(method);
    let host = "orders.mesh:8080";
    let request = if h2 { request.uri(format!("http://{host}{path}")) } else { request.uri(path).header("host", host) };
    request.body(data).unwrap()
}

/// One replica. Fields end in the order in which they stand.
pub struct Replica {
    /// Its sidecar.
    pub sidecar: Sidecar,
    /// Its application.
    pub origin: Process,
    /// Its pod.
    pub pod: Pod,
}

impl Replica {
    /// Asks its application past every sidecar: from inside the pod, over loopback.
    pub async fn ask(&self, path: &str) -> Reply {
        self.pod.get((Ipv4Addr::LOCALHOST, 8080).into(), "localhost", path).await
    }

    /// The requests that reached its application.
    pub async fn count(&self) -> u64 {
        self.ask("/count").await.text().trim().parse().unwrap()
    }

    /// Application and sidecar are killed, as when the pod's machine dies.
    pub fn kill(&mut self) {
        self.origin.kill();
        self.sidecar.kill();
    }

    /// Both start again.
    pub async fn restart(&mut self, mesh: &Mesh) {
        self.origin = self.pod.serve(&["--http", "8080"]).await;
        self.sidecar = Sidecar::start(mesh, &self.pod, json!({})).await;
    }
}

/// The client, the replicas, and what they need.
pub struct Shop {
    /// The client's sidecar.
    pub client_sidecar: Sidecar,
    /// The replicas, of names `orders1`, `orders2` …
    pub replicas: Vec<Replica>,
    /// The pod that calls.
    pub client: Pod,
    /// The CA of all.
    pub ca: Ca,
    /// The network.
    pub mesh: Mesh,
}

impl Shop {
    /// `replicas` replicas behind one DNS name of this TTL in seconds, and settings of the client's sidecar.
    pub async fn open(mesh: Mesh, replicas: usize, ttl: u32, client_config: Value) -> Self {
        Self::with(mesh, replicas, ttl, client_config, json!({})).await
    }

    /// The same with settings of the replicas' sidecars.
    pub async fn with(mesh: Mesh, replicas: usize, ttl: u32, client_config: Value, server_config: Value) -> Self {
        let ca = Ca::init(&mesh);
        let client = mesh.pod("client");
        ca.issue(&client, &[], "1h");
        let pods: Vec<_> = (1..=replicas).map(|n| mesh.pod(&format!("orders{n}"))).collect();
        let addresses: Vec<IpAddr> = pods.iter().map(|pod| pod.v4.into()).collect();
        mesh.dns.set(ORDERS, ttl, &addresses);
        let mut client_sidecar = Sidecar::launch(&mesh, &client, client_config);
        let mut replicas = Vec::new();
        for pod in pods {
            ca.issue(&pod, &[ORDERS], "1h");
            let origin = pod.serve(&["--http", "8080"]).await;
            let sidecar = Sidecar::launch(&mesh, &pod, server_config.clone());
            replicas.push(Replica { sidecar, origin, pod });
        }
        for replica in &mut replicas {
            replica.sidecar.ready(&replica.pod).await;
        }
        client_sidecar.ready(&client).await;
        Self { client_sidecar, replicas, client, ca, mesh }
    }

    /// One GET of the client's through the mesh.
    pub async fn get(&self, path: &str) -> Reply {
        // Any address: the name in the request says who is meant.
        self.client.get(self.replicas[0].pod.at4(8080), "orders.mesh:8080", path).await
    }

    /// The client's view of the endpoints of a service.
    pub async fn endpoints(&self, service: &str) -> Value {
        let all = self.client.admin("/endpoints").await.json();
        let found =
            all.as_array().and_then(|all| all.iter().find(|s| s.to_string().contains(&format!("\"{service}\""))));
        found.cloned().unwrap_or(Value::Null)
    }

    /// How many requests reached the applications, in all.
    pub async fn count(&self) -> u64 {
        let mut all = 0;
        for replica in &self.replicas {
            all += replica.count().await;
        }
        all
    }
}

/// Panics unless every request of a load was answered well.
pub fn assert_none_failed(report: &Value) {
    assert_eq!(report["failed"], 0, "{report:#}");
    assert!(report["ok"].as_u64().unwrap() > 0, "{report:#}");
}
