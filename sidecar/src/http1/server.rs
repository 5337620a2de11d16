//! Serves HTTP/1.x on a connection that was accepted, until it ends or is told to finish.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use bytes::BytesMut;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use tokio::sync::oneshot;

use super::{
    OnUpgrade, RecvBody, Upgraded,
    connection::{self, HeadError, Received, Shared},
    head::{self, Bad, Carries, Says},
    out::Framing,
    sending::Sending,
    soon::Soon,
};
use crate::{
    http::{Body, Error, Incoming, reply::reply},
    net::Io,
    reason::Reason,
};

/// What a client may still send of a request that was answered, so that it comes to read the answer.
const REST: usize = 256 * 1024;
/// How long it may take for that.
const REST_TIME: Duration = Duration::from_secs(2);

/// Serves requests one after another. `finish` ends the connection after the one under way.
///
/// # Errors
///
/// Where the connection broke, or what came is no HTTP/1.x; the client was told so.
pub async fn serve<H, F>(io: impl Io + 'static, handler: H, finish: impl Future<Output = ()>) -> Result<(), Error>
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    let connection = Closing(connection::share(io));
    let Closing(connection) = &connection;
    let mut finish = pin!(finish);
    let mut finishing = false;
    loop {
        let head = poll_fn(|cx| {
            let mut now = connection.borrow_mut();
            let polled = now.poll_head(cx, |bytes| Ok(head::request(bytes)?.map(|(r, says, len)| ((r, says), len))));
            if polled.is_pending() && !finishing && finish.as_mut().poll(cx).is_ready() {
                finishing = true;
                if !now.has_input() {
                    return Poll::Ready(Ok(None));
                }
            }
            polled
        })
        .await;
        let (request, says) = match head {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(HeadError::Connection(e)) => return Err(e),
            Err(HeadError::Bad(bad)) => {
                refuse(connection, bad).await?;
                return Err(Error::Parse(bad.1));
            }
        };
        let exchange = Exchange {
            no_body: *request.method() == Method::HEAD,
            version: request.version(),
            keep_alive: says.keep_alive,
        };
        let (request, upgrade) = take_in(connection, request, says);
        // On the heap, because it is many times what the connection needs while it waits for the next request.
        let mut work = Box::pin(handler(request));
        let mut soon = Soon::default();
        let response = poll_fn(|cx| {
            if let Poll::Ready(response) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(response));
            }
            if !finishing && finish.as_mut().poll(cx).is_ready() {
                finishing = true;
            }
            let mut now = connection.borrow_mut();
            // To look whether the client has left costs something here, and most answers are there before that.
            if !now.is_watched() && soon.poll(cx).is_pending() {
                return Poll::Pending;
            }
            now.poll_left(cx).map(Err)
        })
        .await?;
        drop(work);
        match exchange.answer(connection, response, upgrade, finishing).await? {
            Next::Request => {}
            Next::End => return end(connection).await,
            Next::Upgraded => return Ok(()),
        }
    }
}

/// Closes a connection when its serving ends, though a request's body may still hold on to it.
struct Closing(Shared);

impl Drop for Closing {
    fn drop(&mut self) {
        let mut now = self.0.borrow_mut();
        if !now.upgraded {
            now.close();
        }
    }
}

/// What of a request its answer depends on.
struct Exchange {
    no_body: bool,
    version: Version,
    keep_alive: bool,
}

/// What becomes of the connection after an answer.
enum Next {
    Request,
    End,
    Upgraded,
}

/// Gives a request its body.
fn take_in(
    connection: &Shared,
    request: Request<()>,
    says: Says,
) -> (Request<Incoming>, Option<oneshot::Sender<Upgraded>>) {
    let mut now = connection.borrow_mut();
    now.expects = says.expects_continue;
    let mut upgrade = None;
    let body = match now.receive(says.framing) {
        Received::Nothing if says.upgrade => {
            let (sender, receiver) = oneshot::channel();
            upgrade = Some(sender);
            Incoming::Upgrade(OnUpgrade::Later(receiver))
        }
        Received::Nothing => Incoming::Empty,
        Received::Whole(bytes) => {
            // It has sent the body without waiting for leave.
            now.expects = false;
            Incoming::Whole(bytes, true)
        }
        Received::Later => Incoming::Http1(RecvBody::new(connection.clone())),
    };
    (request.map(|()| body), upgrade)
}

