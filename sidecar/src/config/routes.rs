//! Routes, in the vocabulary of Gateway API's HTTPRoute and GRPCRoute: <https://gateway-api.sigs.k8s.io/reference/spec/>.
//!
//! A route belongs to the services whose hosts it names (what GAMMA calls its parents). As soon as one route names a host,
//! only what a rule matches is carried there: the rest gets 404. What Gateway API does not have is named as Istio names it
//! (`fixedDelay`, `httpStatus`) or as the rest of this file does (`timeouts.idle`).

use serde::{Deserialize, Serialize};

use super::{
    Host, HumanDuration, Percent,
    fields::{FieldName, FieldValue, GrpcCode, HostPattern, MethodMatch, OriginPattern, RouteName},
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
    pub grpc_codes: Vec<GrpcCode>,
    /// Base of the full-jitter backoff, as `services[].retry.backoff`.
    pub backoff: Option<HumanDuration>,
}

/// What is done to a request, or to its answer. `type` says what, and the field of the same name says how.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RouteFilter {
    /// What.
    pub r#type: RouteFilterType,
    /// Headers of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// Headers of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    /// Another place that the caller is sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    /// Another host or path.
    #[serde(default, rename = "urlRewrite", skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    /// A copy for another service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
    /// Cross-origin resource sharing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// Failures on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_injection: Option<FaultInjection>,
}

/// What a filter does. Each may be there once in a rule, `RequestMirror` several times. Whatever their order: CORS
/// preflights are answered, faults injected, redirects given; then the URL is rewritten and headers are modified, and
/// that request is mirrored and forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum RouteFilterType {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestRedirect,
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    RequestMirror,
    #[serde(rename = "CORS")]
    Cors,
    FaultInjection,
}

impl RouteFilterType {
    /// As it stands in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestHeaderModifier => "RequestHeaderModifier",
            Self::ResponseHeaderModifier => "ResponseHeaderModifier",
            Self::RequestRedirect => "RequestRedirect",
            Self::UrlRewrite => "URLRewrite",
            Self::RequestMirror => "RequestMirror",
            Self::Cors => "CORS",
            Self::FaultInjection => "FaultInjection",
        }
    }
}

/// Changes of headers: first `set`, then `add`, then `remove`. Headers that belong to one connection, that frame the
/// message or that only the mesh may say cannot be changed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderModifier {
    /// Values that replace whatever was there. At most 16.
    pub set: Vec<NamedValue>,
    /// Values beside what was there. At most 16.
    pub add: Vec<NamedValue>,
    /// Names of headers that go. At most 16.
    pub remove: Vec<FieldName>,
}

/// A header.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedValue {
    /// Its name.
    pub name: FieldName,
    /// Its value.
    pub value: FieldValue,
}

/// Another place that the caller is sent to; what is not given stays as it was.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct RequestRedirect {
    /// `http` or `https`.
    pub scheme: Option<RedirectScheme>,
    /// The host.
    pub hostname: Option<Host>,
    /// The path.
    pub path: Option<PathModifier>,
    /// The port. Default: with `scheme` given that scheme's own, else the one of the request.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308. Default 302.
    pub status_code: Option<u16>,
}

/// A scheme to be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum RedirectScheme {
    Http,
    Https,
}

/// Another host or path for the service that the request goes to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UrlRewrite {
    /// The `Host` or `:authority`.
    pub hostname: Option<Host>,
    /// The path.
    pub path: Option<PathModifier>,
}

/// Another path. The query stays.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum PathModifier {
    /// This one.
    ReplaceFullPath {
        /// An absolute path.
        #[serde(rename = "replaceFullPath")]
        replace_full_path: String,
    },
    /// This one in place of the elements that matched; every match of the rule must be a `PathPrefix`.
    ReplacePrefixMatch {
        /// An absolute path, or nothing.
        #[serde(rename = "replacePrefixMatch")]
        replace_prefix_match: String,
    },
}

/// A copy of some of the requests for another service, whose answers are thrown away and which nobody waits for. A request
/// with a body is copied when it has been answered, and only if its body has at most 64 KiB.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RequestMirror {
    /// Who gets the copy. A weight has no meaning here.
    pub backend_ref: MirrorRef,
    /// The share of requests that are copied. Default 100.
    #[serde(default)]
    pub percent: Option<Percent>,
    /// The same, finer.
    #[serde(default)]
    pub fraction: Option<Fraction>,
}

/// A service that copies go to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorRef {
    /// As in `backendRefs`.
    pub name: Host,
    /// As in `backendRefs`.
    #[serde(default)]
    pub port: Option<u16>,
}

/// A share as a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fraction {
    /// 0 to the denominator.
    pub numerator: u32,
    /// 1 or more. Default 100.
    #[serde(default = "hundred")]
    pub denominator: u32,
}

const fn hundred() -> u32 {
    100
}

/// Failures on purpose, for tests: first the delay, then the abort. Their shares are drawn apart.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultInjection {
    /// Some requests wait before anything else is done with them.
    pub delay: Option<FaultDelay>,
    /// Some requests are answered by the sidecar.
    pub abort: Option<FaultAbort>,
}

/// A wait.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FaultDelay {
    /// How long, above zero and at most an hour.
    pub fixed_delay: HumanDuration,
    /// The share of requests. Default 100.
    #[serde(default)]
    pub percent: Option<Percent>,
    /// The same, finer.
    #[serde(default)]
    pub fraction: Option<Fraction>,
}

/// An answer of the sidecar's own.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FaultAbort {
    /// Its status, 200 to 599. Default 503.
    #[serde(default)]
    pub http_status: Option<u16>,
    /// The status of a gRPC call. Default: what gRPC makes of `httpStatus`.
    #[serde(default)]
    pub grpc_status: Option<GrpcCode>,
    /// The share of requests. Default 100.
    #[serde(default)]
    pub percent: Option<Percent>,
    /// The same, finer.
    #[serde(default)]
    pub fraction: Option<Fraction>,
}

/// Cross-origin resource sharing (GEP-1767; Fetch standard, "CORS protocol"). Preflights are answered by the sidecar; what
/// the application itself says about CORS is replaced.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Cors {
    /// Origins that may read answers: `*`, `https://shop.example`, `https://*.shop.example`. At least one.
    pub allow_origins: Vec<OriginPattern>,
    /// Whether with cookies and other credentials. Default false.
    pub allow_credentials: bool,
    /// Methods that may be used beside GET, HEAD and POST; `*` is all.
    pub allow_methods: Vec<String>,
    /// Headers that a request may have; `*` is all.
    pub allow_headers: Vec<String>,
    /// Headers of the answer that may be read; `*` is all.
    pub expose_headers: Vec<String>,
    /// How many seconds a browser may remember the answer to a preflight. Default 5.
    pub max_age: Option<u32>,
}
