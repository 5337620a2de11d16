//! Two real sidecars whose identities come from an agent of the SPIFFE Workload API, and nothing from files.

use std::time::Duration;

use outrigger_e2e::harness::{
    self, Mesh, Pod, Process, Sidecar,
    agent::{Agent, nothing, svid},
    pki::{Leaf, TestCa, id},
    shop::{ORDERS, URL, assert_none_failed},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);
const HOST: &str = "orders.mesh:8080";

struct Agents {
    client_agent: Agent,
    server_agent: Agent,
    client_sidecar: Sidecar,
    _server_sidecar: Sidecar,
    _origin: Process,
    client: Pod,
    server: Pod,
    mesh: Mesh,
}

/// A new identity of this pod.
fn new_identity(pod: &Pod, ca: &TestCa, roots: &str) -> outrigger_identity::workload_proto::X509svid {
    let names: &[&str] = if pod.name == "server" { &[ORDERS] } else { &[] };
    svid(&id(&pod.name), &ca.issue(&Leaf::of(&pod.name, names)), roots)
}

impl Agents {
    async fn new(ca: &TestCa) -> Self {
        let mesh = Mesh::new();
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        mesh.dns.set(ORDERS, 60, &[server.v4.into()]);
        let origin = server.serve(&["--http", "8080"]).await;
        let agents = [&client, &server].map(|pod| {
            let agent = Agent::start(pod, nothing());
            agent.give(vec![new_identity(pod, ca, &ca.bundle())]);
            agent
        });
        let [client_agent, server_agent] = agents;
        let config = |agent: &Agent| json!({ "identity": { "workload_api": agent.endpoint() } });
        let server_sidecar = Sidecar::start(&mesh, &server, config(&server_agent)).await;
        let mut client_config = config(&client_agent);
        harness::sidecar::merge(&mut client_config, json!({ "services": [{ "name": ORDERS, "port": 8080 }] }));
        let client_sidecar = Sidecar::start(&mesh, &client, client_config).await;
        Self {
            client_agent,
            server_agent,
            client_sidecar,
            _server_sidecar: server_sidecar,
            _origin: origin,
            client,
            server,
            mesh,
        }
    }

    /// Gives both a new identity by this CA, and waits until both have it.
    async fn renew(&self, ca: &TestCa, roots: &str) {
        for (agent, pod) in [(&self.client_agent, &self.client), (&self.server_agent, &self.server)] {
            let before = pod.admin("/certs").await.json();
            agent.give(vec![new_identity(pod, ca, roots)]);
            harness::eventually("the new identity is in use", SOON, || async {
                let now = pod.admin("/certs").await.json();
                let is_new = now["certificate"]["serial"] != before["certificate"]["serial"];
                let has_all = now["roots"].as_array().unwrap().len() == roots.matches("BEGIN").count();
                if is_new && has_all { Ok(()) } else { Err(format!("{now:#}")) }
            })
            .await;
        }
    }

    async fn get(&self) -> harness::Reply {
        self.client.get(self.server.at4(8080), HOST, "/").await
    }
}

