//! Which database a CA uses, as an operator names it.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use percent_encoding::percent_decode_str;
use postgres::config::{Host, SslMode};

use super::StoreError;

/// The environment variable that names the database of this process, in place of the one in `ca.json`. Its URL may hold
/// a password.
pub const DATABASE_ENV: &str = "OUTRIGGER_CA_DATABASE";

/// libpq's variable for the password, so that it need not stand in a URL.
const PASSWORD_ENV: &str = "PGPASSWORD";

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that says nothing for so long is gone: data that it does not acknowledge, and probes that it does not answer.
const SILENCE: Duration = Duration::from_secs(10);

/// How the server proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerProof {
    /// No TLS: a Unix socket, or `sslmode=disable`.
    None,
    /// `verify-ca`: a certificate that leads to a trusted root.
    Ca,
    /// `verify-full`: and that names the host.
    Full,
}

/// The files that TLS to the server needs.
#[derive(Debug, Clone, Default)]
pub(super) struct TlsFiles {
    /// `sslrootcert`; `None` or `system` is the system's store.
    pub(super) roots: Option<PathBuf>,
    /// `sslcert` and `sslkey`: the client's own.
    pub(super) own: Option<(PathBuf, PathBuf)>,
}

/// A PostgreSQL server and database: `postgres://user@host:port/database?sslmode=verify-full&sslrootcert=FILE`.
///
/// Understood beside what the `postgres` crate knows: `sslmode` (`verify-full`, which is the default for a host,
/// `verify-ca` and `disable`), `sslrootcert`, `sslcert`, `sslkey`. Its text forms never hold the password.
#[derive(Clone)]
pub struct PostgresUrl {
    pub(super) config: Box<postgres::Config>,
    pub(super) proof: ServerProof,
    pub(super) files: TlsFiles,
    text: String,
    has_password: bool,
}

/// A database's URL that cannot be used. The URL itself is not repeated: it may hold a password.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the database's URL cannot be used: {0}")]
pub struct UrlError(String);

impl PostgresUrl {
    /// Whether a password stands in it.
    pub fn has_password(&self) -> bool {
        self.has_password
    }

    /// The URL as it was given.
    pub fn as_given(&self) -> &str {
        &self.text
    }
}

/// Where it is, without the user's password: `database orders at db.mesh:5432`.
impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.config.get_dbname().or(self.config.get_user()).unwrap_or("of the user's name");
        write!(f, "database {name} at ")?;
        let ports = self.config.get_ports();
        let addresses = self.config.get_hostaddrs();
        for (n, host) in self.config.get_hosts().iter().enumerate() {
            let port = ports.get(n).or(ports.first()).unwrap_or(&5432);
            let comma = if n == 0 { "" } else { ", " };
            match host {
                Host::Tcp(host) => write!(f, "{comma}{host}:{port}")?,
                Host::Unix(path) => write!(f, "{comma}{}/.s.PGSQL.{port}", path.display())?,
            }
        }
        if self.config.get_hosts().is_empty() {
            addresses.iter().try_for_each(|address| write!(f, "{address}"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PostgresUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let bad = |why: &str| UrlError(why.to_owned());
        let Some(rest) = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) else {
            return Err(bad(
                "it does not begin with postgres:// or postgresql://; for SQLite in the CA's folder name no database",
            ));
        };
        let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
        // Else a part of the password would be taken for the host, and printed.
        if before.matches('@').count() > 1 || before.split_once('/').is_some_and(|(_, path)| path.contains('@')) {
            return Err(bad("it has an @, / or ? too many; in a password write @ as %40, / as %2F and ? as %3F"));
        }
        let mut passed_on = Vec::new();
        let (mut mode, mut files) = (None, TlsFiles::default());
        let (mut certificate, mut key) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| bad("a parameter has no value"))?;
            let value = percent_decode_str(value)
                .decode_utf8()
                .map_err(|_| UrlError(format!("the value of {name} is not UTF-8")))?
                .into_owned();
            match name {
                "sslmode" => mode = Some(value),
                "sslrootcert" if value == "system" => {}
                "sslrootcert" => files.roots = Some(value.into()),
                "sslcert" => certificate = Some(PathBuf::from(value)),
                "sslkey" => key = Some(PathBuf::from(value)),
                _ => passed_on.push(pair),
            }
        }
        files.own = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(bad("sslcert and sslkey belong together; give both or neither")),
        };
        let plain = format!("postgres://{before}?{}", passed_on.join("&"));
        let mut config: postgres::Config = plain.parse().map_err(|e: postgres::Error| {
            // The parser repeats names of parameters and no values.
            UrlError(std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string))
        })?;
        let proof = proof(&config, mode.as_deref())?;
        config.ssl_mode(if proof == ServerProof::None { SslMode::Disable } else { SslMode::Require });
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(DEFAULT_CONNECT_TIMEOUT);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(SILENCE);
        }
        if config.get_application_name().is_none() {
            config.application_name("outrigger-ca");
        }
        config.keepalives_idle(SILENCE).keepalives_interval(SILENCE / 5).keepalives_retries(3);
        let has_password = config.get_password().is_some();
        if !has_password && let Some(password) = std::env::var_os(PASSWORD_ENV) {
            config.password(password.into_encoded_bytes());
        }
        Ok(Self { config: Box::new(config), proof, files, text: text.to_owned(), has_password })
    }
}

