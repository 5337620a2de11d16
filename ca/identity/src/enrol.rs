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
    /// The cluster in which the caller runs, for istiod; sent as the metadata `clusterid`, as Istio's agents do.
    pub cluster_id: Option<&'a str>,
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
    if let Some(cluster) = request.cluster_id {
        let why = "identity.ca.cluster_id holds characters that no cluster's name has";
        let cluster = cluster.parse().map_err(|_| EnrolCause::Credential(why.to_owned()))?;
        message.metadata_mut().insert("clusterid", cluster);
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

/// Splits the answer into chain and roots, after checking that it is for the key that was asked for. The roots are the last
/// string (istio.io/api security/v1alpha1/ca.proto); istiod may put several certificates into one string, the intermediates
/// as well as the roots.
fn check_response(chain: &[String], csr_pem: &str) -> Result<Enrolled, EnrolCause> {
    let bad = |why: &str| EnrolCause::Response(why.to_owned());
    let (roots, certificates) = chain.split_last().ok_or_else(|| bad("it holds no certificate"))?;
    if certificates.is_empty() {
        return Err(bad("it holds one string, where a leaf and a root belong, each in its own"));
    }
    let certificates = certificates.iter().map(|pem| read(pem)).collect::<Result<Vec<_>, _>>()?.concat();
    let roots = read(roots)?;
    let Some(leaf) = certificates.first() else { return Err(bad("it holds no leaf")) };
    let csr = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes())
        .map_err(|e| EnrolCause::Credential(format!("the certificate request is not PEM: {e}")))?;
    let (_, csr) = X509CertificationRequest::from_der(&csr)
        .map_err(|e| EnrolCause::Credential(format!("the certificate request cannot be read: {e}")))?;
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| bad("its first certificate cannot be read"))?;
    if certificate.public_key().raw != csr.certification_request_info.subject_pki.raw {
        return Err(bad("its certificate is for another key than the request's"));
    }
    Ok(Enrolled { chain_pem: to_pem(&certificates), roots_pem: to_pem(&roots) })
}

/// The certificates of one string of an answer: at least one.
fn read(pem: &str) -> Result<Vec<CertificateDer<'static>>, EnrolCause> {
    let ders = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    match ders {
        Ok(ders) if !ders.is_empty() => Ok(ders),
        _ => Err(EnrolCause::Response("a string in it is no PEM certificate".to_owned())),
    }
}

/// PEM with LF at the end of each line.
fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let encode = |der: &CertificateDer<'_>| pem::encode_config(&pem::Pem::new("CERTIFICATE", der.as_ref()), config);
    certificates.iter().map(encode).collect()
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
        let lf = |pem: &str| pem.replace('\r', "");
        let good = check(&[&mine, &other]).unwrap();
        assert_eq!((good.chain_pem, good.roots_pem), (lf(&mine), lf(&other)));
        // As istiod may send it: intermediates in one string, and several roots.
        let two = format!("{other}{mine}");
        let good = check(&[&mine, &two, &two]).unwrap();
        assert_eq!((good.chain_pem, good.roots_pem), (lf(&format!("{mine}{two}")), lf(&two)));
        for (bad, words) in [
            (vec![], "no certificate"),
            (vec![&mine], "one string"),
            (vec![&format!("{mine}{other}")], "one string"),
            (vec![&other, &other], "another key"),
            (vec![&format!("{other}{mine}"), &other], "another key"),
            (vec![&mine, &"hello".to_owned()], "no PEM certificate"),
            (vec![&mine, &String::new(), &other], "no PEM certificate"),
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
            enrol(EnrolRequest {
                address,
                bundle_pem: bundle,
                credential,
                csr_pem: csr.as_str(),
                ttl: None,
                cluster_id: None,
            })
        };
        let error = ask("ca.mesh", "", "t").await.unwrap_err();
        assert!(matches!(error.cause, EnrolCause::Address(_)) && error.is_permanent(), "{error}");
        let error = ask("ca.mesh:15012", "", "t").await.unwrap_err();
        assert!(matches!(error.cause, EnrolCause::Bundle(_)) && error.is_permanent(), "{error}");
        assert!(!format!("{:?}", Credential::Token("secret".into())).contains("secret"));
    }
}
