//! TLS to a PostgreSQL server, as `sslmode`, `sslrootcert`, `sslcert` and `sslkey` say.

use std::{path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::store::{
    StoreError,
    location::{ServerProof, TlsFiles},
};

fn bad(what: &str, path: &Path, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Tls(format!("{what} {} cannot be used: {why}", path.display()))
}

fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| bad(what, path, &e))?;
    if all.is_empty() {
        return Err(bad(what, path, &"it holds no certificate"));
    }
    Ok(all)
}

fn roots(files: &TlsFiles) -> Result<RootCertStore, StoreError> {
    let mut roots = RootCertStore::empty();
    match &files.roots {
        Some(path) => {
            for certificate in certificates("sslrootcert", path)? {
                roots.add(certificate).map_err(|e| bad("sslrootcert", path, &e))?;
            }
        }
        None => {
            // A broken file among the system's is not ours to judge; none at all is.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(StoreError::Tls(
                    "this system has no trusted roots; name the server's with sslrootcert=FILE".into(),
                ));
            }
        }
    }
    Ok(roots)
}

/// What the client asks for and shows. Not called for [`ServerProof::None`]'s connections, which have no TLS.
pub(super) fn connector(proof: ServerProof, files: &TlsFiles) -> Result<MakeRustlsConnect, StoreError> {
    let defect = |e: &dyn std::fmt::Display| StoreError::Tls(format!("{e}; this is a defect, please report it"));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| defect(&e))?;
    let roots = match proof {
        ServerProof::None => RootCertStore::empty(),
        ServerProof::Ca | ServerProof::Full => roots(files)?,
    };
    let builder = match proof {
        ServerProof::None | ServerProof::Full => builder.with_root_certificates(roots),
        ServerProof::Ca => {
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|e| defect(&e))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyName(inner)))
        }
    };
    let config = match &files.own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("sslcert", certificate)?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|e| bad("sslkey", key, &e))?;
            builder.with_client_auth_cert(chain, private).map_err(|e| bad("sslkey", key, &e))?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

/// `verify-ca`: everything is checked but the name.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The name is what the inner verifier looks at last, when everything else is right.
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
