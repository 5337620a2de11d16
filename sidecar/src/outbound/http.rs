//! The workload's HTTP connections: each request is given to the service that it names.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use http::{Request, Response, Version, header::HOST, uri::Authority};

use super::{
    Ends,
    forward::{self, forward},
    mirror::Copies,
    passthrough_allowed,
    policy::Policy,
    routed::HostRoutes,
    service::Service,
    upgrade,
};
use crate::{
    http::{Body, Error, Incoming, headers, reply, reply::is_grpc},
    http1, http2,
    net::{Accepted, Metered, Peeked, detect},
    reason::Reason,
    telemetry::{Direction, Transport},
    worker::{Entered, Phase, Worker},
};

/// One connection of the workload, and what its requests have in common.
struct Client {
    worker: Rc<Worker>,
    destination: SocketAddr,
    /// Who made it.
    peer: IpAddr,
    /// What the last request named: almost always that of the next one.
    last: RefCell<Option<(Authority, Named)>>,
    /// Stands for the original destination, for requests that name no service.
    passthrough: RefCell<Option<Rc<Service>>>,
}

/// The service that a request names, and the routes of the host by which it does.
#[derive(Clone)]
struct Named {
    service: Rc<Service>,
    routes: Option<Rc<HostRoutes>>,
}

/// Serves HTTP/1.x.
pub(super) async fn serve_http1(worker: Rc<Worker>, io: Accepted, ends: Ends, _entered: Entered) {
    serve(worker, io, ends, async |client, io, finish| {
        http1::server::serve(io, |request| handle(Rc::clone(&client), request), finish).await
    })
    .await;
}

/// Serves HTTP/2 with prior knowledge.
pub(super) async fn serve_http2(worker: Rc<Worker>, io: Peeked, ends: Ends) {
    serve(worker, io, ends, async |client, io, finish| {
        http2::server::serve(io, |request| handle(Rc::clone(&client), request), finish).await
    })
    .await;
}

async fn serve<IO, F>(worker: Rc<Worker>, io: IO, ends: Ends, serving: F)
where
    F: AsyncFnOnce(Rc<Client>, Metered<IO>, std::pin::Pin<Box<dyn Future<Output = ()>>>) -> Result<(), Error>,
{
    let metrics = worker.metrics.connections(Direction::Outbound, Transport::Workload);
    let io = Metered::new(io, metrics.meter());
    let finish = Box::pin(worker.reached(Phase::Closing));
    let client = Rc::new(Client {
        worker: Rc::clone(&worker),
        destination: ends.destination,
        peer: ends.peer.ip(),
        last: RefCell::default(),
        passthrough: RefCell::default(),
    });
    metrics.opened();
    if let Err(error) = serving(client, io, finish).await {
        if error.is_parse() {
            worker.metrics.error(Direction::Outbound, Reason::BadRequest.code());
        }
        tracing::debug!(%error, "the workload's HTTP connection ended");
    }
    metrics.closed();
}

async fn handle(client: Rc<Client>, mut request: Request<Incoming>) -> Response<Body> {
    let worker = &client.worker;
    let Named { service, routes } = match client.named_by(&request) {
        Ok(named) => named,
        Err((reason, detail)) => {
            worker.metrics.error(Direction::Outbound, reason.code());
            return reply::reply(reason, &detail, is_grpc(request.headers()));
        }
    };
    name_host(&mut request, &service, client.destination);
    let grpc = is_grpc(request.headers());
    let mut choice = None;
    if let Some(routes) = routes {
        match routes.choose(worker, &service, &mut request) {
            Ok(chosen) => choice = Some(chosen),
            Err(answer) => return *answer,
        }
    }
    let first = choice.as_mut().and_then(|choice| choice.first.take());
    let route = choice.as_ref().map(|choice| &*choice.rule);
    if let Some(first) = first
        && let Some(mut answer) =
            Box::pin(first.happen(worker, Policy { service: &service, route, peer: None }, grpc)).await
    {
        if let Some(choice) = choice {
            choice.finish(&mut answer);
        }
        return answer;
    }
    let to = choice.as_ref().and_then(|choice| choice.service.as_ref()).unwrap_or(&service);
    let policy = Policy { service: to, route, peer: Some(&client.peer) };
    let mut response = if upgrade::is_asked_for(&request) {
        Box::pin(upgrade::forward(worker, policy, request)).await
    } else {
        let (parts, body) = request.into_parts();
        let copies = route.map_or_else(Copies::default, |route| Copies::of(worker, route, &parts));
        match forward::outgoing(to, route, parts) {
            Ok(outgoing) => forward(worker, policy, outgoing, body, copies).await,
            Err(e) => forward::bad_request(worker, policy, &e.to_string(), grpc),
        }
    };
    if let Some(choice) = choice {
        choice.finish(&mut response);
    }
    response
}

