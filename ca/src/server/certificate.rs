//! The server's own certificate: made at start, kept in memory alone, replaced at half its life.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use time::OffsetDateTime;
use tokio::time::timeout;

use super::{Live, ServeError, callers::Callers};
use crate::{
    authority::{Algorithm, Authority, AuthorityError, DEFAULT_TTL, SecretKey, rfc3339},
    issue,
    store::{Store, Transaction},
};

/// How often the clock is looked at. Short, so that a machine that slept renews soon after it woke.
const CHECK: Duration = Duration::from_secs(30);

struct Current {
    key: Arc<CertifiedKey>,
    renew_at: OffsetDateTime,
    serial: String,
    /// The fingerprint of the intermediate that signed it.
    issuer: String,
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
    pub async fn issue(live: &Live, store: &Store) -> Result<Arc<Self>, ServeError> {
        Ok(Arc::new(Self(RwLock::new(make(live, store).await?))))
    }

    /// The certificate alone.
    pub(super) fn der(&self) -> CertificateDer<'static> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.key.cert.first().cloned().unwrap_or_else(|| Vec::new().into())
    }

    fn renew_at(&self) -> OffsetDateTime {
        self.0.read().unwrap_or_else(PoisonError::into_inner).renew_at
    }

    /// Its serial and the fingerprint of its issuer.
    fn names(&self) -> (String, String) {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (current.serial.clone(), current.issuer.clone())
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).key))
    }
}

async fn make(live: &Live, store: &Store) -> Result<Current, ServeError> {
    let now = OffsetDateTime::now_utc();
    let key = Arc::new(SecretKey::generate(Algorithm::P256).map_err(AuthorityError::from)?);
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8().to_vec()));
    let issue =
        move |tx: &mut Transaction<'_>, authority: &Authority| issue::for_server(tx, authority, &key, DEFAULT_TTL, now);
    let (issued, authority) = live.issue(store, issue).await??;
    let certificate = issued.certificate;
    let key = aws_lc_rs::sign::any_supported_type(&der).map_err(|e| ServeError::Tls(e.to_string()))?;
    let chain = vec![certificate.der, authority.intermediate().clone()];
    tracing::info!(serial = certificate.serial, not_after = rfc3339(certificate.not_after), "own certificate issued");
    let renew_at = now + (certificate.not_after - now) / 2;
    let (serial, issuer) = (certificate.serial, authority.active().row.fingerprint.clone());
    Ok(Current { key: Arc::new(CertifiedKey::new(chain, key)), renew_at, serial, issuer })
}

/// Makes another at half its life, when another intermediate signs and when this one was revoked, for ever. A failure is
/// logged and tried again at the next look.
pub(super) async fn keep_fresh(own: Arc<ServerCertificate>, live: Arc<Live>, store: Store) {
    let mut changes = live.changes();
    loop {
        if is_over(&own, &live, &store).await {
            match make(&live, &store).await {
                Ok(next) => *own.0.write().unwrap_or_else(PoisonError::into_inner) = next,
                Err(error) => tracing::error!(%error, "own certificate not renewed; trying again in {CHECK:?}"),
            }
        }
        // A machine that slept finds the clock far on.
        let _ = timeout(CHECK, changes.changed()).await;
    }
}

async fn is_over(own: &ServerCertificate, live: &Live, store: &Store) -> bool {
    let (serial, issuer) = own.names();
    if OffsetDateTime::now_utc() >= own.renew_at() || issuer != live.get().active().row.fingerprint {
        return true;
    }
    let revoked = store.transaction(move |tx| tx.revoked_at(&serial)).await;
    matches!(revoked, Ok(Ok(Some(_))))
}

/// TLS 1.3; a client certificate is optional, and one that is shown must lead to a root of the bundle. No resumption: a
/// resumed session would skip that check.
pub(super) fn tls_config(callers: Arc<Callers>, own: Arc<ServerCertificate>) -> Result<Arc<ServerConfig>, ServeError> {
    let broken = |e: &dyn std::fmt::Display| ServeError::Tls(e.to_string());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| broken(&e))?
        .with_client_cert_verifier(callers)
        .with_cert_resolver(own);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