fn proof(config: &postgres::Config, mode: Option<&str>) -> Result<ServerProof, UrlError> {
    let hosts = config.get_hosts();
    if hosts.is_empty() && config.get_hostaddrs().is_empty() {
        return Err(UrlError("it names no host; write postgres://user@host/database".into()));
    }
    let local = hosts.iter().filter(|host| matches!(host, Host::Unix(_))).count();
    match mode {
        _ if local > 0 && local == hosts.len() => Ok(ServerProof::None),
        Some("verify-full") | None => Ok(ServerProof::Full),
        Some("verify-ca") => Ok(ServerProof::Ca),
        Some("disable") => Ok(ServerProof::None),
        Some(mode @ ("allow" | "prefer" | "require")) => Err(UrlError(format!(
            "sslmode={mode} lets anybody pass for the server; say sslmode=verify-full and with sslrootcert=FILE whom to trust, or sslmode=disable where nobody else is on the wire"
        ))),
        Some(other) => {
            Err(UrlError(format!("sslmode={other} is unknown; choose from verify-full, verify-ca and disable")))
        }
    }
}

/// A database: a file, or a server.
#[derive(Debug, Clone)]
pub enum Location {
    /// An SQLite file.
    File(PathBuf),
    /// A PostgreSQL database.
    Postgres(PostgresUrl),
}

impl Location {
    /// The database that [`DATABASE_ENV`] names, else the one of the settings, else the file.
    pub fn choose(setting: Option<&str>, file: &Path) -> Result<Self, StoreError> {
        let from_env = match std::env::var(DATABASE_ENV) {
            Ok(url) => Some(url),
            Err(std::env::VarError::NotPresent) => None,
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(StoreError::Url(DATABASE_ENV, UrlError("it is not UTF-8".into())));
            }
        };
        let (place, url) = match (&from_env, setting) {
            (Some(url), _) => (DATABASE_ENV, url.as_str()),
            (None, Some(url)) => ("\"database\" in ca.json", url),
            (None, None) => return Ok(Self::File(file.to_owned())),
        };
        url.parse().map(Self::Postgres).map_err(|e| StoreError::Url(place, e))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Postgres(url) => write!(f, "{url}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<PostgresUrl, UrlError> {
        text.parse()
    }

    #[test]
    fn the_server_must_prove_itself_unless_it_is_local_or_told_otherwise() {
        let proof = |text: &str| url(text).unwrap().proof;
        assert_eq!(proof("postgres://ca@db.mesh/ca"), ServerProof::Full);
        assert_eq!(proof("postgresql://ca@db.mesh/ca?sslmode=verify-ca"), ServerProof::Ca);
        assert_eq!(proof("postgres://ca@127.0.0.1/ca?sslmode=disable"), ServerProof::None);
        assert_eq!(proof("postgres:///ca?host=/run/postgresql"), ServerProof::None);
        assert_eq!(proof("postgres://ca@%2Frun%2Fpostgresql/ca"), ServerProof::None);
        for mode in ["prefer", "require", "allow", "on"] {
            let error = url(&format!("postgres://ca@db.mesh/ca?sslmode={mode}")).unwrap_err().to_string();
            assert!(error.contains("verify-full"), "{error}");
        }
        let files = url("postgres://ca@db/ca?sslrootcert=%2Fetc%2Fdb%20ca.pem&sslcert=c&sslkey=k").unwrap().files;
        assert_eq!(files.roots.unwrap(), Path::new("/etc/db ca.pem"));
        assert!(url("postgres://ca@db/ca?sslcert=c").is_err());
    }

    #[test]
    fn no_text_of_a_url_and_no_error_holds_its_password() {
        let good = url("postgres://ca:s3cret@db.mesh:5433/ca").unwrap();
        assert_eq!(good.to_string(), "database ca at db.mesh:5433");
        assert!(good.has_password() && !format!("{good:?}").contains("s3cret"));
        for bad in [
            "mysql://ca:s3cret@db/ca",
            "postgres://ca:s3@cret@db/ca",
            "postgres://ca:s3cret/s3@db/ca",
            "postgres://ca:s3cret?s3@db/ca",
            "postgres://ca:s3cret@db:port/ca",
            "postgres://ca:s3cret@db/ca?nonsense=s3cret",
            "postgres://ca:s3cret@db/ca?sslmode=require",
            "postgres://ca:s3cret@db/ca?connect_timeout=s3cret",
            "postgres://ca:s3cret@",
            "ca:s3cret@db",
        ] {
            let error = url(bad).unwrap_err().to_string();
            assert!(!error.contains("s3") && !error.contains("cret"), "{bad}: {error}");
        }
    }
}
