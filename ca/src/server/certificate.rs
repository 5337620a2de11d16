//! The server's own certificate: made at start, kept in memory alone, replaced at half its life.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use time::OffsetDateTime;

use super::ServeError;
use crate::{
    authority::{Algorithm, Authority, AuthorityError, DEFAULT_TTL, SecretKey, rfc3339},
    health::WARN_SHARE,
    issue,
    store::Store,
};

/// How often the clock is looked at. Short, so that a machine that slept renews soon after it woke.
const CHECK: Duration = Duration::from_secs(30);

struct Current {
    key: Arc<CertifiedKey>,
    renew_at: OffsetDateTime,
}

/// The certificate in use.
pub struct ServerCertificate(RwLock<Current>);

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerCertificate")
    }
}

impl ServerCertificate {
    /// Issues the first one.
    pub async fn issue(authority: &Arc<Authority>, store: &Store) -> Result<Arc<Self>, ServeError> {
        Ok(Arc::new(Self(RwLock::new(make(authority, store).await?))))
    }

    /// The certificate alone.
    pub(super) fn der(&self) -> CertificateDer<'static> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.key.cert.first().cloned().unwrap_or_else(|| Vec::new().into())
    }

    fn renew_at(&self) -> OffsetDateTime {
        self.0.read().unwrap_or_else(PoisonError::into_inner).renew_at
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).key))
    }
}

async fn make(authority: &Arc<Authority>, store: &Store) -> Result<Current, ServeError> {
    let now = OffsetDateTime::now_utc();
    let key = SecretKey::generate(Algorithm::P256).map_err(AuthorityError::from)?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8().to_vec()));
    let signer = Arc::clone(authority);
    let issued = store.transaction(move |tx| issue::for_server(tx, &signer, &key, DEFAULT_TTL, now)).await??;
    let certificate = issued.certificate;
    let key = aws_lc_rs::sign::any_supported_type(&der).map_err(|e| ServeError::Tls(e.to_string()))?;
    let chain = vec![certificate.der, authority.intermediate().clone()];
    tracing::info!(serial = certificate.serial, not_after = rfc3339(certificate.not_after), "own certificate issued");
    let renew_at = now + (certificate.not_after - now) / 2;
    Ok(Current { key: Arc::new(CertifiedKey::new(chain, key)), renew_at })
}

/// Renews the certificate at half its life, for ever. A failure is logged and tried again at the next look.
pub(super) async fn keep_fresh(own: Arc<ServerCertificate>, authority: Arc<Authority>, store: Store) {
    let mut warned = false;
    loop {
        let now = OffsetDateTime::now_utc();
        if !warned && authority.lifetime_left(now) < WARN_SHARE {
            warned = true;
            tracing::warn!(
                expires = rfc3339(authority.expires_at()),
                "less than a fifth of the intermediate's life is left; run \"outrigger-ca rotate prepare\" and \"outrigger-ca rotate activate\", and restart this server"
            );
        }
        if now >= own.renew_at() {
            match make(&authority, &store).await {
                Ok(next) => *own.0.write().unwrap_or_else(PoisonError::into_inner) = next,
                Err(error) => tracing::error!(%error, "own certificate not renewed; trying again in {CHECK:?}"),
            }
        }
        tokio::time::sleep(CHECK).await;
    }
}

/// TLS 1.3; a client certificate is optional, and one that is shown must lead to our root. No resumption: a resumed
/// session would skip that check.
pub(super) fn tls_config(authority: &Authority, own: Arc<ServerCertificate>) -> Result<Arc<ServerConfig>, ServeError> {
    let broken = |e: &dyn std::fmt::Display| ServeError::Tls(e.to_string());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.root().clone()).map_err(|e| broken(&e))?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|e| broken(&e))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| broken(&e))?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(own);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
