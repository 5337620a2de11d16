//! The configuration: one YAML file, optional. An empty one, with a certificate source, is a working sidecar.
//!
//! The doc comments of these types are the reference: units, bounds and defaults stand here and nowhere else.
//! Names follow Gateway API for timeouts and retries, Envoy for `outlier_detection` and `circuit_breakers`, SPIFFE
//! for identity. Every value that reached one of these types is right, so the rooms that use them check nothing.

mod env;
mod fields;
mod filters;
mod filters_check;
mod health_check;
mod load;
mod load_balancing;
mod outline;
mod problem;
mod review;
mod routes;
mod routes_check;
mod types;
mod validate;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use outrigger_identity::{SpiffeId, TrustDomain, workload_api::Endpoint};
use serde::{Deserialize, Deserializer, Serialize};

pub use env::variables;
pub use fields::{FieldName, FieldValue, GrpcCode, HostPattern, MethodMatch, OriginPattern, RouteName};
pub use filters::*;
pub use health_check::{GrpcHealthCheck, HealthCheck, HttpHealthCheck, StatusRange, TcpHealthCheck};
pub use load::load;
pub use load_balancing::*;
pub use problem::ConfigError;
pub use routes::*;
pub use types::{CaAddress, Host, HumanDuration, IdPattern, Percent};

/// The whole configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Worker threads, each with its own listeners, pools and balancer state. Default: the processors that this
    /// process may use, at most 8. Limits given per service are divided among the workers.
    pub workers: Option<NonZeroU32>,
    /// Who this workload is and whom it trusts.
    #[serde(deserialize_with = "null_is_default")]
    pub identity: IdentityConfig,
    /// Connections from peers to the workload.
    #[serde(deserialize_with = "null_is_default")]
    pub inbound: InboundConfig,
    /// Connections from the workload to others.
    #[serde(deserialize_with = "null_is_default")]
    pub outbound: OutboundConfig,
    /// How names are resolved.
    #[serde(deserialize_with = "null_is_default")]
    pub dns: DnsConfig,
    /// Services that need more than the defaults. Hosts under `outbound.mesh_domains` need no entry here.
    #[serde(deserialize_with = "null_is_default")]
    pub services: Vec<ServiceConfig>,
    /// Which requests go where, and how. Where no route names a host, its requests go to its service.
    #[serde(deserialize_with = "null_is_default")]
    pub routes: Vec<RouteConfig>,
    /// Health, metrics and the operator's view.
    #[serde(deserialize_with = "null_is_default")]
    pub admin: AdminConfig,
    /// What happens between SIGTERM and the end.
    #[serde(deserialize_with = "null_is_default")]
    pub drain: DrainConfig,
    /// Log filter in `tracing-subscriber`'s `EnvFilter` syntax. Default `info`.
    #[serde(deserialize_with = "null_is_default")]
    pub log: LogConfig,
}

/// A section whose content is all commented out is null to YAML, and means its defaults to people.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Option::deserialize(d).map(Option::unwrap_or_default)
}

/// Logging.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `tracing-subscriber` filter directives, as `info` or `info,outrigger_sidecar::discovery=debug`.
    pub level: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where the certificate comes from. With `ca` set the sidecar enrols there and keeps the result in `dir`; with
/// `workload_api` an agent gives it, and nothing is kept; without both the files in `dir` are somebody else's to renew, and
/// are read again when they change.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentityConfig {
    /// Folder of `cert.pem` (leaf first, then intermediates), `key.pem` (mode 0600), `bundle.pem` (the roots) and, where there
    /// are any, `crl.pem` (the issuers' revocation lists).
    /// Default `/var/lib/outrigger/identity`.
    pub dir: PathBuf,
    /// The CA to enrol with and to renew from.
    pub ca: Option<CaConfig>,
    /// The SPIFFE Workload API of an agent on this machine, SPIRE's for one: `unix:///run/spire/agent.sock`, or
    /// `tcp://127.0.0.1:8000`. Not together with `ca`.
    pub workload_api: Option<Endpoint>,
    /// Which of several identities that the Workload API gives. Default: its first.
    pub id: Option<SpiffeId>,
    /// The trust domain that peers must belong to. Default: that of our own certificate.
    pub trust_domain: Option<TrustDomain>,
}

