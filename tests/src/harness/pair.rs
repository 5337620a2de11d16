//! The smallest mesh: a client and a server, each with a sidecar, real certificates and an origin.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Mesh, Pod, Process, Sidecar, pki::Ca};

/// HTTP of every version, by the origin.
pub const HTTP: u16 = 8080;
/// Raw echo, by the origin.
pub const ECHO: u16 = 9000;
/// A server that speaks first, by the origin.
pub const FIRST: u16 = 9001;
/// For listeners that a test makes itself.
pub const SCRIPT: u16 = 9002;

/// One family of addresses, with names that resolve to that family alone, so that every leg is of it.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// 4 or 6.
    pub version: u8,
    ip: std::net::IpAddr,
}

impl Family {
    /// The server's address at this port.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.ip, port).into()
    }

    /// The name of the HTTP service.
    pub fn host(&self) -> String {
        format!("orders{}.mesh:{HTTP}", self.version)
    }

    /// Where the server's sidecar connects to its application from.
    pub fn sidecar_leg(&self) -> &'static str {
        if self.version == 4 { "127.0.0.6" } else { "::6" }
    }
}

/// The two pods. Fields end in the order in which they stand: processes, pods, mesh.
pub struct Pair {
    /// The sidecar of `client`.
    pub client_sidecar: Sidecar,
    /// The sidecar of `server`.
    pub server_sidecar: Sidecar,
    /// The application of `server`.
    pub origin: Process,
    /// The pod that calls.
    pub client: Pod,
    /// The pod that is called.
    pub server: Pod,
    /// The CA of both.
    pub ca: Ca,
    /// The network.
    pub mesh: Mesh,
}

impl Pair {
    /// Both with the tests' settings.
    pub async fn new(mesh: Mesh) -> Self {
        Self::with(mesh, json!({}), json!({})).await
    }

    /// Both with settings of the test's own on top: the client's, the server's.
    pub async fn with(mesh: Mesh, client_config: Value, server_config: Value) -> Self {
        let ca = Ca::init(&mesh);
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let (mut names, mut services) = (Vec::new(), Vec::new());
        for (stem, port) in [("orders", HTTP), ("echo", ECHO), ("first", FIRST), ("script", SCRIPT)] {
            for (version, ip) in [4, 6].into_iter().zip(server.ips()) {
                let name = format!("{stem}{version}.mesh");
                mesh.dns.set(&name, 60, &[ip]);
                services.push(json!({ "name": &name, "port": port }));
                names.push(name);
            }
        }
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        ca.issue(&client, &[], "1h");
        ca.issue(&server, &names, "1h");
        let (http, echo, first) = (HTTP.to_string(), ECHO.to_string(), FIRST.to_string());
        let origin = server.serve(&["--http", &http, "--tcp-echo", &echo, "--tcp-first", &first]).await;
        let mut config = json!({ "services": services });
        super::sidecar::merge(&mut config, client_config);
        let client_sidecar = Sidecar::start(&mesh, &client, config).await;
        let server_sidecar = Sidecar::start(&mesh, &server, server_config).await;
        let pair = Self { client_sidecar, server_sidecar, origin, client, server, ca, mesh };
        pair.until_endpoints_are_known().await;
        pair
    }

    /// Opaque connections are named by address, so the addresses must be known before the first.
    async fn until_endpoints_are_known(&self) {
        super::eventually("the client's sidecar knows all endpoints", std::time::Duration::from_secs(5), || async {
            let text = self.client.admin("/endpoints").await.text();
            let all = self.families().into_iter().flat_map(|f| [HTTP, ECHO, FIRST, SCRIPT].map(|p| f.at(p)));
            let missing: Vec<_> = all.filter(|a| !text.contains(&format!("\"{a}\""))).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} missing in {text}")) }
        })
        .await;
    }

    /// IPv4, then IPv6.
    pub fn families(&self) -> [Family; 2] {
        [Family { version: 4, ip: self.server.v4.into() }, Family { version: 6, ip: self.server.v6.into() }]
    }
}
