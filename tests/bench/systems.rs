//! The systems that are compared: each is a pair of sidecars in two pods, behind the same redirection, with the same
//! certificates, one worker thread each, in front of the same application.

use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use nix::{sys::signal::Signal, time::clock_getcpuclockid, unistd::Pid};
use outrigger_e2e::harness::{
    Mesh, Pod, Process, Sidecar, eventually,
    pki::Ca,
    pod::{APP, SIDECAR},
};
use serde_json::{Value, json};

/// The service that is called.
pub(crate) const ORDERS: &str = "orders.mesh";
/// The application's ports.
pub(crate) const HTTP1: u16 = 8080;
/// HTTP/2 with prior knowledge.
pub(crate) const HTTP2: u16 = 8081;
/// gRPC.
pub(crate) const GRPC: u16 = 8082;
/// Bytes that come back.
pub(crate) const ECHO: u16 = 9000;
/// iperf3.
pub(crate) const BYTES: u16 = 5201;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum System {
    Direct,
    Outrigger,
    HaproxyH2,
    HaproxyH1,
    Nginx,
    EnvoyH2,
    EnvoyH1,
}

impl System {
    pub(crate) const ALL: [Self; 7] =
        [Self::Direct, Self::Outrigger, Self::HaproxyH2, Self::HaproxyH1, Self::Nginx, Self::EnvoyH2, Self::EnvoyH1];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "no proxy",
            Self::Outrigger => "Outrigger",
            Self::HaproxyH2 => "HAProxy h2",
            Self::HaproxyH1 => "HAProxy h1",
            Self::Nginx => "nginx",
            Self::EnvoyH2 => "Envoy h2",
            Self::EnvoyH1 => "Envoy h1",
        }
    }

    pub(crate) fn key(self) -> String {
        self.name().to_lowercase().replace(' ', "-")
    }

    fn speaks_h2_between(self) -> bool {
        matches!(self, Self::HaproxyH2 | Self::EnvoyH2)
    }
}

/// What a sidecar is set up for: most peers have to be told, ours sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    Http1,
    Http2,
    Grpc,
    OpaqueMtls,
    OpaquePlain,
}

impl Traffic {
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Http1 => HTTP1,
            Self::Http2 => HTTP2,
            Self::Grpc => GRPC,
            Self::OpaqueMtls | Self::OpaquePlain => BYTES,
        }
    }

    fn is_http(self) -> bool {
        !matches!(self, Self::OpaqueMtls | Self::OpaquePlain)
    }

    fn application_speaks_h2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }
}

/// Two pods for one system.
pub(crate) struct Bed<'a> {
    pub(crate) mesh: &'a Mesh,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    pub(crate) system: System,
    /// Whether our pair is told to stop after a scenario instead of being killed.
    pub(crate) ends_in_order: bool,
    /// The application; ends with the bed.
    origins: Vec<Process>,
}