/// The CA that issues this workload's certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaConfig {
    /// `host:port` of the CA's gRPC endpoint; the port defaults to 15012.
    pub address: CaAddress,
    /// PEM file of the roots that the CA's own certificate must chain to. They are also the first roots that peers are
    /// measured by, until the CA's own bundle is known; the root of each certificate that it issues joins them.
    pub bundle: PathBuf,
    /// File with the credential for the first certificate: a join token. Not needed while `dir` holds a valid certificate.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// The lifetime to ask for, 1 minute to 30 days. Default: what the CA gives (24 h).
    #[serde(default)]
    pub ttl: Option<HumanDuration>,
    /// Where istiod is the CA: the name of the cluster in which the workload runs, Istio's `CLUSTER_ID`.
    #[serde(default)]
    pub cluster_id: Option<String>,
}

/// Connections from peers to the workload.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InboundConfig {
    /// Listening port for redirected inbound connections, on every IPv4 and IPv6 address. Default 15006.
    pub port: u16,
    /// How connections reach the port. Default `redirect`.
    pub interception: Interception,
    /// What to do with a connection that is not mesh mTLS. Default `strict`.
    pub mode: InboundMode,
    /// Exceptions to `mode`, by the application's port.
    pub ports: Vec<InboundPort>,
    /// Who may call. Default: every workload of the trust domain.
    pub allow: Vec<IdPattern>,
    /// Where the application is reached. Default `original`.
    pub application: ApplicationAddress,
    /// Open inbound connections of one worker beyond which new ones are refused, 1 to 1,000,000. Default 20,000.
    pub max_connections: NonZeroU32,
    /// Connections of one worker that may be in detection or handshake at once, 1 to 100,000. Default 1,024.
    pub max_handshakes: NonZeroU32,
}

/// How inbound connections reach the sidecar: what `outrigger-iptables install --mode` was told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interception {
    /// By NAT. The application sees 127.0.0.6 or ::6 as the client. The sidecar needs no privilege.
    #[default]
    Redirect,
    /// By TPROXY. The application sees the client's address, with a port of its own, but for clients with link-local
    /// addresses and calls of the workload to itself. The sidecar needs NET_RAW (or NET_ADMIN), for IP_TRANSPARENT alone;
    /// without it, it does not start. Has no effect on where the application sees the client with `application: loopback`.
    Tproxy,
}

/// What to do with an inbound connection that is not mesh mTLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InboundMode {
    /// Refuse it.
    #[default]
    Strict,
    /// Pass it on to the application, unauthenticated.
    Permissive,
}

/// How the application is reached from its sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApplicationAddress {
    /// At the address that the peer dialled, from 127.0.0.6 or ::6. What the application bound to loopback only
    /// stays private.
    #[default]
    Original,
    /// At 127.0.0.1 or ::1, for an application that listens on loopback alone.
    Loopback,
}

/// An exception to `inbound.mode`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InboundPort {
    /// The application's port.
    pub port: u16,
    /// The mode of this port; absent means that of `inbound.mode`.
    #[serde(default)]
    pub mode: Option<InboundMode>,
    /// Exact paths that plaintext HTTP `GET` and `HEAD` may reach on this port although it is strict: health probes.
    #[serde(default)]
    pub plaintext_paths: Vec<String>,
    /// The application's protocol. Default `auto`.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Connections from the workload to others.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutboundConfig {
    /// Listening port for redirected outbound connections, on 127.0.0.1 and ::1. Default 15001.
    pub port: u16,
    /// What to do with a connection to no known service. Default `passthrough`.
    pub unmatched: Unmatched,
    /// Host suffixes whose names are services of the mesh without an entry in `services`: found by DNS under that
    /// very name, mTLS required, the server's certificate naming the host. Default `[mesh]`.
    pub mesh_domains: Vec<Host>,
    /// How long a silent client is waited for before its original destination is dialled. Default 30 ms.
    pub detect_delay: HumanDuration,
    /// How paths are made canonical where `routes` names the host.
    #[serde(deserialize_with = "null_is_default")]
    pub path_normalization: PathNormalization,
    /// Open outbound connections of one worker beyond which new ones are refused, 1 to 1,000,000. Default 20,000.
    pub max_connections: NonZeroU32,
}

