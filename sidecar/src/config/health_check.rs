//! Active health checks: Envoy's `health_checks`, of which a service has one; same names and meanings.

use std::{fmt, num::NonZeroU32, time::Duration};

use http::uri::PathAndQuery;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{HumanDuration, at_least_one, validate::Issue};

/// How the endpoints of a service are asked whether they are well. Exactly one of `http`, `tcp` and `grpc` must be given.
///
/// An endpoint that is not well gets no request until it is again, unless so few are left that
/// `outlier_detection.panic_threshold` counts. An endpoint that discovery newly names is used from its first good answer
/// on; those that were there from the start are used until an answer says otherwise. An endpoint's first answer decides
/// alone. Each worker asks for itself. What is asked counts neither as a request of the workload's nor for
/// `outlier_detection` nor against `circuit_breakers`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// GET, and a status of those that are expected. As HTTP/1.1 where the endpoints have no sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpHealthCheck>,
    /// A connection; with mTLS also the handshake, and that the application takes what its sidecar hands over: who is
    /// refused by it within 100 ms is not well.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpHealthCheck>,
    /// The gRPC health checking protocol: <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcHealthCheck>,
    /// From the end of one check of an endpoint to the beginning of the next, at least 100 ms. Default 10 s, as
    /// Kubernetes' probes (Envoy has no default).
    #[serde(default = "default_interval")]
    pub interval: HumanDuration,
    /// A random time up to this is added to each interval. Default 0 s: the checks of several endpoints are spread over
    /// the interval in any case.
    #[serde(default = "none")]
    pub interval_jitter: HumanDuration,
    /// Time for a whole check with its connect. Default 1 s, as Kubernetes' probes (Envoy has no default).
    #[serde(default = "default_timeout")]
    pub timeout: HumanDuration,
    /// Good answers in a row after which an endpoint is well again, 1 to 100. Default 1, as Kubernetes' probes.
    #[serde(default = "default_healthy")]
    pub healthy_threshold: NonZeroU32,
    /// Failed checks in a row after which an endpoint is not well, 1 to 100. Default 3, as Kubernetes' probes. Other than
    /// in Envoy a wrong status of HTTP counts as one of them: it may be one moment's.
    #[serde(default = "default_unhealthy")]
    pub unhealthy_threshold: NonZeroU32,
}

/// A check over HTTP.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpHealthCheck {
    /// What is asked for, with a query if need be. No default.
    pub path: String,
    /// Statuses that say that all is well: codes, and ranges as `{ start: 200, end: 400 }`, the end not included. Default
    /// 200.
    #[serde(default = "ok_alone")]
    pub expected_statuses: Vec<StatusRange>,
}

/// A check that connects.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpHealthCheck {}

/// A check by `grpc.health.v1.Health/Check`, which must answer `SERVING`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpcHealthCheck {
    /// Which of the server's services is asked about (Envoy's `service_name`). Default: the server as a whole.
    pub service: String,
}

/// Statuses from `start` to before `end`. Of a code alone it is that code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    start: u16,
    end: u16,
}

impl StatusRange {
    /// Whether `status` is one of them.
    pub fn contains(self, status: u16) -> bool {
        (self.start..self.end).contains(&status)
    }

