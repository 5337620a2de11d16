//! Roots that somebody else made: read from a file, looked at, and taken into the bundle.
//!
//! Only roots of this trust domain: the bundles of two trust domains are never one (SPIFFE Trust Domain and Bundle
//! section 3), or either could speak for the other.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{AuthorityError, Directory, Member, Members, fingerprint, rfc3339};
use crate::{
    inspect,
    store::{AuthorityKind, AuthorityRow, AuthorityState, Database, Transaction},
};

/// What became of the bundle.
#[derive(Debug, Default)]
pub struct SetOutcome {
    /// Fingerprints of roots that are in it from now on.
    pub added: Vec<String>,
    /// Those that left it.
    pub removed: Vec<String>,
    /// How many it has.
    pub roots: usize,
}

impl Directory {
    /// Adds the roots of a file, PEM or a SPIFFE bundle document, to the bundle. They sign nothing: that takes an
    /// intermediate, made with their key. With `replace` the prepared roots that are not in the file leave the bundle;
    /// roots that were ever used leave it by `rotate taint` and `rotate revoke` alone.
    pub fn set_bundle(
        &self,
        database: &mut Database,
        file: &Path,
        replace: bool,
        now: OffsetDateTime,
    ) -> Result<SetOutcome, AuthorityError> {
        let bad = |why: String| AuthorityError::Bundle { path: file.display().to_string(), why };
        let found = read(file)?;
        for (at, der) in found.iter().enumerate() {
            self.acceptable(der, now).map_err(|why| bad(format!("its certificate {} {why}", at + 1)))?;
        }
        let wanted: Vec<String> = found.iter().map(|der| fingerprint(der)).collect();
        database.transaction(|tx| {
            let members = Members::load(tx)?;
            let mut outcome = SetOutcome::default();
            if replace {
                for root in members.roots().filter(|root| !wanted.contains(&root.row.fingerprint)) {
                    self.leave(tx, &members, root, now).map_err(bad)?;
                    outcome.removed.push(root.row.fingerprint.clone());
                }
            }
            for (der, fingerprint) in found.iter().zip(&wanted) {
                match tx.authority_state(fingerprint)? {
                    None => {}
                    Some(AuthorityState::Revoked) => {
                        return Err(bad(format!(
                            "the root {} was revoked and does not come back; make another",
                            &fingerprint[..16]
                        )));
                    }
                    Some(_) => continue,
                }
                let row = AuthorityRow {
                    fingerprint: fingerprint.clone(),
                    kind: AuthorityKind::Root,
                    state: AuthorityState::Prepared,
                    issuer: None,
                    certificate: der.to_vec(),
                    created_at: now,
                    changed_at: now,
                };
                tx.insert_authority(&row)?;
                outcome.added.push(fingerprint.clone());
            }
            outcome.roots = Members::load(tx)?.roots().count();
            Ok(outcome)
        })
    }

    fn leave(
        &self,
        tx: &mut Transaction<'_>,
        members: &Members,
        root: &Member,
        now: OffsetDateTime,
    ) -> Result<(), String> {
        let name = root.short();
        match root.state() {
            AuthorityState::Prepared => {}
            AuthorityState::Active => {
                return Err(format!(
                    "the root {name} is not in it and is the active one; add it to the file, or let another sign first (\"outrigger-ca rotate prepare --root\")"
                ));
            }
            state => {
                return Err(format!(
                    "the root {name} is not in it and is {}, so certificates may lead to it; add it to the file, or end it with \"outrigger-ca rotate taint {name}\" and \"outrigger-ca rotate revoke {name}\"",
                    state.as_str()
                ));
            }
        }
        let words = |error: crate::store::StoreError| error.to_string();
        let step = (AuthorityState::Prepared, AuthorityState::Revoked);
        tx.move_authority(&root.row.fingerprint, AuthorityKind::Root, step, now).map_err(words)?;
        for under in members.under(&root.row.fingerprint) {
            let step = (under.state(), AuthorityState::Revoked);
            tx.move_authority(&under.row.fingerprint, under.kind(), step, now).map_err(words)?;
        }
        Ok(())
    }

    /// Whether a certificate can be a root of this trust domain; if not, why, and what to do.
    fn acceptable(&self, der: &CertificateDer<'_>, now: OffsetDateTime) -> Result<(), String> {
        let parsed = match X509Certificate::from_der(der) {
            Ok(([], parsed)) => parsed,
            Ok(_) => return Err("is followed by other bytes; give the certificate alone".into()),
            Err(error) => return Err(format!("cannot be read ({error}); give another")),
        };
        if !matches!(parsed.basic_constraints(), Ok(Some(c)) if c.value.ca) {
            return Err("is not a CA's (basicConstraints without cA); give a root, not a workload's certificate".into());
        }
        if !matches!(parsed.key_usage(), Ok(Some(usage)) if usage.value.key_cert_sign()) {
            return Err("may not sign certificates (keyUsage without keyCertSign); give a root that may".into());
        }
        if parsed.subject().as_raw() != parsed.issuer().as_raw() || parsed.verify_signature(None).is_err() {
            return Err("is not signed by itself; give the root, not an intermediate".into());
        }
        let end = parsed.validity().not_after.to_datetime();
        if now >= end {
            return Err(format!("expired at {}; give one that is good", rfc3339(end)));
        }
        let names = parsed.subject_alternative_name().map_err(|_| "has names that cannot be read; give another")?;
        let own = format!("spiffe://{}", self.trust_domain());
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            if let GeneralName::URI(uri) = name
                && *uri != own
            {
                return Err(format!(
                    "names \"{uri}\", and this CA speaks for {own}: bundles of two trust domains are never one; give a root of {own}",
                ));
            }
        }
        Ok(())
    }
}

/// The certificates of a PEM file, or those with the use `x509-svid` of a SPIFFE bundle document.
fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let bad = |why: String| AuthorityError::Bundle { path: path.display().to_string(), why };
    let bytes = inspect::read_file(path).map_err(|e| bad(e.to_string()))?;
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
        return inspect::certificates_in(path, bytes).map_err(|e| bad(e.to_string()));
    }
    let document: Value = serde_json::from_slice(&bytes).map_err(|e| bad(format!("it is no JSON: {e}")))?;
    let keys = document.get("keys").and_then(Value::as_array);
    let keys = keys.ok_or_else(|| bad("it is no SPIFFE bundle document: it has no \"keys\"".into()))?;
    let mut found = Vec::new();
    for (at, key) in keys.iter().enumerate() {
        if key.get("use").and_then(Value::as_str) != Some("x509-svid") {
            continue;
        }
        let chain = key.get("x5c").and_then(Value::as_array).map(Vec::as_slice);
        let [Value::String(text)] = chain.unwrap_or_default() else {
            return Err(bad(format!("its key {} has not exactly one certificate in \"x5c\"", at + 1)));
        };
        let der =
            STANDARD.decode(text).map_err(|e| bad(format!("the \"x5c\" of its key {} is no base64: {e}", at + 1)))?;
        found.push(CertificateDer::from(der));
    }
    if found.is_empty() {
        return Err(bad("it has no key with the use \"x509-svid\"".into()));
    }
    Ok(found)
}