/// How a path is made canonical before it is matched, and forwarded as that: RFC 3986 section 6.2.2 (dot segments, `%`
/// and its digits), and what it leaves open by Envoy's two options.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PathNormalization {
    /// Whether `//` becomes `/`. Default false, as Envoy.
    pub merge_slashes: bool,
    /// What to do with `%2F` and `%5C`, which some applications take for a `/`. Default `keep_unchanged`, as Envoy.
    pub path_with_escaped_slashes_action: EscapedSlashes,
}

/// What to do with a path that has an escaped slash or backslash.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EscapedSlashes {
    /// It is a character of its segment like others.
    #[default]
    KeepUnchanged,
    /// Refuse the request with 400.
    RejectRequest,
    /// Send the caller to the path with slashes, by 307; a gRPC call is refused.
    UnescapeAndRedirect,
    /// It is a slash.
    UnescapeAndForward,
}

/// What to do with an outbound connection to no known service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unmatched {
    /// Pass its bytes to the original destination, untouched.
    #[default]
    Passthrough,
    /// Refuse it.
    Reject,
}

/// An application protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Look at the first bytes.
    #[default]
    Auto,
    /// Bytes, never looked at.
    Opaque,
}

/// How names are resolved.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsConfig {
    /// DNS servers. Default: those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// Time for one look-up with all its tries. Default 5 s.
    pub timeout: HumanDuration,
    /// Bounds put on the TTL of an answer. A record of TTL 0 is looked up again after `min_ttl`. Default 1 s.
    pub min_ttl: HumanDuration,
    /// Upper bound on the TTL of an answer. Default 5 min.
    pub max_ttl: HumanDuration,
}

/// A service: a name that the workload calls, and how it is reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// The name in metrics and logs.
    pub name: Host,
    /// `Host`, `:authority` and SNI names that mean this service. Default: `name` alone.
    #[serde(default)]
    pub hosts: Vec<Host>,
    /// The port that the workload dials, and the endpoints' port where discovery gives none.
    pub port: u16,
    /// Where the endpoints come from. Default: DNS A and AAAA of the first host.
    #[serde(default)]
    pub endpoints: Option<EndpointSource>,
    /// Whether the endpoints have a sidecar. Default `required`.
    #[serde(default)]
    pub mtls: MtlsMode,
    /// SPIFFE ids, one of which the server must have. Default: any id of the trust domain whose certificate has a
    /// DNS SAN equal to the host that was asked for.
    #[serde(default)]
    pub identities: Vec<SpiffeId>,
    /// The protocol spoken. Default `auto`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Timeouts.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Retries.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// Ejection of failing endpoints.
    #[serde(default)]
    pub outlier_detection: OutlierDetection,
    /// Endpoints asked whether they are well. Default: none is.
    #[serde(default)]
    pub health_check: Option<HealthCheck>,
    /// Bounds on what may be under way at once.
    #[serde(default)]
    pub circuit_breakers: CircuitBreakers,
    /// Which endpoint takes the next request.
    #[serde(default)]
    pub load_balancing: LoadBalancing,
}

/// Where a service's endpoints come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum EndpointSource {
    /// A and AAAA records of this name.
    Dns(Host),
    /// SRV records of this name, as `_http._tcp.orders.mesh` (RFC 2782: priority, weight, port).
    Srv(Host),
    /// These addresses.
    Static(Vec<SocketAddr>),
}

/// Whether a service's endpoints have a sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MtlsMode {
    /// mTLS or nothing.
    #[default]
    Required,
    /// No sidecar there: spoken to in its own protocol, in the clear.
    Off,
}

