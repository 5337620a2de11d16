//! Requests for hosts that routes name: the rule that a request takes, with the services that the rule means.

use std::{cell::OnceCell, fmt, rc::Rc, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header::LOCATION, uri::PathAndQuery};

use super::{
    forward::{refused, unsent},
    policy::Policy,
    service::Service,
};
use crate::{
    http::{
        Body, Incoming, headers,
        path::{Canonical, canonical},
        reply::{is_grpc, reply_with},
    },
    reason::Reason,
    route::{Asked, Rule, Table, is_preflight, replace_path},
    telemetry::{Direction, RouteMetrics},
    worker::Worker,
};

/// A rule as one worker has it.
pub(super) struct LocalRule {
    pub(super) rule: Arc<Rule>,
    pub(super) metrics: Rc<RouteMetrics>,
    backends: Box<[OnceCell<Rc<Service>>]>,
}

/// The rules of one host as one worker has them; each is connected with its services by the first request that takes it.
pub struct HostRoutes {
    table: Arc<Table>,
    rules: Box<[OnceCell<Rc<LocalRule>>]>,
}

impl fmt::Debug for HostRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostRoutes({} rules)", self.rules.len())
    }
}

/// What becomes of a request.
pub(super) struct Choice {
    pub(super) rule: Rc<LocalRule>,
    /// Where it goes; none where that is the service that was called.
    pub(super) service: Option<Rc<Service>>,
    /// What comes before that, or in its place.
    pub(super) first: Option<Box<First>>,
    /// The origin that may read the answer, of a rule with CORS.
    origin: Option<HeaderValue>,
}

/// What comes before a request goes anywhere, or in its place.
pub(super) struct First {
    delay: Option<Duration>,
    answer: Option<Answer>,
}

/// An answer of the sidecar's own.
enum Answer {
    /// This one, and the reason where it is an error.
    Response(Response<Body>, Option<Reason>),
    Refuse(Reason, &'static str),
}

impl First {
    /// Waits as long as the rule says, and gives the answer, if it is ours to give.
    pub(super) async fn happen(self, worker: &Rc<Worker>, policy: Policy<'_>, grpc: bool) -> Option<Response<Body>> {
        if let (Some(delay), Some(route)) = (self.delay, policy.route) {
            route.metrics.fault("delay");
            let _busy = worker.busy();
            tokio::time::sleep(delay).await;
        }
        Some(match self.answer? {
            Answer::Response(response, reason) => {
                if let Some(reason) = reason {
                    worker.metrics.error(Direction::Outbound, reason.code());
                }
                unsent(policy).refuse(response.status());
                response
            }
            Answer::Refuse(reason, why) => refused(worker, unsent(policy), reason, why, grpc),
        })
    }
}

impl Choice {
    /// Makes the changes of the rule to an answer, whoever gave it.
    pub(super) fn finish(self, response: &mut Response<Body>) {
        let rule = &self.rule.rule;
        if let Some(changes) = &rule.response_headers {
            changes.apply(response.headers_mut());
        }
        if let Some(cors) = &rule.cors {
            cors.apply(response.headers_mut(), self.origin);
        }
    }
}

impl HostRoutes {
    /// The rules of `table`.
    pub fn new(table: &Arc<Table>) -> Self {
        Self { table: Arc::clone(table), rules: table.rules.iter().map(|_| OnceCell::new()).collect() }
    }