impl Client {
    /// Names the service: by the authority, else by where the workload was going. Its routes are those of the host that
    /// was named, else of the service's own first host.
    fn named_by(&self, request: &Request<Incoming>) -> Result<Named, (Reason, String)> {
        let named = match headers::authority(request.uri(), request.headers()) {
            Ok(authority) => Some(authority),
            // Before HTTP/1.1 a request need not say whom it is for.
            Err(headers::TargetError::NoHost) if request.version() < Version::HTTP_11 => None,
            Err(e) => return Err((Reason::BadRequest, e.to_string())),
        };
        if let (Some(authority), Some((last, found))) = (&named, &*self.last.borrow())
            && authority == last
        {
            return Ok(found.clone());
        }
        let (services, port) = (&self.worker.services, self.destination.port());
        let by_name = named.as_ref().and_then(|authority| detect::host_of(authority.as_str())).and_then(|host| {
            let service = services.by_host(&self.worker, &host, port)?;
            Some(Named { service, routes: services.routes(&self.worker, &host, port) })
        });
        let by_address = || {
            let service = services.by_address(self.destination)?;
            let routes = services.routes(&self.worker, &service.spec.expect.host, service.spec.target.port);
            Some(Named { service, routes })
        };
        let found = match by_name.or_else(by_address) {
            Some(found) => found,
            None => Named { service: self.passthrough()?, routes: None },
        };
        // A copy: what was read with it must not live as long as the connection.
        if let Some(authority) = named.and_then(|named| Authority::try_from(named.as_str()).ok()) {
            *self.last.borrow_mut() = Some((authority, found.clone()));
        }
        Ok(found)
    }

    fn passthrough(&self) -> Result<Rc<Service>, (Reason, String)> {
        passthrough_allowed(&self.worker, self.destination).map_err(|e| (e.reason, e.message.to_string()))?;
        let mut passthrough = self.passthrough.borrow_mut();
        let service = passthrough.get_or_insert_with(|| Service::passthrough(&self.worker, self.destination));
        Ok(Rc::clone(service))
    }
}

/// Gives a request of HTTP/1.0 that has no Host the one that it means.
fn name_host(request: &mut Request<Incoming>, service: &Service, destination: SocketAddr) {
    if request.uri().authority().is_some() || request.headers().contains_key(HOST) {
        return;
    }
    let value = if service.is_mesh() {
        http::HeaderValue::from_str(service.spec.expect.host.as_str())
    } else {
        http::HeaderValue::from_str(&destination.to_string())
    };
    if let Ok(value) = value {
        request.headers_mut().insert(HOST, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_under_way_fits_into_a_small_block() {
        fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
            size_of::<F>()
        }
        // On HTTP/2 each is a task of its own. One that is larger than 4 KiB with what its task adds costs more than
        // twice as many instructions: the allocator gives back the page of the last one and takes it again.
        let size = size(|(client, request): (Rc<Client>, Request<Incoming>)| handle(client, request));
        assert!(size <= 3_600, "{size} bytes");
    }
}