/// Timeouts. Zero switches a timeout off.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// TCP connect and TLS handshake together. Default 5 s, as Envoy. Zero is refused.
    pub connect: HumanDuration,
    /// From the whole request head to the response head, retries included (Gateway API `timeouts.request`). Default
    /// off, as Istio: Envoy's 15 s cuts off streams and long polls, and `idle` already bounds a hanging call.
    pub request: HumanDuration,
    /// The same for one try (Gateway API `timeouts.backendRequest`). Default off.
    #[serde(rename = "backendRequest")]
    pub backend_request: HumanDuration,
    /// No byte in either direction of a request for this long ends it. Default 5 min, as Envoy's `stream_idle_timeout`.
    pub idle: HumanDuration,
    /// No byte in either direction of an opaque or upgraded connection for this long ends it. Default off: a silent
    /// client is never closed for its silence; dead peers are found by TCP keep-alive.
    #[serde(rename = "tcpIdle")]
    pub tcp_idle: HumanDuration,
}

/// Retries (Gateway API `retry`, GEP-1731).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryPolicy {
    /// Retries after the first try, 0 to 10. Default 2, as Istio.
    pub attempts: u32,
    /// Response codes of idempotent requests (RFC 9110 section 9.2.2) that are tried again. Default `[503]`, the one
    /// code that says that the request was not processed.
    pub codes: Vec<u16>,
    /// gRPC statuses that are tried again, as `UNAVAILABLE`, where a call was answered by its status alone. Default
    /// `[UNAVAILABLE, CANCELLED]`, as Istio. A call is a POST, which is not idempotent: where no call may ever be made
    /// twice, `[]` switches it off.
    #[serde(rename = "grpcCodes")]
    pub grpc_codes: Vec<GrpcCode>,
    /// Base of the full-jitter backoff. Try N waits a random time in [0, min(backoff x (2^N - 1), 10 x backoff)).
    /// Default 25 ms, as Envoy.
    pub backoff: HumanDuration,
    /// Share of requests that may be retries, over a sliding 10 s. Default 20 %.
    pub budget: Percent,
    /// Retries a second that are allowed whatever the share says, so that a quiet service can retry at all.
    /// 0 to 1,000, default 3 (Envoy's `min_retry_concurrency`).
    pub budget_floor: u32,
    /// An endpoint that answers 429 or 503 with `Retry-After` gets no request for that long, at most this long; no more
    /// endpoints at once than `outlier_detection.max_ejection_percent`. A retry that would have to wait longer for
    /// `Retry-After` or `grpc-retry-pushback-ms` is not made. At most 5 min, default 30 s; 0 takes no notice of delays.
    pub max_retry_after: HumanDuration,
}

/// Ejection of failing endpoints: Envoy's `outlier_detection`, same names and meanings.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutlierDetection {
    /// Responses 5xx in a row, local failures counted as 5xx, that eject. 0 switches it off. Default 5.
    pub consecutive_5xx: u32,
    /// Responses 502, 503 or 504 in a row that eject. 0 switches it off. Default 5.
    pub consecutive_gateway_failure: u32,
    /// Connect failures, timeouts and resets in a row that eject. 0 switches it off. Default 5.
    pub consecutive_local_origin_failure: u32,
    /// How often ejected endpoints are looked at for readmission. Default 10 s.
    pub interval: HumanDuration,
    /// An ejection lasts this long times the number of ejections. Default 30 s.
    pub base_ejection_time: HumanDuration,
    /// The longest ejection. Default 300 s.
    pub max_ejection_time: HumanDuration,
    /// A random time up to this is added to each ejection. Default 0 s.
    pub max_ejection_time_jitter: HumanDuration,
    /// The share of endpoints that may be ejected at once; one always may. Default 50 %: Envoy's 10 % ejects one of
    /// three replicas and then no other, and the panic threshold guards the rest.
    pub max_ejection_percent: Percent,
    /// When fewer than this share of endpoints is not ejected, ejections are ignored and all are used (Envoy's
    /// `healthy_panic_threshold`). 0 switches it off. Default 50 %.
    pub panic_threshold: Percent,
}