    /// Makes the path of `request` canonical and finds what is to become of it; without a rule for it, its answer.
    pub(super) fn choose(
        &self,
        worker: &Rc<Worker>,
        called: &Rc<Service>,
        request: &mut Request<Incoming>,
    ) -> Result<Choice, Box<Response<Body>>> {
        let grpc = is_grpc(request.headers());
        let refuse = |reason, why: &str| Box::new(refused(worker, unsent(Policy::of(called)), reason, why, grpc));
        if let Some(new) = normalized(worker, called, request)? {
            replace_path(request.uri_mut(), new).map_err(|e| refuse(Reason::BadRequest, &e.to_string()))?;
        }
        let (uri, headers) = (request.uri(), request.headers());
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        let asked = Asked { path, query, method: request.method(), headers };
        let Some(taken) = self.table.take(asked) else {
            return Err(refuse(Reason::NoRoute, "no rule of the host's routes matches this request"));
        };
        let rule = self.local(worker, taken.rule).ok_or_else(|| refuse(Reason::NoRoute, "the rule is not there"))?;
        let told = &rule.rule;
        let preflight = told.cors.as_ref().filter(|_| is_preflight(request.method(), headers));
        if let Some(cors) = preflight {
            let answer = own(StatusCode::NO_CONTENT, cors.preflight(headers));
            unsent(Policy { service: called, route: Some(&rule), peer: None }).refuse(answer.status());
            return Err(Box::new(answer));
        }
        let origin = told.cors.as_ref().and_then(|cors| cors.allowed(headers));
        let delay = told.delay.as_ref().filter(|delay| delay.share.takes()).map(|delay| delay.time);
        let mut service = None;
        let answer = if let Some(abort) = told.abort.as_ref().filter(|abort| abort.share.takes()) {
            rule.metrics.fault("abort");
            let text = "this failure is injected on purpose";
            let response = reply_with(Reason::FaultInjected, abort.status, abort.grpc.number(), text, grpc);
            Some(Answer::Response(response, Some(Reason::FaultInjected)))
        } else if let Some(redirect) = &told.redirect {
            let to = headers::authority(uri, headers).map_err(|e| refuse(Reason::BadRequest, &e.to_string()))?;
            Some(match redirect.location(&to, path, query, taken.prefix) {
                Some(location) => {
                    Answer::Response(own(redirect.status, HeaderMap::from_iter([(LOCATION, location)])), None)
                }
                None => Answer::Refuse(Reason::BadRequest, "the place to redirect to is no URL"),
            })
        } else {
            match rule.backend(worker) {
                Ok(backend) => {
                    service = backend;
                    None
                }
                Err(why) => Some(Answer::Refuse(Reason::NoBackend, why)),
            }
        };
        let first = (delay.is_some() || answer.is_some()).then(|| Box::new(First { delay, answer }));
        if let Some(rewrite) = &told.rewrite {
            let path = rewrite.path(path, query, taken.prefix);
            let bad = |e: headers::TargetError| refuse(Reason::BadRequest, &e.to_string());
            if let Some(path) = path.map_err(bad)? {
                replace_path(request.uri_mut(), path).map_err(bad)?;
            }
            if let Some(authority) = &rewrite.authority {
                headers::replace_authority(request, authority).map_err(bad)?;
            }
        }
        Ok(Choice { rule, service, first, origin })
    }

    fn local(&self, worker: &Rc<Worker>, number: usize) -> Option<Rc<LocalRule>> {
        let rule = self.table.rules.get(number)?;
        let local = self.rules.get(number)?.get_or_init(|| {
            Rc::new(LocalRule {
                metrics: worker.metrics.route(rule.route.as_str()),
                backends: rule.backends.iter().flatten().map(|_| OnceCell::new()).collect(),
                rule: Arc::clone(rule),
            })
        });
        Some(Rc::clone(local))
    }
}

impl LocalRule {
    /// The service that the next request goes to; none for the one that was called.
    fn backend(&self, worker: &Rc<Worker>) -> Result<Option<Rc<Service>>, &'static str> {
        let Some(backends) = &self.rule.backends else { return Ok(None) };
        let number = Rule::pick(backends).ok_or("every backend of the rule has the weight 0")?;
        let (Some(backend), Some(known)) = (backends.get(number), self.backends.get(number)) else {
            return Err("the backend is not there");
        };
        if let Some(service) = known.get() {
            return Ok(Some(Rc::clone(service)));
        }
        let service = worker.services.backend(worker, &backend.name, backend.port);
        let service = service.ok_or("more mesh services are in use at once than can be held")?;
        Ok(Some(Rc::clone(known.get_or_init(|| service))))
    }
}

/// The path of a request in its canonical form, where it is another one; or an answer to a request that is not to go on.
fn normalized(
    worker: &Rc<Worker>,
    called: &Rc<Service>,
    request: &Request<Incoming>,
) -> Result<Option<PathAndQuery>, Box<Response<Body>>> {
    let (uri, grpc) = (request.uri(), is_grpc(request.headers()));
    let refuse = |why: &str| Box::new(refused(worker, unsent(Policy::of(called)), Reason::BadRequest, why, grpc));
    let with_query = |path: &str| match uri.query() {
        None => path.to_owned(),
        Some(query) => [path, "?", query].concat(),
    };
    match canonical(uri.path(), worker.config().outbound.path_normalization) {
        Canonical::Path(std::borrow::Cow::Borrowed(_)) => Ok(None),
        Canonical::Path(std::borrow::Cow::Owned(path)) => {
            let new = PathAndQuery::from_maybe_shared(bytes::Bytes::from(with_query(&path)));
            new.map(Some).map_err(|_| refuse("the request's path is too long in its canonical form"))
        }
        Canonical::Redirect(path) if !grpc => {
            // RFC 9110 section 15.4.8: the method stays what it is.
            let to = headers::authority(uri, request.headers()).map_err(|e| refuse(&e.to_string()))?;
            let location = HeaderValue::try_from(format!("http://{to}{}", with_query(&path)));
            let location = location.map_err(|_| refuse("the request's path is no URL in its canonical form"))?;
            let response = own(StatusCode::TEMPORARY_REDIRECT, HeaderMap::from_iter([(LOCATION, location)]));
            unsent(Policy::of(called)).refuse(response.status());
            Err(Box::new(response))
        }
        Canonical::Redirect(_) | Canonical::Refuse => {
            Err(refuse("an escaped slash in the path is not allowed here (path_with_escaped_slashes_action)"))
        }
    }
}

/// An answer of the sidecar's own that is no error.
fn own(status: StatusCode, headers: HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
