//! Real sidecars whose CA is istiod: its chains, its metadata, and that it publishes nothing.

use std::time::Duration;

use outrigger_e2e::harness::{
    self, Mesh, Pod, Sidecar,
    istiod::{Issuing, Istiod},
    pki::{Leaf, TestCa, secret},
    shop::ORDERS,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);

/// As Istio mounts them: a service account's token, and the root of istiod's own certificate.
fn identity(pod: &Pod, istiod: &Pod, root: &TestCa) -> Value {
    let folder = pod.folder("enrolment");
    secret(&folder.join("istio-token"), &format!("header.{}.signature", pod.name));
    std::fs::write(folder.join("root-cert.pem"), root.bundle()).unwrap();
    json!({ "ca": {
        "address": format!("{}:15012", istiod.v4),
        "bundle": folder.join("root-cert.pem"),
        "token_file": folder.join("istio-token"),
        "cluster_id": "cluster-1",
    } })
}

#[test]
fn istiod_issues_and_renews_and_its_roots_are_taken_up() {
    harness::run(async {
        let mesh = Mesh::new();
        let (istiod_pod, client, server) = (mesh.pod("istiod"), mesh.pod("client"), mesh.pod("server"));
        mesh.dns.set(ORDERS, 60, &[server.v4.into()]);
        let (root, next) = (TestCa::new("the root"), TestCa::new("the next root"));
        // Two intermediates, which come in one string.
        let issuer = root.intermediate("upper").intermediate("lower");
        // At half of its life, and not sooner than a minute, it is renewed.
        let short = |name: &str, names: &[&str]| Leaf { until: 60, ..Leaf::of(name, names) };
        let token = |name: &str| format!("header.{name}.signature");
        let accounts = vec![(token("client"), short("client", &[])), (token("server"), Leaf::of("server", &[ORDERS]))];
        let issuing = Issuing { issuer, roots: root.bundle(), accounts };
        let istiod = Istiod::start(&istiod_pod, &root, issuing);
        let _origin = server.serve(&["--http", "8080"]).await;
        let config = |pod: &Pod| json!({ "identity": identity(pod, &istiod_pod, &root) });
        let _server_sidecar = Sidecar::start(&mesh, &server, config(&server)).await;
        let mut client_config = config(&client);
        harness::sidecar::merge(&mut client_config, json!({ "services": [{ "name": ORDERS, "port": 8080 }] }));
        let client_sidecar = Sidecar::start(&mesh, &client, client_config).await;
        let ask = async || client.get(server.at4(8080), "orders.mesh:8080", "/").await.text();
        assert_eq!(ask().await, "server\n");
        let certs = client.admin("/certs").await.json();
        assert_eq!(certs["certificate"]["chain_length"], 3, "{certs:#}");
        let asked = istiod.asked();
        assert_eq!(asked.len(), 2, "{asked:?}");
        for (asked, pod) in asked.iter().zip([&server, &client]) {
            assert_eq!(asked.token, Some(token(&pod.name)));
            assert_eq!((asked.certificate, asked.cluster.as_deref()), (false, Some("cluster-1")));
        }

        // Renewed with the certificate itself; a root that comes with it joins the others.
        istiod.change(|issuing| issuing.roots = root.bundle() + &next.bundle());
        harness::eventually("the client's certificate is renewed", Duration::from_secs(60), || async {
            let now = client.admin("/certs").await.json();
            let is_new = now["certificate"]["serial"] != certs["certificate"]["serial"];
            if is_new { Ok(()) } else { Err(format!("{now:#}")) }
        })
        .await;
        let renewal = istiod.asked().pop().unwrap();
        assert!(renewal.certificate && renewal.token.is_none(), "{renewal:?}");
        assert_eq!(renewal.cluster.as_deref(), Some("cluster-1"));
        let now = client.admin("/certs").await.json();
        assert_eq!(now["roots"].as_array().unwrap().len(), 2, "{now:#}");
        assert!(now["last_error"].is_null(), "that istiod publishes no bundle is no error: {now:#}");
        assert!(client_sidecar.log_text().contains("the CA publishes no bundle"), "{}", client_sidecar.log_text());
        assert_eq!(ask().await, "server\n");

        // A token that istiod does not know is told so.
        let stranger = mesh.pod("stranger");
        let sidecar = Sidecar::launch(&mesh, &stranger, config(&stranger));
        harness::eventually("the refusal is told", SOON, || async {
            let log = sidecar.log_text();
            if log.contains("request authenticate failure") { Ok(()) } else { Err(log) }
        })
        .await;
    });
}
