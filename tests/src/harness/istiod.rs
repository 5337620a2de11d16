//! A stand-in for istiod as a CA: `CreateCertificate` over gRPC with TLS, and nothing else on its port.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Request as HttpRequest, Response as HttpResponse, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use outrigger_identity::proto::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
};
use rcgen::{CertificateSigningRequestParams, PublicKeyData as _, SubjectPublicKeyInfo};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status, body::Body};

use super::{
    Pod,
    pki::{Leaf, TestCa},
};

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `authorization`, without its scheme.
    pub token: Option<String>,
    /// Whether a certificate of the mesh was shown.
    pub certificate: bool,
    /// `clusterid`.
    pub cluster: Option<String>,
}

/// How it issues.
pub struct Issuing {
    /// Who signs.
    pub issuer: TestCa,
    /// The root certificates that come with each, PEM.
    pub roots: String,
    /// The certificate for each service-account token. Who shows a certificate is taken for the first.
    pub accounts: Vec<(String, Leaf)>,
}

struct State {
    issuing: Mutex<Issuing>,
    asked: Mutex<Vec<Asked>>,
}

/// A running stand-in.
pub struct Istiod(Arc<State>);

impl Istiod {
    /// Listens on the pod's port 15012, with a certificate of this root for the pod's address.
    pub fn start(pod: &Pod, root: &TestCa, issuing: Issuing) -> Self {
        let server = root.issue(&Leaf { uris: Vec::new(), ..Leaf::of("istiod", &[&pod.v4.to_string()]) });
        let chain = CertificateDer::pem_slice_iter(server.chain.as_bytes()).map(Result::unwrap).collect();
        let provider = Arc::new(default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root.bundle().as_bytes()).unwrap()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, PrivateKeyDer::from_pem_slice(server.key.as_bytes()).unwrap())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let state = Arc::new(State { issuing: Mutex::new(issuing), asked: Mutex::default() });
        let listener = pod.listen(15012);
        let (acceptor, shared) = (TlsAcceptor::from(Arc::new(config)), Arc::clone(&state));
        tokio::task::spawn_local(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&shared));
                tokio::task::spawn_local(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let certificate = tls.get_ref().1.peer_certificates().is_some();
                    let api = IstioCertificateServiceServer::new(Api { state, certificate });
                    let service = hyper::service::service_fn(move |request| answer(api.clone(), request));
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.clone().timer(TokioTimer::new()).serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        Self(state)
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.0.asked.lock().unwrap().clone()
    }

    /// Changes how it issues.
    pub fn change(&self, change: impl FnOnce(&mut Issuing)) {
        change(&mut self.0.issuing.lock().unwrap());
    }
}

/// gRPC, and for all else what a server of gRPC alone says.
async fn answer(
    mut api: IstioCertificateServiceServer<Api>,
    request: HttpRequest<Incoming>,
) -> Result<HttpResponse<Body>, Infallible> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    if kind.is_none_or(|kind| !kind.as_bytes().starts_with(b"application/grpc")) {
        let mut refused = HttpResponse::new(Body::default());
        *refused.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Ok(refused);
    }
    tower::Service::call(&mut api, request).await
}

#[derive(Clone)]
struct Api {
    state: Arc<State>,
    certificate: bool,
}

#[tonic::async_trait]
impl IstioCertificateService for Api {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let text = |name| request.metadata().get(name).and_then(|value| value.to_str().ok());
        let token = text("authorization").and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned);
        let cluster = text("clusterid").map(str::to_owned);
        self.state.asked.lock().unwrap().push(Asked { token: token.clone(), certificate: self.certificate, cluster });
        let issuing = self.state.issuing.lock().unwrap();
        let mut accounts = issuing.accounts.iter();
        let account = match &token {
            Some(token) => accounts.find(|(known, _)| known == token),
            None if self.certificate => accounts.next(),
            None => None,
        };
        let (_, leaf) = account.ok_or_else(|| Status::unauthenticated("request authenticate failure"))?;
        let csr = CertificateSigningRequestParams::from_pem(&request.get_ref().csr)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let key = SubjectPublicKeyInfo::from_der(&csr.public_key.subject_public_key_info())
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        // The leaf, all intermediates in one string, all roots in one string.
        let mut cert_chain = vec![issuing.issuer.sign(leaf, &key)];
        cert_chain.extend(Some(issuing.issuer.intermediates().to_owned()).filter(|above| !above.is_empty()));
        cert_chain.push(issuing.roots.clone());
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
