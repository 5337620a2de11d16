//! The enrolment client: one key's certificate from a CA that speaks Istio's `CreateCertificate`.
//!
//! Promises: TLS 1.3 only; the CA is authenticated by the given bundle alone (no system roots) and by the name or
//! address that was dialled; nothing secret is sent before that; the certificate that comes back belongs to the
//! key of the request.

use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};
use tokio::{net::TcpStream, time::timeout};
use tonic::metadata::{Ascii, MetadataValue};
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};

use super::{
    alert::Remembering,
    connect::{AbortOnDrop, Dial},
    enrol_error::{status_cause, tls_cause},
};
pub use super::{
    connect::CONNECT_TIMEOUT,
    enrol_error::{EnrolCause, EnrolError},
};
use crate::proto::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};

/// Limit of the request itself.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// No honest answer is longer, in bytes: a handful of certificates of at most a few KiB.
const MAX_RESPONSE: usize = 256 * 1024;

/// How the caller proves who it is.
#[derive(Clone)]
pub enum Credential {
    /// A join token, or another token that the CA accepts; sent as `authorization: Bearer`.
    Token(String),
    /// The certificate about to be renewed, shown in the TLS handshake.
    Certificate {
        /// Leaf first, then intermediates, PEM.
        chain_pem: String,
        /// Its private key, PEM.
        key_pem: String,
    },
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token(hidden)",
            Self::Certificate { .. } => "Certificate(hidden)",
        })
    }
}

/// One enrolment or renewal.
#[derive(Debug)]
pub struct EnrolRequest<'a> {
    /// The CA, as `host:port`, `1.2.3.4:port` or `[v6]:port`. Its certificate must carry this host as a SAN.
    pub address: &'a str,
    /// The roots that may vouch for the CA's server certificate, PEM.
    pub bundle_pem: &'a str,
    /// How the caller proves who it is.
    pub credential: Credential,
    /// The request, as made by [`new_key_and_csr`](super::csr::new_key_and_csr).
    pub csr_pem: &'a str,
    /// The lifetime wished for; `None` leaves it to the CA. Whole seconds count.
    pub ttl: Option<Duration>,
}

/// What a successful enrolment brings.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// Leaf first, then intermediates, PEM: what goes into `cert.pem`.
    pub chain_pem: String,
    /// The CA's root, PEM. The connection that brought it was authenticated by the caller's bundle.
    pub roots_pem: String,
}

/// Asks the CA for a certificate. Ends within [`CONNECT_TIMEOUT`] plus [`REQUEST_TIMEOUT`].
pub async fn enrol(request: EnrolRequest<'_>) -> Result<Enrolled, EnrolError> {
    let fail = |cause| EnrolError { address: request.address.to_owned(), cause };
    try_enrol(&request).await.map_err(fail)
}

async fn try_enrol(request: &EnrolRequest<'_>) -> Result<Enrolled, EnrolCause> {
    let own = match &request.credential {
        Credential::Token(_) => None,
        Credential::Certificate { chain_pem, key_pem } => Some((chain_pem.as_str(), key_pem.as_str())),
    };
    let dial = Dial::new(request.address, request.bundle_pem, own)?;
    let token = bearer(&request.credential)?;
    let stream = dial.connect().await?;
    let chain = timeout(REQUEST_TIMEOUT, call(stream, request, token, dial.host()))
        .await
        .map_err(|_| EnrolCause::TimedOut { what: "the request", after: REQUEST_TIMEOUT })??;
    check_response(&chain, request.csr_pem)
}

