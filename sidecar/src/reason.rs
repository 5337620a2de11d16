//! Why the sidecar itself answered a request or ended a connection: one list, used by the response header
//! `outrigger-error`, the logs and the metrics.

use http::StatusCode;

/// A reason, named for what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No service has this name and `outbound.unmatched` is `reject`.
    UnknownService,
    /// Discovery has no endpoint for the service.
    NoEndpoints,
    /// Every endpoint is ejected or backing off and the panic threshold is off.
    NoHealthyEndpoints,
    /// An endpoint refused the TCP connection or was not reachable.
    ConnectFailed,
    /// TCP connect and TLS handshake did not end in `timeouts.connect`.
    ConnectTimeout,
    /// The mTLS handshake failed: one of the two did not accept the other.
    TlsFailed,
    /// This sidecar has no valid certificate.
    NoCertificate,
    /// The connection ended before the response was complete.
    UpstreamReset,
    /// The other side of a connection broke the protocol.
    ProtocolError,
    /// `timeouts.request` or the call's own `grpc-timeout` ran out.
    RequestTimeout,
    /// `timeouts.backendRequest` ran out on the last try.
    TryTimeout,
    /// No byte moved for `timeouts.idle`.
    IdleTimeout,
    /// A circuit-breaker threshold is reached.
    CircuitOpen,
    /// The peer's call is not mesh mTLS and this port is `strict`.
    MeshOnly,
    /// The peer is authenticated and not in `inbound.allow`.
    NotAllowed,
    /// The application refused the connection of its own sidecar.
    ApplicationUnreachable,
    /// The application said that it did not look at the request: REFUSED_STREAM, or a GOAWAY that names an earlier one
    /// (RFC 9113 section 8.7).
    ApplicationRefused,
    /// The application ended the connection before its response was complete.
    ApplicationReset,
    /// The request cannot be understood or forwarded.
    BadRequest,
    /// Routes name the host, and none of their rules matches the request.
    NoRoute,
    /// The rule that the request takes has no backend with a weight above 0, or more services than can be held are used.
    NoBackend,
    /// The rule that the request takes injects faults.
    FaultInjected,
    /// The connection would come back to this sidecar.
    Loop,
    /// The sidecar's own limit on connections is reached.
    Overload,
    /// The peer speaks another version of the mesh protocol.
    MeshVersion,
    /// A client stayed silent in a handshake.
    HandshakeTimeout,
    /// The drain time is over.
    Draining,
}

impl Reason {
    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::UnknownService => "unknown_service",
            Self::NoEndpoints => "no_endpoints",
            Self::NoHealthyEndpoints => "no_healthy_endpoints",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::TlsFailed => "tls_failed",
            Self::NoCertificate => "no_certificate",
            Self::UpstreamReset => "upstream_reset",
            Self::ProtocolError => "protocol_error",
            Self::RequestTimeout => "request_timeout",
            Self::TryTimeout => "try_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::CircuitOpen => "circuit_open",
            Self::MeshOnly => "mesh_only",
            Self::NotAllowed => "not_allowed",
            Self::ApplicationUnreachable => "application_unreachable",
            Self::ApplicationRefused => "application_refused",
            Self::ApplicationReset => "application_reset",
            Self::BadRequest => "bad_request",
            Self::NoRoute => "no_route",
            Self::NoBackend => "no_backend",
            Self::FaultInjected => "fault_injected",
            Self::Loop => "loop",
            Self::Overload => "overload",
            Self::MeshVersion => "mesh_version",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Draining => "draining",
        }
    }

    /// The HTTP status of a response with this reason (RFC 9110 section 15).
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::MeshOnly | Self::NotAllowed => StatusCode::FORBIDDEN,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoBackend => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::UpstreamReset | Self::ApplicationReset | Self::ProtocolError | Self::MeshVersion => {
                StatusCode::BAD_GATEWAY
            }
            Self::RequestTimeout | Self::TryTimeout | Self::IdleTimeout | Self::HandshakeTimeout => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::UnknownService
            | Self::FaultInjected
            | Self::NoEndpoints
            | Self::NoHealthyEndpoints
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::TlsFailed
            | Self::NoCertificate
            | Self::CircuitOpen
            | Self::ApplicationUnreachable
            | Self::ApplicationRefused
            | Self::Overload
            | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The gRPC status of the same (gRPC core: status codes and their use).
    pub const fn grpc_status(self) -> &'static str {
        match self {
            Self::BadRequest | Self::ProtocolError => "13",
            Self::MeshOnly | Self::NotAllowed => "7",
            Self::RequestTimeout | Self::TryTimeout | Self::IdleTimeout | Self::HandshakeTimeout => "4",
            Self::CircuitOpen | Self::Overload => "8",
            Self::NoRoute => "12",
            _ => "14",
        }
    }

    /// Where to look.
    pub const fn look_at(self) -> &'static str {
        match self {
            Self::UnknownService => "add it to \"services\", or set outbound.unmatched to passthrough",
            Self::NoEndpoints => "GET 127.0.0.1:15000/endpoints, and the DNS records of the service",
            Self::NoHealthyEndpoints => "GET 127.0.0.1:15000/endpoints for the ejections and their causes",
            Self::ConnectFailed | Self::ConnectTimeout => "is the endpoint up, and does a NetworkPolicy allow it?",
            Self::TlsFailed => "GET 127.0.0.1:15000/certs on both sides, and the sidecars' logs",
            Self::NoCertificate => "GET 127.0.0.1:15000/certs, and identity.* in the configuration",
            Self::UpstreamReset | Self::ApplicationReset => "the log of the application at the other end",
            Self::ProtocolError | Self::BadRequest => "the request itself",
            Self::RequestTimeout | Self::TryTimeout | Self::IdleTimeout => "the service's timeouts and its latency",
            Self::CircuitOpen => "the service's circuit_breakers, and who sends this much",
            Self::MeshOnly => "call through a sidecar, or set inbound.mode or a port of inbound.ports to permissive",
            Self::NotAllowed => "inbound.allow of the called workload",
            Self::ApplicationRefused => "is the application being stopped, or beyond its own limit of streams?",
            Self::ApplicationUnreachable => "is the application listening on this port, on more than loopback?",
            Self::NoRoute => "the matches of \"routes\"; a rule without matches takes what is left",
            Self::NoBackend => "backendRefs of the route, and their weights",
            Self::FaultInjected => "FaultInjection in \"routes\": this failure was asked for",
            Self::Loop => "dial the application's port, not the sidecar's",
            Self::Overload => "inbound.max_connections and outbound.max_connections",
            Self::MeshVersion => "run the same minor version of outrigger-sidecar on both sides",
            Self::HandshakeTimeout => "the network between the two",
            Self::Draining => "the workload is being stopped",
        }
    }

    /// Whether the sidecar knows that the application never saw the request, so that any method may be tried again.
    pub fn unprocessed(code: &[u8]) -> bool {
        [Self::ApplicationUnreachable, Self::ApplicationRefused, Self::Overload, Self::Draining]
            .iter()
            .any(|r| r.code().as_bytes() == code)
    }
}