/// Bounds on what may be under way at once: Envoy's `circuit_breakers.thresholds`, of a service. Every one is
/// finite; what is beyond it gets a 503 at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CircuitBreakers {
    /// Connections to all endpoints. Default 4,096.
    pub max_connections: NonZeroU32,
    /// Requests that wait for a connection or for the first endpoints. Default 4,096.
    pub max_pending_requests: NonZeroU32,
    /// Requests under way. Default 16,384: Envoy's 1,024 is below what one busy gRPC service has in flight.
    pub max_requests: NonZeroU32,
    /// Retries under way. Default 64: Envoy's 3 turns rolling updates into 503s (the reason why Istio lifts it);
    /// the budget is what bounds retries.
    pub max_retries: NonZeroU32,
}

/// Health, metrics and the operator's view.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// The operator's address: everything. Default 127.0.0.1:15000.
    pub address: SocketAddr,
    /// Health and metrics, read-only. Default 0.0.0.0:15020, which is `[::]:15020` where IPv6 is to be had.
    pub telemetry_address: SocketAddr,
}

/// What happens between SIGTERM and the end.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrainConfig {
    /// At least this long the sidecar stays, so that the application can make its last calls. Default 2 s.
    pub minimum: HumanDuration,
    /// After this long everything still open is closed. Default 30 s.
    pub timeout: HumanDuration,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

impl Default for IdentityConfig {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("/var/lib/outrigger/identity"),
            ca: None,
            workload_api: None,
            id: None,
            trust_domain: None,
        }
    }
}

impl Default for InboundConfig {
    fn default() -> Self {
        Self {
            port: 15006,
            interception: Interception::Redirect,
            mode: InboundMode::Strict,
            ports: Vec::new(),
            allow: Vec::new(),
            application: ApplicationAddress::Original,
            max_connections: at_least_one(20_000),
            max_handshakes: at_least_one(1_024),
        }
    }
}

impl Default for OutboundConfig {
    fn default() -> Self {
        Self {
            port: 15001,
            unmatched: Unmatched::Passthrough,
            mesh_domains: vec![Host::from_static("mesh")],
            detect_delay: Duration::from_millis(30).into(),
            path_normalization: PathNormalization::default(),
            max_connections: at_least_one(20_000),
        }
    }
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            timeout: Duration::from_secs(5).into(),
            min_ttl: Duration::from_secs(1).into(),
            max_ttl: Duration::from_secs(300).into(),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5).into(),
            request: Duration::ZERO.into(),
            backend_request: Duration::ZERO.into(),
            idle: Duration::from_secs(300).into(),
            tcp_idle: Duration::ZERO.into(),
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            codes: vec![503],
            grpc_codes: vec![GrpcCode::UNAVAILABLE, GrpcCode::CANCELLED],
            backoff: Duration::from_millis(25).into(),
            budget: Percent::new_const(20),
            budget_floor: 3,
            max_retry_after: Duration::from_secs(30).into(),
        }
    }
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway_failure: 5,
            consecutive_local_origin_failure: 5,
            interval: Duration::from_secs(10).into(),
            base_ejection_time: Duration::from_secs(30).into(),
            max_ejection_time: Duration::from_secs(300).into(),
            max_ejection_time_jitter: Duration::ZERO.into(),
            max_ejection_percent: Percent::new_const(50),
            panic_threshold: Percent::new_const(50),
        }
    }
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self {
            max_connections: at_least_one(4_096),
            max_pending_requests: at_least_one(4_096),
            max_requests: at_least_one(16_384),
            max_retries: at_least_one(64),
        }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000),
            telemetry_address: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15020),
        }
    }
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self { minimum: Duration::from_secs(2).into(), timeout: Duration::from_secs(30).into() }
    }
}

const fn at_least_one(n: u32) -> NonZeroU32 {
    match NonZeroU32::new(n) {
        Some(n) => n,
        None => NonZeroU32::MIN,
    }
}
