//! Takes the certificates of a folder into the database: those that `init` made, and those of a CA from before the
//! database kept them.

use std::path::Path;

use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{AuthorityError, Settings, files, members::fingerprint};
use crate::store::{AuthorityKind, AuthorityRow, AuthorityState, Database, StoreError};

/// Records what the folder's first files hold, unless it is recorded already.
pub(super) fn run(
    database: &mut Database,
    dir: &Path,
    settings: &Settings,
    now: OffsetDateTime,
) -> Result<(), AuthorityError> {
    let file = |name: &str| dir.join(format!("{name}.pem"));
    let signing = file(settings.intermediate.as_deref().unwrap_or("intermediate"));
    let known = database.snapshot(|tx| tx.list_authorities())?;
    let is_known = |der: &[u8]| known.iter().any(|row| row.certificate == der);
    if !known.is_empty() && !signing.exists() {
        // The files of the first intermediate went when it was over.
        return Ok(());
    }
    let current = super::read_certificate(&signing)?;
    if is_known(&current.der) {
        return Ok(());
    }
    let root_path = dir.join(super::ROOT_CERT);
    let root = super::read_certificate(&root_path)?;
    let mut found = vec![(current.der.to_vec(), signing, AuthorityState::Active)];
    if let Some(name) = &settings.prepared {
        found.push((super::read_certificate(&file(name))?.der.to_vec(), file(name), AuthorityState::Prepared));
    }
    let (_, parsed) = X509Certificate::from_der(&root.der).map_err(|e| files::damaged(&root_path, e.to_string()))?;
    for (der, path, _) in &found {
        let (_, intermediate) = X509Certificate::from_der(der).map_err(|e| files::damaged(path, e.to_string()))?;
        if intermediate.verify_signature(Some(parsed.public_key())).is_err() {
            return Err(files::damaged(path, format!("{} has not signed it", root_path.display())));
        }
    }
    let root_id = fingerprint(&root.der);
    database.transaction(|tx| {
        let row = |der: &[u8], kind, state, issuer| AuthorityRow {
            fingerprint: fingerprint(der),
            kind,
            state,
            issuer,
            certificate: der.to_vec(),
            created_at: now,
            changed_at: now,
        };
        match tx.authority_state(&root_id)? {
            Some(AuthorityState::Active) => {}
            // Another folder's: a replica must be under a root that the others have.
            Some(state) => {
                return Err(files::damaged(&root_path, format!("the database has this root as {}", state.as_str())));
            }
            None if tx.list_authorities()?.is_empty() => {
                tx.insert_authority(&row(&root.der, AuthorityKind::Root, AuthorityState::Active, None))?;
            }
            None => return Err(files::damaged(&root_path, "it is no root of the database beside it".into())),
        }
        for (der, _, state) in &found {
            // Somebody else may have been faster.
            if tx.authority_state(&fingerprint(der))?.is_none() {
                tx.insert_authority(&row(der, AuthorityKind::Intermediate, *state, Some(root_id.clone())))?;
            }
        }
        Ok::<(), AuthorityError>(())
    })
}

impl From<StoreError> for AuthorityError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}
