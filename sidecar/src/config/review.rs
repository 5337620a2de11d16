//! What a right configuration would still stumble over on this host, for `check`.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{FileTypeExt as _, PermissionsExt},
    path::Path,
};

use outrigger_identity::workload_api::Endpoint;

use super::Config;
use crate::route::Routes;

impl Config {
    /// The configuration in one line.
    pub fn summary(&self) -> String {
        let certificate = match (&self.identity.ca, &self.identity.workload_api) {
            (Some(ca), _) => format!("certificate from {}", ca.address),
            (None, Some(endpoint)) => format!("certificate from {endpoint}"),
            (None, None) => format!("certificate from {}", self.identity.dir.display()),
        };
        let mode = match self.inbound.mode {
            super::InboundMode::Strict => "strict",
            super::InboundMode::Permissive => "permissive",
        };
        let domains: Vec<&str> = self.outbound.mesh_domains.iter().map(super::Host::as_str).collect();
        format!(
            "inbound {mode} on {}, outbound on {}, mesh domains [{}], services {}, routes {}, {certificate}",
            self.inbound.port,
            self.outbound.port,
            domains.join(", "),
            self.services.len(),
            self.routes.len(),
        )
    }

    /// Files that are missing on this host, and settings that are right but dangerous; each a sentence with what to
    /// do about it. Looks at the file system, but reads no key.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        match &self.identity.workload_api {
            Some(endpoint) => warnings.extend(socket_warning(endpoint)),
            None => self.file_warnings(&mut warnings),
        }
        if !self.admin.address.ip().is_loopback() {
            warnings.push(format!(
                "admin.address {} is not loopback: whoever reaches it can read this configuration and stop the sidecar; \
                 use 127.0.0.1",
                self.admin.address
            ));
        }
        self.route_warnings(&mut warnings);
        warnings
    }

    fn file_warnings(&self, warnings: &mut Vec<String>) {
        let dir = &self.identity.dir;
        let files = ["cert.pem", "key.pem", "bundle.pem"].map(|name| dir.join(name));
        let missing: Vec<_> =
            files.iter().filter_map(|file| Some(format!("{}: {}", file.display(), unreadable(file)?))).collect();
        match &self.identity.ca {
            None => warnings.extend(missing.into_iter().map(|file| {
                format!("{file}; without identity.ca the files must be there: put them there, or set identity.ca")
            })),
            Some(ca) => {
                if let Some(why) = unreadable(&ca.bundle) {
                    warnings.push(format!(
                        "identity.ca.bundle {}: {why}; write it with \"outrigger-ca bundle show\"",
                        ca.bundle.display()
                    ));
                }
                // With a certificate in place no token is needed.
                if !missing.is_empty() {
                    warnings.extend(token_warning(ca.token_file.as_deref()));
                }
            }
        }
        if let Ok(key) = fs::metadata(&files[1]).map(|m| m.permissions().mode() & 0o777)
            && key & 0o077 != 0
        {
            warnings.push(format!("{}: mode {key:04o} lets others read the key; use chmod 0600", files[1].display()));
        }
    }

    /// What of the routes no request can ever take, and what no request can survive.
    fn route_warnings(&self, warnings: &mut Vec<String>) {
        if let Ok(routes) = Routes::compile(self) {
            warnings
                .extend(routes.unreachable().into_iter().map(|w| format!("{w}; remove it, or make it more specific")));
        }
        for (i, route) in self.routes.iter().enumerate() {
            for (r, rule) in route.rules.iter().enumerate() {
                if rule.backend_refs.as_ref().is_some_and(|refs| refs.iter().all(|b| b.weight == 0)) {
                    warnings.push(format!(
                        "routes[{i}].rules[{r}].backendRefs: every weight is 0, so its requests are answered 500; \
                         give one of them a weight"
                    ));
                }
            }
        }
    }
}

fn socket_warning(endpoint: &Endpoint) -> Option<String> {
    let Endpoint::Unix(path) = endpoint else { return None };
    let why = match fs::metadata(path) {
        Ok(facts) if facts.file_type().is_socket() => return None,
        Ok(_) => "it is no socket".to_owned(),
        Err(error) => error.to_string(),
    };
    Some(format!("identity.workload_api {}: {why}; start the agent, or mount its socket here", path.display()))
}

fn token_warning(file: Option<&Path>) -> Option<String> {
    let Some(file) = file else {
        return Some(
            "identity.ca.token_file is not set and identity.dir holds no certificate: the first one cannot be asked for; \
             set it to a file with a token from \"outrigger-ca token create\""
                .to_owned(),
        );
    };
    let why = match fs::read_to_string(file) {
        Ok(token) if token.trim().is_empty() => "it is empty".to_owned(),
        Ok(_) => return None,
        Err(_) => unreadable(file).unwrap_or_else(|| "it cannot be read".to_owned()),
    };
    Some(format!("identity.ca.token_file {}: {why}; make one with \"outrigger-ca token create\"", file.display()))
}

/// Why `file` cannot be read, if it cannot.
fn unreadable(file: &Path) -> Option<String> {
    match fs::File::open(file).and_then(|f| f.metadata()) {
        Ok(meta) if meta.is_file() => None,
        Ok(_) => Some("it is not a file".to_owned()),
        Err(e) if e.kind() == ErrorKind::NotFound => Some("it does not exist".to_owned()),
        Err(e) => Some(format!("it cannot be read ({e})")),
    }
}
