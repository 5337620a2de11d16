//! A TLS connection to the CA: TLS 1.3 only, the CA authenticated by the given bundle alone and by the name or address that
//! was dialled, HTTP/2 inside.

use std::{sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, time::timeout};

use super::{
    dial,
    enrol_error::{EnrolCause, find_tls, tls_cause},
};

/// Limit of TCP connect and TLS handshake together. Istio's agent uses 10 s for both too.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What is needed for a connection; everything in it was checked before anything is sent.
pub(super) struct Dial<'a> {
    address: &'a str,
    host: &'a str,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
}

impl<'a> Dial<'a> {
    /// `address` is `host:port`, `bundle_pem` the roots that may vouch for the CA, `own` the certificate to show and its key,
    /// PEM.
    pub(super) fn new(address: &'a str, bundle_pem: &str, own: Option<(&str, &str)>) -> Result<Self, EnrolCause> {
        let host = host_of(address)?;
        let name = ServerName::try_from(host)
            .map_err(|_| EnrolCause::Address(format!("\"{host}\" is neither a DNS name nor an IP address")))?
            .to_owned();
        Ok(Self { address, host, name, tls: client_config(bundle_pem, own)? })
    }

    /// The host that is dialled and checked.
    pub(super) fn host(&self) -> &'a str {
        self.host
    }

    /// Connects within [`CONNECT_TIMEOUT`].
    pub(super) async fn connect(&self) -> Result<tokio_rustls::client::TlsStream<TcpStream>, EnrolCause> {
        let connect = async {
            let addresses = tokio::net::lookup_host(self.address).await.map_err(EnrolCause::Connect)?;
            let tcp = dial::first_of(addresses.collect()).await.map_err(EnrolCause::Connect)?;
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls));
            connector.connect(self.name.clone(), tcp).await.map_err(|e| match find_tls(&e) {
                Some(tls) => tls_cause(tls, self.host),
                None => EnrolCause::Tls(e.to_string()),
            })
        };
        timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| EnrolCause::TimedOut { what: "connecting", after: CONNECT_TIMEOUT })?
    }
}

/// A task that ends with whoever started it.
pub(super) struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl AbortOnDrop {
    /// Starts it; what it comes to is nobody's affair.
    pub(super) fn of<F>(work: F) -> Self
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        Self(tokio::spawn(async move { drop(work.await) }))
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The host part of `host:port`, without the brackets of an IPv6 address.
fn host_of(address: &str) -> Result<&str, EnrolCause> {
    let bad = |why: &str| EnrolCause::Address(format!("\"{address}\" {why}"));
    let (host, port) = address.rsplit_once(':').ok_or_else(|| bad("has no port"))?;
    match port.parse::<u16>() {
        Ok(0) | Err(_) => return Err(bad("has no valid port")),
        Ok(_) => {}
    }
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').ok_or_else(|| bad("has an unclosed bracket"))?,
        None if host.contains(':') => return Err(bad("is an IPv6 address without brackets")),
        None => host,
    };
    if host.is_empty() { Err(bad("has no host")) } else { Ok(host) }
}

fn client_config(bundle_pem: &str, own: Option<(&str, &str)>) -> Result<Arc<ClientConfig>, EnrolCause> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle_pem.as_bytes()) {
        let root = root.map_err(|e| EnrolCause::Bundle(format!("not PEM: {e}")))?;
        roots.add(root).map_err(|e| EnrolCause::Bundle(format!("a certificate in it is not a root: {e}")))?;
    }
    if roots.is_empty() {
        return Err(EnrolCause::Bundle("it holds no certificate".into()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| EnrolCause::Tls(e.to_string()))?
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((chain_pem, key_pem)) => {
            let bad = |why: String| {
                EnrolCause::Credential(format!(
                    "the current certificate or its key cannot be used: {why}; enrol again with a join token"
                ))
            };
            let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| bad(e.to_string()))?;
            let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| bad(e.to_string()))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| bad(e.to_string()))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_host_that_is_checked_is_the_host_that_is_dialled() {
        assert_eq!(host_of("ca.mesh:15012").unwrap(), "ca.mesh");
        assert_eq!(host_of("10.0.0.1:1").unwrap(), "10.0.0.1");
        assert_eq!(host_of("[fd00::1]:15012").unwrap(), "fd00::1");
        for bad in ["ca.mesh", "ca.mesh:", "ca.mesh:0", "ca.mesh:99999", ":15012", "fd00::1:15012", "[fd00::1:15012"] {
            assert!(host_of(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
