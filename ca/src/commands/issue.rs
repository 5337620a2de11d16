use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt, path::Path, time::Duration};

use outrigger_ca::{
    admin::{AdminSocket, CertificateWish},
    authority::{
        Algorithm, Authority, AuthorityError, Password, RequestedKey, SecretKey, rfc3339, write_public, write_secret,
    },
    issue,
    store::Database,
};
use outrigger_identity::csr::new_key_and_csr;
use serde_json::json;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{Ca, Failure, Kind, Outcome, Output};

pub(crate) struct Issue<'a> {
    pub(crate) id: &'a str,
    pub(crate) dns: &'a [String],
    pub(crate) ttl: Duration,
    pub(crate) out: &'a Path,
    pub(crate) force: bool,
    pub(crate) password: Option<&'a Password>,
}

pub(crate) fn issue(ca: &Ca, wish: &Issue<'_>, output: Output) -> Outcome {
    let (id, out) = (wish.id, wish.out);
    let maker = match ca {
        Ca::Folder(dir) => {
            let authority = Authority::open(dir, wish.password)?;
            authority.subject(id, wish.dns)?;
            Maker::Own(Box::new(authority))
        }
        Ca::Running(socket) => Maker::Running(socket),
    };
    DirBuilder::new().recursive(true).mode(0o755).create(out).map_err(|e| {
        let message = format!(
            "cannot create {}: {e}; check that its parent exists and that this user may write there",
            out.display()
        );
        Failure::new(Kind::Failed, "file", message)
    })?;
    let [key_path, bundle_path, cert_path] = ["key.pem", "bundle.pem", "cert.pem"].map(|name| out.join(name));
    for path in [&key_path, &bundle_path, &cert_path] {
        super::refuse_to_overwrite(path, wish.force)?;
    }
    let made = maker.make(wish)?;
    // The certificate last: whoever watches it finds its key and bundle in place.
    write_public(&bundle_path, &made.bundle)?;
    write_secret(&key_path, &made.key)?;
    write_public(&cert_path, &made.chain)?;
    let line = format!("issued {id} into {}, serial {}, until {}", out.display(), made.serial, made.not_after);
    let value = json!({
        "id": id,
        "dns": wish.dns,
        "serial": made.serial,
        "not_after": made.not_after,
        "certificate": cert_path,
        "key": key_path,
        "bundle": bundle_path,
    });
    output.result(&[line], &value)
}

/// Who signs.
enum Maker<'a> {
    Own(Box<Authority>),
    Running(&'a AdminSocket),
}

/// A certificate and its key, as they go into files.
struct Made {
    key: Zeroizing<String>,
    chain: String,
    bundle: String,
    serial: String,
    not_after: String,
}

impl Maker<'_> {
    /// Makes a key here, and has it certified.
    fn make(&self, wish: &Issue<'_>) -> Result<Made, Failure> {
        match self {
            Self::Own(authority) => {
                let key = SecretKey::generate(Algorithm::P256).map_err(AuthorityError::from)?;
                let public_key = RequestedKey::of(&key)?;
                let subject = authority.subject(wish.id, wish.dns)?;
                let mut database = Database::of(authority)?;
                let now = OffsetDateTime::now_utc();
                let issued = database
                    .transaction(|tx| issue::for_operator(tx, authority, &subject, &public_key, wish.ttl, now, None))?
                    .certificate;
                Ok(Made {
                    key: key.to_pem(),
                    chain: format!("{}{}", issued.pem, authority.intermediate_pem()),
                    bundle: authority.bundle_pem().to_owned(),
                    serial: issued.serial,
                    not_after: rfc3339(issued.not_after),
                })
            }
            Self::Running(socket) => {
                let (key, csr) = new_key_and_csr(None)
                    .map_err(|e| Failure::new(Kind::Failed, "signing", format!("cannot make a key: {e}")))?;
                let (id, dns) = (wish.id.to_owned(), wish.dns.to_vec());
                let made = socket.issue(&CertificateWish {
                    csr: csr.as_str().to_owned(),
                    id,
                    dns,
                    ttl_seconds: wish.ttl.as_secs(),
                })?;
                Ok(Made {
                    key: Zeroizing::new(key.as_str().to_owned()),
                    chain: made.chain,
                    bundle: made.bundle,
                    serial: made.serial,
                    not_after: made.not_after,
                })
            }
        }
    }
}
