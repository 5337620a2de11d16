use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt, path::Path, time::Duration};

use outrigger_ca::{
    authority::{
        Algorithm, Authority, AuthorityError, Password, RequestedKey, SecretKey, rfc3339, write_public, write_secret,
    },
    issue,
    store::Database,
};
use serde_json::json;
use time::OffsetDateTime;

use super::{Failure, Kind, Outcome, Output};

pub(crate) struct Issue<'a> {
    pub(crate) id: &'a str,
    pub(crate) dns: &'a [String],
    pub(crate) ttl: Duration,
    pub(crate) out: &'a Path,
    pub(crate) force: bool,
    pub(crate) password: Option<&'a Password>,
}

pub(crate) fn issue(dir: &Path, wish: &Issue<'_>, output: Output) -> Outcome {
    let (id, out) = (wish.id, wish.out);
    let authority = Authority::open(dir, wish.password)?;
    let subject = authority.subject(id, wish.dns)?;
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
    let key = SecretKey::generate(Algorithm::P256).map_err(AuthorityError::from)?;
    let public_key = RequestedKey::of(&key)?;
    let mut database = Database::of(&authority)?;
    let now = OffsetDateTime::now_utc();
    let issued =
        database.transaction(|tx| issue::for_operator(tx, &authority, &subject, &public_key, wish.ttl, now))?;
    let certificate = issued.certificate;
    // The certificate last: whoever watches it finds its key and bundle in place.
    write_public(&bundle_path, authority.bundle_pem())?;
    write_secret(&key_path, &key.to_pem())?;
    write_public(&cert_path, &format!("{}{}", certificate.pem, authority.intermediate_pem()))?;
    let until = rfc3339(certificate.not_after);
    let line = format!("issued {id} into {}, serial {}, until {until}", out.display(), certificate.serial);
    let value = json!({
        "id": id,
        "dns": wish.dns,
        "serial": certificate.serial,
        "not_after": until,
        "certificate": cert_path,
        "key": key_path,
        "bundle": bundle_path,
    });
    output.result(&[line], &value)
}
