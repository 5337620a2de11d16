//! A new intermediate under the same root, in two steps: prepared while the old one signs, then activated in one stroke.
//!
//! Verifiers hold the root alone, so they notice nothing: every leaf travels with the intermediate that signed it. Which
//! pair of files is in use stands in the settings, so the change is the replacement of one file, and a crash leaves the
//! old pair or the new one. Nothing is deleted.

use std::{path::Path, time::Duration};

use rcgen::{Issuer, PublicKeyData as _};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    Algorithm, Authority, AuthorityError, Directory, Password, SETTINGS, SecretKey, Settings, files, hex, profile,
    rfc3339, sealed,
};

impl Directory {
    /// Makes the next intermediate and its key; the current one goes on signing. `root_key` is the file of the root's
    /// key. The new key is encrypted if there is a password, which must open the current key too. The lifetime ends with
    /// the root's at the latest. Gives back the new one's `notAfter`.
    pub fn prepare_intermediate(
        self,
        root_key: &Path,
        algorithm: Algorithm,
        ttl: Duration,
        password: Option<&Password>,
        now: OffsetDateTime,
    ) -> Result<OffsetDateTime, AuthorityError> {
        if let Some(name) = &self.settings.prepared {
            return Err(AuthorityError::AlreadyPrepared { name: name.clone() });
        }
        // With the wrong password the new key would be one that nobody can open; without one, less safe than the old.
        let authority = self.unlock(password)?;
        let root = &authority.root.der;
        let path = authority.dir.join(super::ROOT_CERT);
        let (_, parsed) = X509Certificate::from_der(root).map_err(|e| files::damaged(&path, e.to_string()))?;
        let root_not_after = parsed.validity().not_after.to_datetime();
        if now >= root_not_after {
            return Err(AuthorityError::RootExpired { at: rfc3339(root_not_after) });
        }
        let signer = sealed::open(root_key, password)?;
        if signer.subject_public_key_info() != parsed.public_key().raw {
            return Err(files::damaged(root_key, format!("it is not the key of {}", path.display())));
        }
        let window = profile::Window::new(now, ttl)?;
        let window = profile::Window { not_after: window.not_after.min(root_not_after), ..window };
        let key = SecretKey::generate(algorithm)?;
        let issuer = Issuer::from_ca_cert_der(root, signer)?;
        let certificate = profile::intermediate(authority.trust_domain(), &window)?.signed_by(&key, &issuer)?;

        let name = format!("intermediate-{}", hex(&window.serial[..8]));
        let write = |e: files::OutputError| AuthorityError::File { action: "write", path: e.path, source: e.source };
        let [certificate_path, key_path] = [".pem", "-key.pem"].map(|end| authority.dir.join(format!("{name}{end}")));
        files::write_new_secret(&key_path, &sealed::seal(&key, password)?).map_err(write)?;
        files::write_public(&certificate_path, &certificate.pem()).map_err(write)?;
        authority.save(Settings { prepared: Some(name), ..authority.settings.clone() })?;
        Ok(window.not_after)
    }

    /// Lets the prepared intermediate sign from now on. A server that runs does so from its next start.
    pub fn activate_intermediate(
        &self,
        password: Option<&Password>,
        now: OffsetDateTime,
    ) -> Result<Authority, AuthorityError> {
        let Some(name) = self.settings.prepared.clone() else { return Err(AuthorityError::NothingPrepared) };
        let settings = Settings { intermediate: Some(name), prepared: None, ..self.settings.clone() };
        // What cannot be used must not come into use.
        let next = Self::with_settings(&self.dir, settings.clone())?.unlock(password)?;
        if now >= next.expires_at() {
            return Err(AuthorityError::IssuerExpired { at: rfc3339(next.expires_at()) });
        }
        self.save(settings)?;
        Ok(next)
    }

    /// The prepared intermediate's `notAfter`, if one is prepared.
    pub fn prepared_until(&self) -> Result<Option<OffsetDateTime>, AuthorityError> {
        let Some(name) = self.settings.prepared.clone() else { return Ok(None) };
        let settings = Settings { intermediate: Some(name), prepared: None, ..self.settings.clone() };
        Ok(Some(Self::with_settings(&self.dir, settings)?.expires_at()))
    }

    fn save(&self, settings: Settings) -> Result<(), AuthorityError> {
        let path = self.dir.join(SETTINGS);
        let text = serde_json::to_string_pretty(&settings).map_err(|e| files::damaged(&path, e.to_string()))?;
        files::write_public(&path, &text).map_err(|e| AuthorityError::File {
            action: "write",
            path: e.path,
            source: e.source,
        })
    }
}