impl Exchange {
    async fn answer(
        &self,
        connection: &Shared,
        response: Response<Body>,
        upgrade: Option<oneshot::Sender<Upgraded>>,
        finishing: bool,
    ) -> Result<Next, Error> {
        let (parts, body) = response.into_parts();
        let switches = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        let none = self.no_body || switches || matches!(parts.status.as_u16(), 204 | 304);
        let carries = match body.size_hint().exact() {
            _ if none => Carries::Nothing,
            Some(length) => Carries::Exactly(length),
            None => Carries::Something,
        };
        // To HTTP/1.0 only the connection's end can say where such a body ends.
        let endless = self.version == Version::HTTP_10
            && matches!(carries, Carries::Something)
            && !parts.headers.contains_key(http::header::CONTENT_LENGTH);
        let mut close = finishing || !self.keep_alive || endless;
        let framing = {
            let mut now = connection.borrow_mut();
            close |= now.expects;
            now.answers();
            let out = now.out.head(head::room(&parts.headers));
            status_line(out, self.version, parts.status);
            if close && !switches {
                out.extend_from_slice(b"connection: close\r\n");
            } else if self.version == Version::HTTP_10 && !switches {
                out.extend_from_slice(b"connection: keep-alive\r\n");
            }
            let framing = head::fields(out, &parts.headers, carries, self.version == Version::HTTP_11);
            framing.map_err(Error::Length)?
        };
        close |= framing == Framing::UntilClose;
        drop(parts);
        let mut sending = Sending::new(body, framing);
        poll_fn(|cx| {
            loop {
                let ended = sending.gather(cx, connection)?;
                let mut now = connection.borrow_mut();
                let before = now.out.len();
                let last = ended && close && !switches && now.is_over();
                let written = if last { now.poll_write_last(cx) } else { now.poll_write(cx) };
                match written? {
                    Poll::Ready(()) if ended => return Poll::Ready(Ok(())),
                    // There may be more that had no room.
                    Poll::Ready(()) if before > 0 => continue,
                    _ => {}
                }
                let left = now.out.len();
                if let Poll::Ready(error) = now.poll_left(cx) {
                    return Poll::Ready(Err(error));
                }
                return sending.poll_stalled(cx, left, left != before).map(Err);
            }
        })
        .await?;
        drop(sending);
        if switches && let Some(upgrade) = upgrade {
            // Nobody wants it where the other side has gone meanwhile; then the connection ends here.
            connection.borrow_mut().upgraded = true;
            let _ = upgrade.send(Upgraded::new(connection.clone()));
            return Ok(Next::Upgraded);
        }
        if connection.borrow().is_received() {
            return Ok(if close { Next::End } else { Next::Request });
        }
        // Somebody may still be sending it on; what nobody wants is read over.
        poll_fn(|cx| connection.borrow_mut().poll_unread(cx)).await;
        let mut limit = REST;
        let rest = poll_fn(|cx| connection.borrow_mut().poll_rest(cx, &mut limit));
        let over = tokio::time::timeout(REST_TIME, rest).await.unwrap_or(false);
        Ok(if over && !close { Next::Request } else { Next::End })
    }
}

fn status_line(out: &mut BytesMut, version: Version, status: StatusCode) {
    if version == Version::HTTP_11 && status == StatusCode::OK {
        return out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    }
    out.extend_from_slice(if version == Version::HTTP_11 { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Answers a head that cannot be read.
async fn refuse(connection: &Shared, bad: Bad) -> Result<(), Error> {
    let mut response = reply(Reason::BadRequest, bad.1, false);
    *response.status_mut() = bad.0;
    let exchange = Exchange { no_body: false, version: Version::HTTP_11, keep_alive: false };
    exchange.answer(connection, response, None, true).await?;
    connection.borrow_mut().give_up();
    end(connection).await
}

/// Ends a connection so that the client can still read what it was told: closing one with bytes of it unread would
/// reset it (RFC 9112 section 9.6).
async fn end(connection: &Shared) -> Result<(), Error> {
    poll_fn(|cx| connection.borrow_mut().poll_shutdown(cx)).await.map_err(connection::broke)?;
    if connection.borrow().is_received() {
        return Ok(());
    }
    let mut limit = REST;
    let gone = poll_fn(|cx| connection.borrow_mut().poll_ended(cx, &mut limit));
    // It may take its time; we do not.
    let _ = tokio::time::timeout(REST_TIME, gone).await;
    Ok(())
}
