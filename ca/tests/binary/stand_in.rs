//! An HTTPS server of the test's own, on a thread of its own: what a cluster would answer.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// One request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Vec<u8>,
}

type Answer = (u16, String);
type Handler = dyn Fn(&Asked) -> Answer + Send + Sync;

pub(crate) struct StandIn {
    /// `https://127.0.0.1:…`.
    pub(crate) url: String,
    /// Its certificate, which is its own root, PEM.
    pub(crate) root: String,
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }
}

impl StandIn {
    pub(crate) fn new(handler: impl Fn(&str, &Asked) -> Answer + Send + Sync + 'static) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], der).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let own = url.clone();
        let handler: Arc<Handler> = Arc::new(move |asked: &Asked| handler(&own, asked));
        let (record, acceptor) = (Arc::clone(&asked), TlsAcceptor::from(Arc::new(tls)));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = accept(listener, acceptor, handler, record) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { url, root: certificate.pem(), asked, stop: Some(stop) }
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, handler: Arc<Handler>, asked: Arc<Mutex<Vec<Asked>>>) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (tls, handler, asked) = (tls.clone(), Arc::clone(&handler), Arc::clone(&asked));
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(tcp).await else { return };
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let (handler, asked) = (Arc::clone(&handler), Arc::clone(&asked));
                async move {
                    let header = request.headers().get("authorization").map(|v| v.to_str().unwrap().to_owned());
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes().to_vec();
                    let one = Asked { path, authorization: header, body };
                    let (status, text) = handler(&one);
                    asked.lock().unwrap().push(one);
                    let mut answer = Response::new(Full::new(Bytes::from(text)));
                    *answer.status_mut() = status.try_into().unwrap();
                    Ok::<_, Infallible>(answer)
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
