//! Filters of routes, in the vocabulary of Gateway API's HTTPRouteFilter; CORS as GEP-1767 has it, faults as Istio names
//! them.

use serde::{Deserialize, Serialize};

use super::{
    Host, HumanDuration, Percent,
    fields::{FieldName, FieldValue, GrpcCode, OriginPattern},
};

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
