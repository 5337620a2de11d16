//! Tokens of Kubernetes that an API server reviews. The stand-in answers as the documentation of `TokenReview` has it.

use std::sync::{Arc, Mutex};

use outrigger_identity::{
    csr::new_key_and_csr,
    enrol::{Credential, EnrolError, Enrolled},
    proto::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
};
use serde_json::{Value, json};

use super::{
    Ca, Server, ask, leaf, names,
    stand_in::{Asked, StandIn},
};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// Shaped like a JWT, which is all that the CA looks at: whether it is good, the API server says.
const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl";

/// The status of a good review for a pod of the account `orders` in `shop`.
fn reviewed() -> Value {
    json!({
        "authenticated": true,
        "user": {
            "username": "system:serviceaccount:shop:orders",
            "uid": "0f1e2d3c-aaaa-bbbb-cccc-123456789012",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
            "extra": {
                "authentication.kubernetes.io/credential-id": ["JTI=7e0d3b1c-0000-1111-2222-333344445555"],
                "authentication.kubernetes.io/node-name": ["node-1"],
                "authentication.kubernetes.io/pod-name": ["orders-7d4b9c-x2x7p"],
                "authentication.kubernetes.io/pod-uid": ["9a8b7c6d-1111-2222-3333-444455556666"]
            }
        },
        "audiences": ["outrigger-ca"]
    })
}

struct Cluster {
    api: StandIn,
    /// What the API server answers next: HTTP's status and the body.
    answer: Arc<Mutex<(u16, String)>>,
}

impl Cluster {
    fn new() -> Self {
        let answer = Arc::new(Mutex::new((500, String::new())));
        let next = Arc::clone(&answer);
        let api = StandIn::new(move |_, asked: &Asked| match asked.path.as_str() {
            PATH => next.lock().unwrap().clone(),
            other => (404, format!("no {other} here")),
        });
        Self { api, answer }
    }

    fn says(&self, status: &Value) {
        let review = json!({
            "kind": "TokenReview",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": { "managedFields": [] },
            "spec": { "token": TOKEN, "audiences": ["outrigger-ca"] },
            "status": status,
        });
        *self.answer.lock().unwrap() = (201, review.to_string());
    }

    /// A CA that asks this cluster.
    fn serve(&self, ca: &Ca, options: &[&str]) -> Server {
        let (root, token) = (ca.path("api-ca.crt"), ca.path("own-token"));
        std::fs::write(&root, &self.api.root).unwrap();
        std::fs::write(&token, "the-own-token\n").unwrap();
        let fixed = ["--k8s-api", &self.api.url, "--k8s-ca", &root, "--k8s-token-file", &token];
        ca.serve_with(&[&fixed[..], &["--failed-attempts", "off"], options].concat())
    }
}

async fn enrol(ca: &Ca, server: &Server, token: &str) -> Result<Enrolled, EnrolError> {
    let (_, csr) = new_key_and_csr(None).unwrap();
    ask(server, &ca.bundle(), Credential::Token(token.to_owned()), csr.as_str()).await
}

#[tokio::test]
async fn a_reviewed_pod_gets_the_identity_of_its_account_and_is_recorded() {
    let (ca, cluster) = (Ca::new(), Cluster::new());
    cluster.says(&reviewed());
    let server = cluster.serve(&ca, &[]);
    let enrolled = enrol(&ca, &server, TOKEN).await.unwrap();
    let pem = leaf(&enrolled.chain_pem);
    let certificate = pem.parse_x509().unwrap();
    let wanted = [
        "URI(spiffe://mesh.example/ns/shop/sa/orders)",
        "DNSName(orders.shop.svc.cluster.local)",
        "DNSName(orders.shop.svc)",
    ];
    assert_eq!(names(&certificate), wanted);
    let entry = ca.log().into_iter().find(|e| e["credential"] == "kubernetes").unwrap();
    let reference = entry["credential_ref"].as_str().unwrap();
    for part in ["shop/orders", "orders-7d4b9c-x2x7p", "9a8b7c6d-1111-2222-3333-444455556666", "7e0d3b1c-0000"] {
        assert!(reference.contains(part), "{reference}");
    }
    assert!(!entry.to_string().contains(TOKEN));

    let asked = cluster.api.asked.lock().unwrap()[0].clone();
    assert_eq!(asked.authorization.as_deref(), Some("Bearer the-own-token"));
    let review: Value = serde_json::from_slice(&asked.body).unwrap();
    assert_eq!((&review["kind"], &review["apiVersion"]), (&json!("TokenReview"), &json!("authentication.k8s.io/v1")));
    assert_eq!(review["spec"], json!({ "token": TOKEN, "audiences": ["outrigger-ca"] }));
    // A token of a pod is good until it expires: the kubelet gives each container the same.
    enrol(&ca, &server, TOKEN).await.unwrap();
}