    fn new<E: Error>(start: u64, end: u64) -> Result<Self, E> {
        match (u16::try_from(start), u16::try_from(end)) {
            (Ok(start @ 100..=599), Ok(end @ 101..=600)) if start < end => Ok(Self { start, end }),
            _ if start.checked_add(1) == Some(end) => {
                Err(E::custom(format_args!("{start} is not a status: it must be 100 to 599")))
            }
            _ => Err(E::custom(format_args!(
                "from {start} to before {end} there is no status: start must be 100 to 599, end above it and at most 600"
            ))),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bounds {
    start: u64,
    end: u64,
}

impl Serialize for StatusRange {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.end - self.start {
            1 => s.serialize_u16(self.start),
            _ => Bounds { start: self.start.into(), end: self.end.into() }.serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = StatusRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status as 200, or { start: 200, end: 400 }")
            }
            fn visit_u64<E: Error>(self, code: u64) -> Result<StatusRange, E> {
                StatusRange::new(code, code.saturating_add(1))
            }
            fn visit_i64<E: Error>(self, code: i64) -> Result<StatusRange, E> {
                match u64::try_from(code) {
                    Ok(code) => self.visit_u64(code),
                    Err(_) => Err(E::custom(format_args!("{code} is not a status: it must be 100 to 599"))),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<StatusRange, A::Error> {
                let Bounds { start, end } = Bounds::deserialize(MapAccessDeserializer::new(map))?;
                StatusRange::new(start, end)
            }
        }
        d.deserialize_any(Visit)
    }
}

/// A check more often than this is a load.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);
/// More answers in a row than this are a typing error.
const MAX_THRESHOLD: u32 = 100;

/// Every rule that the check at the path `at` breaks.
pub(super) fn issues(at: &str, check: &HealthCheck) -> Vec<Issue> {
    let mut found = Vec::new();
    let mut issue = |path: &str, message: String, remedy: &str| {
        let path = if path.is_empty() { at.to_owned() } else { format!("{at}.{path}") };
        found.push(Issue { path, message, remedy: remedy.to_owned() });
    };
    let kinds: Vec<&str> =
        [("http", check.http.is_some()), ("tcp", check.tcp.is_some()), ("grpc", check.grpc.is_some())]
            .into_iter()
            .filter_map(|(kind, given)| given.then_some(kind))
            .collect();
    match kinds[..] {
        [_] => {}
        [] => issue(
            "",
            "nothing says how to check".to_owned(),
            "give one of http: { path: /healthz }, tcp: {} and grpc: {}",
        ),
        [_, second, ..] => {
            issue(second, format!("a service has one check, and {} is given as well", kinds[0]), "keep one of the two");
        }
    }
    if let Some(http) = &check.http {
        let fine = |b: u8| b.is_ascii_graphic() && b != b'#';
        let path = &http.path;
        if !path.starts_with('/') || !path.bytes().all(fine) || path.parse::<PathAndQuery>().is_err() {
            let remedy = "begin it with '/', without '#' or spaces, as \"/healthz\"";
            issue("http.path", format!("\"{path}\" is not a path"), remedy);
        }
        if http.expected_statuses.is_empty() {
            let remedy = "list at least one, as 200, or leave the field out";
            issue("http.expected_statuses", "no status would be a good one".to_owned(), remedy);
        }
    }
    if check.interval.get() < LEAST_INTERVAL {
        let message = format!("{} would flood the endpoints with checks", check.interval);
        issue("interval", message, "give at least 100ms; the default is 10s");
    }
    if check.timeout.get().is_zero() {
        issue(
            "timeout",
            "zero: no check could ever end well".to_owned(),
            "give a duration above zero; the default is 1s",
        );
    }
    let thresholds =
        [("healthy_threshold", check.healthy_threshold), ("unhealthy_threshold", check.unhealthy_threshold)];
    for (path, threshold) in thresholds {
        if threshold.get() > MAX_THRESHOLD {
            issue(path, format!("{threshold} is beyond the limit"), "give at most 100");
        }
    }
    found
}

/// A section that is there without content has its defaults.
fn given<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<Option<T>, D::Error> {
    super::null_is_default(d).map(Some)
}

fn ok_alone() -> Vec<StatusRange> {
    vec![StatusRange { start: 200, end: 201 }]
}

fn default_interval() -> HumanDuration {
    Duration::from_secs(10).into()
}

fn default_timeout() -> HumanDuration {
    Duration::from_secs(1).into()
}

fn none() -> HumanDuration {
    Duration::ZERO.into()
}

const fn default_healthy() -> NonZeroU32 {
    at_least_one(1)
}

const fn default_unhealthy() -> NonZeroU32 {
    at_least_one(3)
}
