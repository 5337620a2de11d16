//! Routes, in the vocabulary of Gateway API's HTTPRoute and GRPCRoute: <https://gateway-api.sigs.k8s.io/reference/spec/>.
//!
//! A route belongs to the services whose hosts it names (what GAMMA calls its parents). As soon as one route names a host,
//! only what a rule matches is carried there: the rest gets 404. What Gateway API does not have is named as Istio names it
//! (`fixedDelay`, `httpStatus`) or as the rest of this file does (`timeouts.idle`).

use serde::{Deserialize, Serialize};

use super::{
    Host, HumanDuration, RouteFilter,
    fields::{FieldName, GrpcCode, HostPattern, MethodMatch, RouteName},
};

/// A route: which requests of which hosts go where, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RouteConfig {
    /// The name in metrics and logs: 1 to 63 letters, digits, `-`, `_` and `.`.
    pub name: RouteName,
    /// Hosts of services, or `*.` and a suffix. A request takes the routes of its most specific one alone.
    pub hostnames: Vec<HostPattern>,
    /// The port that the workload dials. Default: every port of these hosts.
    #[serde(default)]
    pub port: Option<u16>,
    /// What to do with which request. 1 to 64.
    pub rules: Vec<RouteRule>,
}

/// What to do with some of the requests.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RouteRule {
    /// The requests that are meant: those that one of these matches. At most 64. Default: all.
    #[serde(default)]
    pub matches: Vec<RouteMatch>,
    /// What is done to them. At most 16.
    #[serde(default)]
    pub filters: Vec<RouteFilter>,
    /// Where they go, at most 16. Default: to the service that was called. Where all weights are 0 the answer is 500.
    #[serde(default)]
    pub backend_refs: Option<Vec<BackendRef>>,
    /// Timeouts; those that are not given are the backend service's.
    #[serde(default)]
    pub timeouts: RouteTimeouts,
    /// Retries; what is not given is the backend service's, and so are always budget and budget floor.
    #[serde(default)]
    pub retry: RouteRetry,
}

/// A request that is meant: every condition given must be true.
///
/// Where several matches are true of one request, the one with an exact path comes first, then one with a regular
/// expression (in the order of the file), then the longest prefix; among equals one that names a method, then the one
/// with most headers, then most query parameters, then the first in the file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct RouteMatch {
    /// The path, in its canonical form. Default: the prefix `/`, so every path.
    pub path: Option<PathMatch>,
    /// Headers, all of which must match; several of one name are joined by a comma first. At most 16.
    pub headers: Vec<NamedMatch<FieldName>>,
    /// Query parameters, all of which must match by their first value, decoded. At most 16.
    pub query_params: Vec<NamedMatch<String>>,
    /// An HTTP method as `GET`, or of a gRPC call `{ service: shop.Orders, method: Get }`.
    pub method: Option<MethodMatch>,
}

/// A condition on the path.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PathMatch {
    /// How. Default `PathPrefix`.
    pub r#type: PathMatchType,
    /// What: an absolute path of at most 1,024 bytes, or a regular expression of as many.
    pub value: String,
}

impl Default for PathMatch {
    fn default() -> Self {
        Self { r#type: PathMatchType::PathPrefix, value: "/".to_owned() }
    }
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathMatchType {
    /// It is this one, byte for byte.
    Exact,
    /// It begins with these elements: `/a/b` and `/a/b/` match `/a/b` and `/a/b/c`, not `/a/bc`.
    #[default]
    PathPrefix,
    /// All of it matches (syntax of the crate `regex`, without Unicode classes).
    RegularExpression,
}

/// A condition on something that has a name and a value.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedMatch<N> {
    /// How the value is compared. Default `Exact`.
    #[serde(default)]
    pub r#type: ValueMatchType,
    /// The name.
    pub name: N,
    /// The value, at most 4,096 bytes.
    pub value: String,
}

/// How a value is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValueMatchType {
    /// Byte for byte.
    #[default]
    Exact,
    /// All of it matches.
    RegularExpression,
}

/// A condition on a gRPC call: at least one of the two is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpcMethodMatch {
    /// How. Default `Exact`.
    pub r#type: ValueMatchType,
    /// The service with its package, as `shop.v1.Orders`.
    pub service: Option<String>,
    /// The method.
    pub method: Option<String>,
}

/// A service that requests go to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendRef {
    /// The name of one of `services`, or a host of a mesh domain.
    pub name: Host,
    /// Its port. Needed for a host of a mesh domain; must be the service's own for one of `services`.
    #[serde(default)]
    pub port: Option<u16>,
    /// Its share is this part of the sum of all weights. 0 to 1,000,000, default 1. 0: nothing goes there.
    #[serde(default = "one")]
    pub weight: u32,
}

const fn one() -> u32 {
    1
}

/// Timeouts of a rule. Zero switches one off.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct RouteTimeouts {
    /// From the whole request head to the response head, retries included.
    pub request: Option<HumanDuration>,
    /// The same for one try.
    pub backend_request: Option<HumanDuration>,
    /// No byte in either direction of a request for this long ends it.
    pub idle: Option<HumanDuration>,
}

/// Retries of a rule (GEP-1731).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct RouteRetry {
    /// Retries after the first try, 0 to 10.
    pub attempts: Option<u32>,
    /// Response codes of idempotent requests (RFC 9110 section 9.2.2) that are tried again.
    pub codes: Option<Vec<u16>>,
    /// gRPC statuses that are tried again, as `UNAVAILABLE`, where a call was answered by its status alone. A call is a
    /// POST, which is not idempotent: who lists a status says that its calls may be made twice.
    pub grpc_codes: Option<Vec<GrpcCode>>,
    /// Base of the full-jitter backoff, as `services[].retry.backoff`.
    pub backoff: Option<HumanDuration>,
}
