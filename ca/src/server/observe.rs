//! The operator's plain port: `/livez`, `/readyz` and `/metrics`. It tells nothing secret and changes nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use time::OffsetDateTime;
use tokio::{
    net::TcpListener,
    sync::{Mutex, Semaphore, watch},
    time::{sleep, timeout},
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    IDLE_TIMEOUT, Live, REQUEST_TIMEOUT, ServerCertificate,
    metrics::{CONTENT_TYPE, Metrics, Moment, OwnLife},
    published::text,
    slots::Slots,
};
use crate::{
    authority::{hex, rfc3339},
    store::Store,
};

/// Connections at a time. A scraper and a kubelet need two.
const MAX_CONNECTIONS: usize = 64;
/// A connection ends after this.
const MAX_AGE: Duration = Duration::from_secs(60);
/// The store that takes longer to answer is not ready.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one look at the store is good for, so that no flood of probes becomes one of queries.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

type Answer = Response<Full<Bytes>>;

/// What the port tells of.
pub(crate) struct Observer {
    live: Arc<Live>,
    store: Store,
    own: Arc<ServerCertificate>,
    slots: Arc<Slots>,
    metrics: Arc<Metrics>,
    shutdown: watch::Receiver<bool>,
    looked: Mutex<Option<(Instant, Result<u64, String>)>>,
}

impl Observer {
    pub(super) fn new(
        live: Arc<Live>,
        store: Store,
        own: Arc<ServerCertificate>,
        slots: Arc<Slots>,
        metrics: Arc<Metrics>,
        shutdown: watch::Receiver<bool>,
    ) -> Arc<Self> {
        Arc::new(Self { live, store, own, slots, metrics, shutdown, looked: Mutex::new(None) })
    }

    /// Join tokens that wait to be used: a question that only a working store can answer.
    pub(crate) async fn tokens_waiting(&self) -> Result<u64, String> {
        let mut looked = self.looked.lock().await;
        if let Some((at, answer)) = looked.as_ref()
            && at.elapsed() < LOOK_AGAIN
        {
            return answer.clone();
        }
        let now = OffsetDateTime::now_utc();
        let asked = self.store.transaction(move |tx| tx.tokens_waiting(now));
        let answer = match timeout(STORE_TIMEOUT, asked).await {
            Ok(Ok(Ok(count))) => Ok(count),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(gone)) => Err(gone.to_string()),
            Err(_) => Err(format!("the CA's database did not answer within {STORE_TIMEOUT:?}; look at its disk")),
        };
        *looked = Some((Instant::now(), answer.clone()));
        answer
    }

    /// Connections to the serving port at this moment.
    pub(crate) fn connections(&self) -> usize {
        self.slots.used()
    }

    /// Why no certificate could be issued now, one line a reason; empty when one could.
    pub(crate) async fn failing(&self) -> Vec<String> {
        let mut failing = Vec::new();
        if *self.shutdown.borrow() {
            failing.push("stopping: this server was told to end".to_owned());
        }
        let end = self.live.get().expires_at();
        if OffsetDateTime::now_utc() >= end {
            failing.push(format!(
                "issuer: the intermediate expired at {}; run \"outrigger-ca rotate prepare\" and \"outrigger-ca rotate activate\"",
                rfc3339(end)
            ));
        }
        if let Err(why) = self.tokens_waiting().await {
            failing.push(format!("store: {why}"));
        }
        failing
    }

    /// Answers one request.
    pub(super) async fn answer<B>(&self, request: &Request<B>) -> Answer {
        let path = request.uri().path();
        if !matches!(path, "/livez" | "/readyz" | "/metrics") {
            return text(StatusCode::NOT_FOUND, "nothing is here; this port has /livez, /readyz and /metrics\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} can be read and nothing else\n"));
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match path {
            "/livez" => text(StatusCode::OK, "live\n"),
            "/readyz" => match self.failing().await {
                failing if failing.is_empty() => text(StatusCode::OK, "ready\n"),
                failing => text(StatusCode::SERVICE_UNAVAILABLE, failing.join("\n") + "\n"),
            },
            _ => self.metrics().await,
        }
    }

    async fn metrics(&self) -> Answer {
        let moment = Moment {
            connections: self.connections(),
            store_queue: self.store.waiting(),
            tokens_waiting: self.tokens_waiting().await.ok(),
            lives: self.lives(OffsetDateTime::now_utc()),
            ready: self.failing().await.is_empty(),
        };
        match self.metrics.encode(&moment) {
            Ok(metrics) => {
                let mut answer = text(StatusCode::OK, metrics);
                answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
                answer
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics cannot be written: {error}\n")),
        }
    }

    fn lives(&self, now: OffsetDateTime) -> Vec<OwnLife> {
        let server = self.own.der();
        let authority = self.live.get();
        let roots = authority.members().roots().map(|root| ("root", &root.der));
        let own = roots.chain([("intermediate", authority.intermediate()), ("server", &server)]);
        let life = |(role, der): (&'static str, &rustls::pki_types::CertificateDer<'_>)| {
            let (_, parsed) = X509Certificate::from_der(der).ok()?;
            let left = parsed.validity().not_after.to_datetime() - now;
            Some(OwnLife { role, serial: hex(parsed.raw_serial()), seconds_left: left.whole_seconds() })
        };
        own.filter_map(life).collect()
    }
}

/// Serves until the task is ended.
pub(super) async fn serve(listener: TcpListener, observer: Arc<Observer>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let observer = Arc::clone(&observer);
        tokio::spawn(async move {
            let _place = place;
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let observer = Arc::clone(&observer);
                async move { Ok::<_, std::convert::Infallible>(observer.answer(&request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE_TIMEOUT.min(REQUEST_TIMEOUT))
                .max_buf_size(8192)
                .serve_connection(TokioIo::new(tcp), service);
            // A prober that went away is nobody's failure.
            let _ = timeout(MAX_AGE, connection).await;
        });
    }
}