#[tokio::test]
async fn what_the_review_does_not_grant_is_refused_for_the_right_reason() {
    let (ca, cluster) = (Ca::new(), Cluster::new());
    let server = cluster.serve(&ca, &["--metrics-listen", "127.0.0.1:0"]);
    let change = |path: &str, value: Value| {
        let mut status = reviewed();
        *status.pointer_mut(path).unwrap() = value;
        status
    };
    let denied =
        json!({ "authenticated": false, "error": "[invalid bearer token, service account token has expired]" });
    let node = "system:node:node-1";
    let table: Vec<(Value, &str, &str)> = vec![
        (denied, "unauthenticated", "token has expired"),
        (json!({}), "unauthenticated", "does not know it"),
        (json!({ "authenticated": false, "user": reviewed()["user"] }), "unauthenticated", "does not know it"),
        // A server that is not aware of audiences names none: the token would be good for the API server.
        (change("/audiences", json!([])), "unauthenticated", "another audience"),
        (change("/audiences", json!(["https://kubernetes.default.svc"])), "unauthenticated", "outrigger-ca"),
        (change("/user/username", json!(node)), "unauthenticated", "not for a service account"),
        (change("/user/username", json!("kubernetes-admin")), "unauthenticated", "kubernetes-admin"),
        (
            change("/user/username", json!("system:serviceaccount:shop:../admin")),
            "unauthenticated",
            "not for a service",
        ),
        (
            change("/user/username", json!("system:serviceaccount:shop:orders:x")),
            "unauthenticated",
            "not for a service",
        ),
        (change("/user/username", json!("system:serviceaccount:a/b:orders")), "unauthenticated", "not for a service"),
        (change("/user/groups", json!(["system:authenticated"])), "unauthenticated", "system:serviceaccounts"),
        (change("/user/extra", json!({})), "unauthenticated", "bound to no pod"),
    ];
    for (status, code, words) in table {
        cluster.says(&status);
        let error = enrol(&ca, &server, TOKEN).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(code) && text.contains(words) && error.is_permanent(), "{status}: {text}");
    }
    assert_eq!(ca.log().iter().filter(|e| e["credential"] == "kubernetes").count(), 0);
}

#[tokio::test]
async fn an_api_server_that_cannot_be_asked_accepts_nobody_and_says_so_to_the_operator_alone() {
    let (ca, cluster) = (Ca::new(), Cluster::new());
    let server = cluster.serve(&ca, &[]);
    let list = json!({ "kind": "Status", "status": "Failure", "message": "tokenreviews is forbidden", "code": 403 });
    let huge = format!("{{\"kind\":\"TokenReview\",\"status\":{{\"error\":\"{}\"}}}}", "a".repeat(2_000_000));
    for (status, body) in [
        (403, list.to_string()),
        (401, String::new()),
        (500, String::new()),
        (302, String::new()),
        (201, String::new()),
        (201, "not json".to_owned()),
        (201, "[]".to_owned()),
        (201, r#"{"kind":"TokenReview"}"#.to_owned()),
        (201, r#"{"kind":"TokenReview","status":{"authenticated":"true"}}"#.to_owned()),
        (201, json!({ "kind": "Pod", "status": reviewed() }).to_string()),
        (201, huge),
    ] {
        *cluster.answer.lock().unwrap() = (status, body);
        let error = enrol(&ca, &server, TOKEN).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("unavailable") && !error.is_permanent(), "{status}: {text}");
        assert!(!text.contains("forbidden") && !text.contains("127.0.0.1:1"), "{text}");
    }
    cluster.says(&reviewed());
    enrol(&ca, &server, TOKEN).await.unwrap();
    drop(cluster);
    let error = enrol(&ca, &server, TOKEN).await.unwrap_err();
    assert!(error.to_string().contains("unavailable") && !error.is_permanent(), "{error}");
    assert_eq!(ca.log().iter().filter(|e| e["credential"] == "kubernetes").count(), 1);
}

#[tokio::test]
async fn an_impostor_of_the_api_server_is_not_asked() {
    let (ca, cluster, impostor) = (Ca::new(), Cluster::new(), Cluster::new());
    impostor.says(&reviewed());
    let (root, token) = (ca.path("api-ca.crt"), ca.path("own-token"));
    std::fs::write(&root, &cluster.api.root).unwrap();
    std::fs::write(&token, "the-own-token").unwrap();
    let server = ca.serve_with(&["--k8s-api", &impostor.api.url, "--k8s-ca", &root, "--k8s-token-file", &token]);
    let error = enrol(&ca, &server, TOKEN).await.unwrap_err();
    assert!(error.to_string().contains("unavailable"), "{error}");
    assert!(impostor.api.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn options_choose_audience_names_and_unbound_tokens() {
    let (ca, cluster) = (Ca::new(), Cluster::new());
    let options =
        ["--k8s-audience", "istio-ca", "--k8s-audience", "mine", "--k8s-dns", "{sa}.{ns}", "--k8s-allow-unbound"];
    let server = cluster.serve(&ca, &options);
    let mut status = reviewed();
    status["audiences"] = json!(["istio-ca"]);
    status["user"]["extra"] = json!({});
    cluster.says(&status);
    let enrolled = enrol(&ca, &server, TOKEN).await.unwrap();
    let pem = leaf(&enrolled.chain_pem);
    let certificate = pem.parse_x509().unwrap();
    assert_eq!(names(&certificate), ["URI(spiffe://mesh.example/ns/shop/sa/orders)", "DNSName(orders.shop)"]);
    let asked = cluster.api.asked.lock().unwrap()[0].clone();
    let review: Value = serde_json::from_slice(&asked.body).unwrap();
    assert_eq!(review["spec"]["audiences"], json!(["istio-ca", "mine"]));
    // The CA itself answers as ca.mesh, and whoever had that name could stand in for it.
    status["user"]["username"] = json!("system:serviceaccount:mesh:ca");
    cluster.says(&status);
    let error = enrol(&ca, &server, TOKEN).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("CA's own server"), "{error}");
}

#[tokio::test]
async fn a_ca_that_was_not_told_of_a_cluster_takes_no_token_of_one() {
    let ca = Ca::new();
    let server = ca.serve();
    let error = enrol(&ca, &server, TOKEN).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("--k8s-api"), "{error}");
    let error = enrol(&ca, &server, &format!("{TOKEN}{}", "a".repeat(9_000))).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("limit is 8192"), "{error}");
}