/// A folder of the pod's that every user may write.
fn open_folder(pod: &Pod) -> PathBuf {
    let dir = pod.folder("bench").join("open");
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

fn file(pod: &Pod, name: &str, text: &str) -> PathBuf {
    let path = pod.folder("bench").join(name);
    fs::write(&path, text).unwrap();
    path
}

fn fill(template: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

impl<'a> Bed<'a> {
    /// The same for our own pair, with an application that needs nothing installed.
    pub(crate) async fn simple(mesh: &'a Mesh, ca: &Ca) -> Self {
        let mut bed = Self::pods(mesh, ca, System::Outrigger);
        let ports = [HTTP1, HTTP2].map(|p| p.to_string());
        let args = ["--http", &ports[0], "--http", &ports[1], "--tcp-echo", &ECHO.to_string()];
        bed.origins = vec![bed.server.serve(&args).await];
        bed
    }

    /// Pods, certificates and, but for `Direct`, the redirection.
    fn pods(mesh: &'a Mesh, ca: &Ca, system: System) -> Self {
        let client = mesh.pod(&format!("{}-client", system.key()));
        let server = mesh.pod(&format!("{}-server", system.key()));
        for pod in [&client, &server] {
            // Linux's default, whatever this host's is: BBR has each segment of everybody wait for a timer.
            let set = pod.output(0, "sysctl", &["-q", "-w", "net.ipv4.tcp_congestion_control=cubic"]);
            assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
        }
        for (pod, names) in [(&client, &[][..]), (&server, &[ORDERS][..])] {
            let identity = ca.issue(pod, names, "24h");
            let read = |name: &str| fs::read_to_string(identity.join(name)).unwrap();
            outrigger_e2e::harness::pki::secret(&identity.join("pair.pem"), &(read("cert.pem") + &read("key.pem")));
            if system != System::Direct {
                pod.redirect(&[]);
            }
        }
        Self { mesh, client, server, system, ends_in_order: false, origins: Vec::new() }
    }

    /// Pods, certificates, the application and, but for `Direct`, the redirection.
    pub(crate) async fn make(mesh: &'a Mesh, ca: &Ca, system: System) -> Self {
        let mut bed = Self::pods(mesh, ca, system);
        let server = &bed.server;
        let dir = open_folder(server);
        fs::write(dir.join("large"), vec![b'x'; 1 << 20]).unwrap();
        let kib = "x".repeat(1_024);
        let origin = fill(include_str!("peers/nginx-origin.conf"), &[("dir", dir.to_str().unwrap()), ("kib", &kib)]);
        let config = file(server, "nginx-origin.conf", &origin);
        let args = ["-c", config.to_str().unwrap(), "-e", "stderr"];
        let origins = vec![
            server.start(APP, "nginx", &args),
            server.start(APP, "iperf3", &["-s", "-p", &BYTES.to_string()]),
            server.serve(&["--http", &GRPC.to_string()]).await,
        ];
        for port in [HTTP1, HTTP2, BYTES] {
            listens(server, port).await;
        }
        bed.origins = origins;
        bed
    }

    /// The address that the application calls.
    pub(crate) fn address(&self, traffic: Traffic) -> std::net::SocketAddr {
        self.server.at4(traffic.port())
    }

    /// Starts the pair and waits until it carries traffic.
    pub(crate) async fn start(&self, traffic: Traffic) -> Pair {
        self.mesh.dns.set(ORDERS, 3_600, &[self.server.v4.into()]);
        let processes = match self.system {
            System::Direct => Vec::new(),
            System::Outrigger => self.outrigger(traffic, json!({})).await,
            System::HaproxyH2 | System::HaproxyH1 => self.haproxy(traffic),
            System::Nginx => self.nginx(traffic),
            System::EnvoyH2 | System::EnvoyH1 => self.envoy(traffic),
        };
        if self.system != System::Direct && self.system != System::Outrigger {
            for (pod, port) in [(&self.client, 15001), (&self.server, 15006)] {
                listens(pod, port).await;
            }
        }
        Pair(processes)
    }

    /// Our pair with more in the caller's configuration.
    pub(crate) async fn outrigger(&self, traffic: Traffic, more: Value) -> Vec<Process> {
        self.mesh.dns.set(ORDERS, 3_600, &[self.server.v4.into()]);
        let [client, server] = self.settings(traffic == Traffic::OpaquePlain, more);
        let mut client = Sidecar::launch(self.mesh, &self.client, client);
        let mut server = Sidecar::launch(self.mesh, &self.server, server);
        client.ready(&self.client).await;
        server.ready(&self.server).await;
        vec![client.into_process(), server.into_process()]
    }

    /// Writes the settings of our pair to files.
    pub(crate) fn configure(&self) -> [PathBuf; 2] {
        self.mesh.dns.set(ORDERS, 3_600, &[self.server.v4.into()]);
        let [mut client, server] = self.settings(false, json!({}));
        // callgrind makes everything fifty times as slow, the first handshake more than that.
        for service in client["services"].as_array_mut().unwrap() {
            service["timeouts"] = json!({ "connect": "60s" });
        }
        [(&self.client, client), (&self.server, server)].map(|(pod, config)| Sidecar::configure(self.mesh, pod, config))
    }

    fn settings(&self, plain: bool, more: Value) -> [Value; 2] {
        let services = json!([
            { "name": ORDERS, "port": HTTP1 },
            { "name": "orders-h2.mesh", "hosts": [ORDERS], "port": HTTP2 },
            { "name": "orders-grpc.mesh", "hosts": [ORDERS], "port": GRPC },
            { "name": "orders-bytes.mesh", "hosts": [ORDERS], "port": BYTES, "protocol": "opaque" },
            { "name": "orders-echo.mesh", "hosts": [ORDERS], "port": ECHO, "protocol": "opaque" },
        ]);
        let mut client = json!({ "workers": 1, "services": if plain { json!([]) } else { services } });
        outrigger_e2e::harness::sidecar::merge(&mut client, more);
        let mode = if plain { "permissive" } else { "strict" };
        let allow = outrigger_e2e::harness::pki::id(&self.client.name);
        let server = json!({ "workers": 1, "inbound": { "mode": mode, "allow": [allow] } });
        [client, server]
    }

    fn values<'v>(&self, pod: &Pod, values: &[(&'v str, &'v str)]) -> Vec<(&'v str, String)> {
        let mut all: Vec<_> = values.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let identity = pod.folder("identity");
        all.extend([
            ("peer", self.server.v4.to_string()),
            ("identity", identity.to_str().unwrap().to_owned()),
            ("dir", pod.folder("proxy").to_str().unwrap().to_owned()),
        ]);
        all
    }

    fn launch(&self, pod: &Pod, name: &str, template: &str, values: &[(&str, &str)], args: &[&str]) -> Process {
        // Twice: a value may hold the name of another.
        let values = self.values(pod, values);
        let values: Vec<_> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let text = fill(&fill(template, &values), &values);
        let config = pod.folder("proxy").join(name);
        fs::write(&config, text).unwrap();
        let args: Vec<_> = args.iter().map(|a| if *a == "CONFIG" { config.to_str().unwrap() } else { a }).collect();
        let (program, args) = args.split_first().unwrap();
        pod.start(SIDECAR, program, args)
    }

    fn haproxy(&self, traffic: Traffic) -> Vec<Process> {
        let port = traffic.port().to_string();
        let alpn = if self.system.speaks_h2_between() { "h2" } else { "http/1.1" };
        let proto = if traffic.application_speaks_h2() { "proto h2" } else { "" };
        let tls = traffic == Traffic::OpaqueMtls;
        let ssl_client = "ssl verify required ca-file {identity}/bundle.pem crt {identity}/pair.pem verifyhost orders.mesh sni str(orders.mesh)";
        let ssl_server = "ssl crt {identity}/pair.pem ca-file {identity}/bundle.pem verify required";
        let values = [
            ("port", port.as_str()),
            ("alpn", alpn),
            ("proto", proto),
            ("ssl_client", if tls { ssl_client } else { "" }),
            ("ssl_server", if tls { ssl_server } else { "" }),
        ];
        let (client, server) = if traffic.is_http() {
            (include_str!("peers/haproxy-client.cfg"), include_str!("peers/haproxy-server.cfg"))
        } else {
            (include_str!("peers/haproxy-tcp-client.cfg"), include_str!("peers/haproxy-tcp-server.cfg"))
        };
        let args = ["haproxy", "-db", "-f", "CONFIG"];
        vec![
            self.launch(&self.client, "haproxy.cfg", client, &values, &args),
            self.launch(&self.server, "haproxy.cfg", server, &values, &args),
        ]
    }

    fn nginx(&self, traffic: Traffic) -> Vec<Process> {
        let port = traffic.port().to_string();
        let args = ["nginx", "-c", "CONFIG", "-e", "stderr"];
        let (client, server) = if traffic.is_http() {
            (include_str!("peers/nginx-client.conf"), include_str!("peers/nginx-server.conf"))
        } else {
            (include_str!("peers/nginx-tcp-client.conf"), include_str!("peers/nginx-tcp-server.conf"))
        };
        let tls = traffic == Traffic::OpaqueMtls;
        let [at_client, at_server] = if tls { ["on", "ssl"] } else { ["off", ""] };
        let values = |tls| [("port", port.as_str()), ("tls", tls)];
        vec![
            self.launch(&self.client, "nginx.conf", client, &values(at_client), &args),
            self.launch(&self.server, "nginx.conf", server, &values(at_server), &args),
        ]
    }

    fn envoy(&self, traffic: Traffic) -> Vec<Process> {
        let port = traffic.port().to_string();
        let h2 = self.system.speaks_h2_between();
        let kind = |h2| if h2 { "http2_protocol_options" } else { "http_protocol_options" };
        let tls = traffic == Traffic::OpaqueMtls;
        let common = r#"common_tls_context: { tls_params: { tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }, tls_certificates: [{ certificate_chain: { filename: "{identity}/cert.pem" }, private_key: { filename: "{identity}/key.pem" } }], validation_context: { trusted_ca: { filename: "{identity}/bundle.pem" } } }"#;
        let socket = |context: &str, more: &str| {
            format!(
                r#"transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{context}, {more}, {common} }} }}"#
            )
        };
        let client_tls = socket("UpstreamTlsContext", "sni: orders.mesh");
        let server_tls = socket("DownstreamTlsContext", "require_client_certificate: true");
        let values = [
            ("port", port.as_str()),
            ("alpn", if h2 { "h2" } else { "http/1.1" }),
            ("between", kind(h2)),
            ("application", kind(traffic.application_speaks_h2())),
            ("tls_client", if tls { &client_tls } else { "" }),
            ("tls_server", if tls { &server_tls } else { "name: plain" }),
        ];
        let (client, server) = if traffic.is_http() {
            (include_str!("peers/envoy-client.yaml"), include_str!("peers/envoy-server.yaml"))
        } else {
            (include_str!("peers/envoy-tcp-client.yaml"), include_str!("peers/envoy-tcp-server.yaml"))
        };
        let program = std::env::var("ENVOY").unwrap_or_else(|_| "envoy".to_owned());
        let args =
            [program.as_str(), "-c", "CONFIG", "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"];
        vec![
            self.launch(&self.client, "envoy.yaml", client, &values, &args),
            self.launch(&self.server, "envoy.yaml", server, &values, &args),
        ]
    }
}

async fn listens(pod: &Pod, port: u16) {
    let what = format!("somebody listens on {port} of {}", pod.name);
    eventually(&what, Duration::from_secs(15), || {
        let connecting = pod.connect((Ipv4Addr::LOCALHOST, port).into());
        async { connecting.await.map(drop).map_err(|e| e.to_string()) }
    })
    .await;
}

/// A running pair; nobody, where there is no proxy.
pub(crate) struct Pair(pub(crate) Vec<Process>);

impl Pair {
    fn pids(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self.0.iter().map(|p| p.pid() as i32).collect();
        let mut at = 0;
        while let Some(pid) = pids.get(at) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            pids.extend(children.split_whitespace().filter_map(|p| p.parse::<i32>().ok()));
            at += 1;
        }
        pids
    }

    /// CPU time that both sidecars have used so far, user and kernel.
    pub(crate) fn cpu(&self) -> Duration {
        let of = |pid: i32| -> Option<Duration> {
            let now = clock_getcpuclockid(Pid::from_raw(pid)).ok()?.now().ok()?;
            Some(Duration::from(now))
        };
        self.pids().into_iter().filter_map(of).sum()
    }

    /// Memory of both in KiB, what they share counted once (PSS).
    pub(crate) fn memory_kib(&self) -> u64 {
        let of = |pid: &i32| -> Option<u64> {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
            let line = text.lines().find_map(|l| l.strip_prefix("Pss:"))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        self.pids().iter().filter_map(of).sum()
    }

    /// Tells both to stop, and waits until they have.
    pub(crate) async fn end(mut self) {
        for process in &mut self.0 {
            process.signal(Signal::SIGTERM);
            process.wait(Duration::from_secs(60)).await;
        }
    }

    /// Panics where one of them has ended.
    pub(crate) fn assert_running(&mut self) {
        self.0.iter_mut().for_each(Process::assert_running);
    }
}