#[test]
fn identities_and_roots_are_replaced_by_the_agent_under_live_traffic_and_no_request_fails() {
    harness::run(async {
        let (old, new) = (TestCa::new("the old root"), TestCa::new("the new root"));
        let mut they = Agents::new(&old).await;
        let args = ["--url", URL, "--duration", "30s", "--connections", "4", "--rate", "200"];
        let load = they.client.load(&args);
        they.renew(&old, &old.bundle()).await;
        let both = old.bundle() + &new.bundle();
        they.renew(&old, &both).await;
        they.renew(&new, &both).await;
        // Both agents are away for a while, which nobody notices.
        let endpoints = [they.client_agent.endpoint(), they.server_agent.endpoint()];
        let certs = they.client.admin("/certs").await.json();
        drop((they.client_agent, they.server_agent));
        harness::eventually("the failure is told", SOON, || async {
            let now = they.client.admin("/certs").await.json();
            let told = now["last_error"].as_str().unwrap_or_default().contains(&endpoints[0]);
            if told { Ok(()) } else { Err(format!("{now:#}")) }
        })
        .await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(they.client.admin("/certs").await.json()["certificate"]["serial"], certs["certificate"]["serial"]);
        let ready = they.client.get((std::net::Ipv4Addr::LOCALHOST, 15020).into(), "localhost", "/readyz").await;
        assert_eq!(ready.status, 200, "{}", ready.text());
        they.client_agent = Agent::start(&they.client, Ok(Default::default()));
        they.server_agent = Agent::start(&they.server, nothing());
        // What they say at first is refused; then they know the workloads again.
        tokio::time::sleep(Duration::from_secs(2)).await;
        for (agent, pod) in [(&they.client_agent, &they.client), (&they.server_agent, &they.server)] {
            agent.give(vec![new_identity(pod, &new, &both)]);
        }
        for pod in [&they.client, &they.server] {
            harness::eventually("the agent is asked again", Duration::from_secs(20), || async {
                let now = pod.admin("/certs").await.json();
                if now["last_error"].is_null() { Ok(()) } else { Err(format!("{now:#}")) }
            })
            .await;
        }
        they.renew(&new, &both).await;
        // Connections that lead to the old root have been replaced with the certificates, or are now.
        they.renew(&new, &new.bundle()).await;
        assert_eq!(they.get().await.text(), "server\n");
        assert_none_failed(&load.report().await);
        they.client_sidecar.assert_running();
        // An agent gives keys for memory alone.
        let kept: Vec<_> = std::fs::read_dir(they.client.folder("identity")).unwrap().collect();
        assert!(kept.is_empty(), "{kept:?}");
        drop(they.mesh);
    });
}

#[test]
fn a_workload_that_the_agent_does_not_know_is_told_so_and_ready_as_soon_as_it_does() {
    harness::run(async {
        let ca = TestCa::new("a root");
        let mesh = Mesh::new();
        let pod = mesh.pod("client");
        let agent = Agent::start(&pod, nothing());
        let config = |id: Value| json!({ "identity": { "workload_api": agent.endpoint(), "id": id } });
        let mut sidecar = Sidecar::launch(&mesh, &pod, config(id("client").into()));
        let telemetry = (std::net::Ipv4Addr::LOCALHOST, 15020).into();
        let says = async |words: &str| {
            harness::eventually(words, Duration::from_secs(10), || async {
                let reply = pod.try_get(telemetry, "localhost", "/readyz").await?;
                let is_so = reply.status == 503 && reply.text().contains(words);
                if is_so { Ok(()) } else { Err(reply.text()) }
            })
            .await;
        };
        says("no identity for this workload (no identity issued); register it").await;
        let other = svid(&id("other"), &ca.issue(&Leaf::of("other", &[])), &ca.bundle());
        agent.give(vec![other.clone()]);
        says("has no spiffe://mesh.example/ns/test/sa/client, but spiffe://mesh.example/ns/test/sa/other").await;
        agent
            .give(vec![outrigger_identity::workload_proto::X509svid { x509_svid: b"hello".to_vec(), ..other.clone() }]);
        says("has a chain that is not DER").await;
        let expired = Leaf { from: -7_200, until: -3_600, ..Leaf::of("client", &[]) };
        agent.give(vec![svid(&id("client"), &ca.issue(&expired), &ca.bundle())]);
        says("expired").await;
        agent.give(vec![other, new_identity(&pod, &ca, &ca.bundle())]);
        sidecar.ready(&pod).await;
        let certs = pod.admin("/certs").await.json();
        assert_eq!(certs["certificate"]["id"], id("client"), "{certs:#}");
        assert_eq!(certs["source"], format!("the Workload API at {}", agent.endpoint()));
    });
}