#[test]
fn wrong_options_are_told_before_anything_is_served() {
    let ca = Ca::new();
    let dir = ca.path("ca");
    let root = ca.path("roots.pem");
    std::fs::write(&root, ca.bundle()).unwrap();
    let empty = ca.path("empty");
    std::fs::write(&empty, "").unwrap();
    let missing = ca.path("missing");
    let https = "https://127.0.0.1:1";
    let table: &[(&[&str], &str)] = &[
        (&["--k8s-api", https, "--k8s-ca", &missing, "--k8s-token-file", &root], "missing"),
        (&["--k8s-api", https, "--k8s-ca", &empty, "--k8s-token-file", &root], "no certificate"),
        (&["--k8s-api", https, "--k8s-ca", &root, "--k8s-token-file", &empty], "should hold a token"),
        (&["--k8s-api", "http://127.0.0.1:1", "--k8s-ca", &root, "--k8s-token-file", &dir], "Is a directory"),
        (&["--k8s-api", https, "--oidc-issuer", https], "cannot be used with"),
        (&["--oidc-issuer", "http://issuer", "--oidc-ca", &root], "not an https:// address"),
        (&["--k8s-audience", "x"], "required arguments"),
        (&["--k8s-dns", "{sa}.{ns}"], "required arguments"),
        (&["--oidc-jwks", &root], "--oidc-issuer"),
        (&["--oidc-issuer", https, "--k8s-dns", "{sa}.mesh"], "share a name"),
        (&["--failed-attempts", "1/d"], "not a rate"),
    ];
    for (options, words) in table {
        let fixed = ["serve", "--dir", &dir, "--listen", "127.0.0.1:0", "--metrics-listen", "off"];
        let text = super::refused(&[&fixed[..], options].concat());
        assert!(text.contains(words), "{options:?}: {text}");
    }
}

/// As Istio's agent asks: the header `ClusterID`, and metadata in the message.
#[tokio::test]
async fn a_request_as_istios_agent_sends_it_is_served() {
    let (ca, cluster) = (Ca::new(), Cluster::new());
    cluster.says(&reviewed());
    let server = cluster.serve(&ca, &[]);
    let (_, csr) = new_key_and_csr(None).unwrap();
    let roots = ca.bundle();
    let stream = super::limits::tls_to(&roots, &server.address, b"h2").await;
    let builder = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
    let io = hyper_util::rt::TokioIo::new(stream);
    let (sender, connection) = builder.handshake::<_, tonic::body::Body>(io).await.unwrap();
    tokio::spawn(connection);
    let service = tower::service_fn(move |request| {
        let mut sender = sender.clone();
        async move { sender.send_request(request).await }
    });
    let origin = format!("https://{}/", server.address).parse().unwrap();
    let mut client = IstioCertificateServiceClient::with_origin(service, origin);
    let request = |name: &str, value: &str| {
        let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(value.to_owned())) };
        let mut request = tonic::Request::new(IstioCertificateRequest {
            csr: csr.as_str().to_owned(),
            validity_duration: 86_400,
            metadata: Some(prost_types::Struct { fields: [(name.to_owned(), value)].into() }),
        });
        request.metadata_mut().insert("clusterid", "Kubernetes".parse().unwrap());
        request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
        request
    };
    // As a node proxy does for the pods of its node, which needs a trust that nobody has given.
    let other = request("ImpersonatedIdentity", "spiffe://mesh.example/ns/shop/sa/admin");
    let status = client.create_certificate(other).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status}");
    assert!(cluster.api.asked.lock().unwrap().is_empty());
    let request = request("CertSigner", "none");
    let chain = client.create_certificate(request).await.unwrap().into_inner().cert_chain;
    assert_eq!(chain.last(), Some(&roots), "the root comes last");
    assert!(chain.len() == 3 && chain.iter().all(|one| one.matches("BEGIN CERTIFICATE").count() == 1));
}
