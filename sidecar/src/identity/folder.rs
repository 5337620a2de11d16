//! The folder under the task's eyes: which of its changes are taken up.

use std::{sync::Arc, time::SystemTime};

use super::{
    Identity, IdentityError, NotValidNow,
    files::{self, Loaded, Material},
    rfc3339,
    source::{Fingerprints, Source, TICK},
};

impl Source {
    pub(super) fn look_at_files(&mut self, now: SystemTime) {
        let still = !self.look();
        if still && !self.young && self.look_again_at.is_none_or(|at| now < at) {
            if let Some(error) = self.unsettled.take() {
                self.complain(&error);
            }
            return;
        }
        if self.current.as_ref().is_some_and(|(_, known)| files::holds(&self.dir, known)) {
            self.unsettled = None;
            self.shared.notes().file_error = None;
            return;
        }
        match files::load_placed(&self.dir, self.trust_domain.as_ref()) {
            Ok(loaded) => self.reloaded(loaded, now),
            Err(IdentityError::Missing(_)) if self.enroller.is_some() && self.current.is_none() => {}
            Err(error) => {
                if self.enroller.is_some() {
                    // The certificate may live in memory only (a read-only folder); the roots are the operator's all the same.
                    self.reload_bundle();
                }
                if still && self.unsettled.take().is_some() {
                    self.complain(&error);
                } else {
                    self.unsettled = Some(error);
                }
            }
        }
    }

    /// Takes the files' fingerprints, before they are read: what changes meanwhile is seen at the next tick. Returns whether
    /// they changed.
    pub(super) fn look(&mut self) -> bool {
        let seen = self.fingerprints();
        let changed = seen != self.seen;
        self.seen = seen;
        // Time stamps advance in steps of some milliseconds, on network file systems of a second.
        self.young = seen.iter().flatten().any(|f| f.is_younger_than(2 * TICK));
        changed
    }

    fn reloaded(&mut self, loaded: Loaded, now: SystemTime) {
        let Loaded { identity, material, warnings } = loaded;
        // With a CA our own renewal may be newer than what lies in a folder that we cannot write.
        let older = self.enroller.is_some()
            && self.current.as_ref().is_some_and(|(known, _)| {
                known.check_valid(now).is_ok()
                    && known.key.cert != identity.key.cert
                    && (identity.not_after <= known.not_after || identity.check_valid(now).is_err())
            });
        if older {
            self.passed_over(&identity);
            return self.reload_bundle();
        }
        if let Some(error) = self.out_of_date(&identity, now) {
            self.reload_bundle();
            return self.complain(&error);
        }
        let same_certificate = self.current.as_ref().is_some_and(|(known, _)| known.key.cert == identity.key.cert);
        tracing::info!(id = %identity.id, serial = %identity.serial, dir = %self.dir.display(), "identity files changed, loaded");
        self.adopt(identity, material, warnings);
        self.read_again();
        if !same_certificate {
            self.shared.notes().ca_error = None;
            self.plan(false, now);
        }
    }

    /// Why the pair in the folder is no good at the moment, where the one in use is; it is looked at again when it may be.
    fn out_of_date(&mut self, identity: &Identity, now: SystemTime) -> Option<IdentityError> {
        self.look_again_at = None;
        let in_use = self
            .current
            .as_ref()
            .is_some_and(|(known, _)| known.key.cert != identity.key.cert && known.check_valid(now).is_ok());
        let why = match identity.check_valid(now).err().filter(|_| in_use)? {
            NotValidNow::Expired { .. } => format!("expired at {}", rfc3339(identity.not_after)),
            NotValidNow::NotYet { .. } => {
                self.look_again_at = Some(identity.not_before);
                format!("is not valid before {}", rfc3339(identity.not_before))
            }
        };
        Some(IdentityError::Content {
            path: self.dir.join("cert.pem"),
            why: format!("(serial {}) {why}; put one there that is valid now", identity.serial),
        })
    }

    /// Says once of a certificate that the one in use is better.
    fn passed_over(&mut self, identity: &Identity) {
        let in_use = self.current.as_ref().map(|(known, _)| known.serial.clone()).unwrap_or_default();
        if self.passed_over.as_ref() != Some(&identity.serial) {
            tracing::warn!(
                serial = %identity.serial, %in_use, dir = %self.dir.display(),
                "the certificate in the folder ends before the one in use, or is not valid now: it is not taken; remove identity.ca \
                 where it is to be used all the same"
            );
            self.passed_over = Some(identity.serial.clone());
        }
    }

    fn reload_bundle(&mut self) {
        let Some((identity, material)) = self.current.clone() else { return };
        let Ok((bundle, pem)) = files::read_bundle(&self.dir) else { return };
        if bundle.same_as(&identity.bundle) {
            return;
        }
        tracing::info!(roots = ?bundle, dir = %self.dir.display(), "bundle changed, loaded");
        let identity = Identity { bundle: Arc::new(bundle), ..identity };
        self.adopt(identity, Material { bundle_pem: pem, ..material }, Vec::new());
        self.read_again();
    }

    fn fingerprints(&self) -> Fingerprints {
        ["cert.pem", "key.pem", "bundle.pem"].map(|name| files::fingerprint(&self.dir.join(name)))
    }
}