/// Sends the one request over an established connection, and ends the connection.
async fn call(
    stream: tokio_rustls::client::TlsStream<TcpStream>,
    request: &EnrolRequest<'_>,
    token: Option<MetadataValue<Ascii>>,
    host: &str,
) -> Result<Vec<String>, EnrolCause> {
    let (stream, tls_error) = Remembering::new(stream);
    let explain = |other: EnrolCause| tls_error.get().map_or(other, |tls| tls_cause(tls, host));
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .handshake::<_, tonic::body::Body>(TokioIo::new(stream))
        .await
        .map_err(|e| explain(EnrolCause::Lost(e.to_string())))?;
    // The task ends with the connection, which ends when `sender` is dropped; the guard covers a time-out.
    let connection = AbortOnDrop::of(connection);

    let service = tower::service_fn(move |request| {
        let mut sender = sender.clone();
        async move {
            sender.ready().await?;
            sender.send_request(request).await
        }
    });
    let origin = http::Uri::builder()
        .scheme("https")
        .authority(request.address)
        .path_and_query("/")
        .build()
        .map_err(|e| EnrolCause::Address(e.to_string()))?;
    let mut client =
        IstioCertificateServiceClient::with_origin(service, origin).max_decoding_message_size(MAX_RESPONSE);
    let seconds = request.ttl.map_or(0, |ttl| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
    let mut message = tonic::Request::new(IstioCertificateRequest {
        csr: request.csr_pem.to_owned(),
        validity_duration: seconds,
        metadata: None,
    });
    if let Some(token) = token {
        message.metadata_mut().insert("authorization", token);
    }
    let answer = client.create_certificate(message).await;
    drop(connection);
    match answer {
        Ok(response) => Ok(response.into_inner().cert_chain),
        Err(status) => Err(explain(status_cause(&status))),
    }
}

fn bearer(credential: &Credential) -> Result<Option<MetadataValue<Ascii>>, EnrolCause> {
    let Credential::Token(token) = credential else { return Ok(None) };
    let token = token.trim();
    if token.is_empty() {
        return Err(EnrolCause::Credential(
            "the join token is empty; make one with \"outrigger-ca token create\"".into(),
        ));
    }
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| {
        EnrolCause::Credential("the join token holds characters that no token has; copy it again, whole".into())
    })?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Splits the answer into chain and root, after checking that it is for the key that was asked for.
fn check_response(chain: &[String], csr_pem: &str) -> Result<Enrolled, EnrolCause> {
    let bad = |why: &str| EnrolCause::Response(why.to_owned());
    let (root, certificates) = chain.split_last().ok_or_else(|| bad("it holds no certificate"))?;
    if certificates.is_empty() {
        return Err(bad("it holds one certificate, where a leaf and a root belong"));
    }
    let mut parsed = Vec::with_capacity(chain.len());
    for pem in chain {
        let mut each = CertificateDer::pem_slice_iter(pem.as_bytes());
        match (each.next(), each.next()) {
            (Some(Ok(der)), None) => parsed.push(der),
            _ => return Err(bad("a string in it is not exactly one PEM certificate")),
        }
    }
    let csr = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes())
        .map_err(|e| EnrolCause::Credential(format!("the certificate request is not PEM: {e}")))?;
    let (_, csr) = X509CertificationRequest::from_der(&csr)
        .map_err(|e| EnrolCause::Credential(format!("the certificate request cannot be read: {e}")))?;
    let (_, certificate) =
        X509Certificate::from_der(&parsed[0]).map_err(|_| bad("its first certificate cannot be read"))?;
    if certificate.public_key().raw != csr.certification_request_info.subject_pki.raw {
        return Err(bad("its certificate is for another key than the request's"));
    }
    let mut chain_pem = String::new();
    for certificate in certificates {
        push_pem(&mut chain_pem, certificate);
    }
    let mut roots_pem = String::new();
    push_pem(&mut roots_pem, root);
    Ok(Enrolled { chain_pem, roots_pem })
}

fn push_pem(out: &mut String, pem: &str) {
    out.push_str(pem.trim_end());
    out.push('\n');
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::csr::new_key_and_csr;

    #[test]
    fn an_answer_for_another_key_or_without_a_root_is_refused() {
        let self_signed = |key: &rcgen::KeyPair| {
            let mut params = rcgen::CertificateParams::default();
            params.is_ca = rcgen::IsCa::NoCa;
            params.self_signed(key).unwrap().pem()
        };
        let (key, csr) = new_key_and_csr(None).unwrap();
        let mine = self_signed(&rcgen::KeyPair::from_pem(key.as_str()).unwrap());
        let other = self_signed(&rcgen::KeyPair::generate().unwrap());
        let check = |chain: &[&String]| {
            let chain: Vec<String> = chain.iter().map(|s| (*s).clone()).collect();
            check_response(&chain, csr.as_str())
        };
        let good = check(&[&mine, &other]).unwrap();
        assert_eq!((good.chain_pem, good.roots_pem), (mine.clone(), other.clone()));
        for (bad, words) in [
            (vec![], "no certificate"),
            (vec![&mine], "one certificate"),
            (vec![&other, &other], "another key"),
            (vec![&mine, &format!("{other}{other}")], "exactly one PEM"),
            (vec![&mine, &"hello".to_owned()], "exactly one PEM"),
        ] {
            let error = check(&bad).unwrap_err().to_string();
            assert!(error.contains(words), "{error} does not say {words:?}");
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_the_inputs_is_said_before_anything_is_sent() {
        let (_, csr) = new_key_and_csr(None).unwrap();
        let ask = |address: &'static str, bundle: &'static str, token: &str| {
            let credential = Credential::Token(token.to_owned());
            enrol(EnrolRequest { address, bundle_pem: bundle, credential, csr_pem: csr.as_str(), ttl: None })
        };
        let error = ask("ca.mesh", "", "t").await.unwrap_err();
        assert!(matches!(error.cause, EnrolCause::Address(_)) && error.is_permanent(), "{error}");
        let error = ask("ca.mesh:15012", "", "t").await.unwrap_err();
        assert!(matches!(error.cause, EnrolCause::Bundle(_)) && error.is_permanent(), "{error}");
        assert!(!format!("{:?}", Credential::Token("secret".into())).contains("secret"));
    }
}
