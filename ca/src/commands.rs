//! What each command does. Reading and writing for people; the work is in the library.

use std::{
    error::Error,
    fs::DirBuilder,
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use outrigger_ca::{
    attest::create_token,
    authority::{
        Authority, InitOptions, MAX_TTL, RequestedKey, ServerNameText, init as make_ca, rfc3339, write_public,
        write_secret,
    },
    issue,
    server::{self, ServeError, ServerCertificate},
    store::{Database, LogEntry, Store, StoreError, for_each},
};
use outrigger_identity::TrustDomain;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use time::OffsetDateTime;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

type Outcome = Result<(), Box<dyn Error>>;

/// A lifetime as people write it: a whole number and s, m, h or d.
pub(crate) fn lifetime(text: &str) -> Result<Duration, String> {
    let bad = || format!("\"{text}\" is not a lifetime; write a number and a unit, as 90s, 15m, 24h or 7d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(bad)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    let lifetime = number.checked_mul(unit).map(Duration::from_secs).ok_or_else(bad)?;
    if lifetime.is_zero() || lifetime > MAX_TTL {
        return Err(format!("{text} is out of range; choose from 1s to {}d", MAX_TTL.as_secs() / 86_400));
    }
    Ok(lifetime)
}

pub(crate) fn init(dir: &Path, trust_domain: TrustDomain, names: Vec<ServerNameText>, force: bool) -> Outcome {
    let mut out = io::stdout();
    let options = InitOptions { trust_domain, names, force };
    if let Some(aside) = make_ca(dir, options, OffsetDateTime::now_utc())? {
        writeln!(out, "moved the CA that was there to {}", aside.display())?;
    }
    let authority = Authority::open(dir)?;
    // Makes the schema, so that the first enrolment does not have to.
    Database::open(&authority.database_path())?;
    writeln!(out, "made a CA for {} in {}", authority.trust_domain(), dir.display())?;
    writeln!(out, "its server is known as {}", authority.server_names().join(", "))?;
    writeln!(out, "its intermediate expires at {}", rfc3339(authority.expires_at()))?;
    writeln!(out, "next: outrigger-ca serve --dir {}", dir.display())?;
    Ok(())
}

pub(crate) fn issue(dir: &Path, id: &str, dns: &[String], ttl: Duration, out: &Path, force: bool) -> Outcome {
    let authority = Authority::open(dir)?;
    let subject = authority.subject(id, dns)?;
    DirBuilder::new().recursive(true).mode(0o755).create(out).map_err(|e| {
        format!("cannot create {}: {e}; check that its parent exists and that this user may write there", out.display())
    })?;
    let [key_path, bundle_path, cert_path] = ["key.pem", "bundle.pem", "cert.pem"].map(|name| out.join(name));
    for path in [&key_path, &bundle_path, &cert_path] {
        if !force && path.symlink_metadata().is_ok() {
            return Err(format!(
                "{} is already there; choose another --out, or replace it with --force",
                path.display()
            )
            .into());
        }
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let public_key = RequestedKey::of(&key)?;
    let mut database = Database::open(&authority.database_path())?;
    let issued = issue::for_operator(&mut database, &authority, subject, &public_key, ttl, OffsetDateTime::now_utc())?;
    let certificate = issued.certificate;
    // The certificate last: whoever watches it finds its key and bundle in place.
    write_public(&bundle_path, authority.bundle_pem())?;
    write_secret(&key_path, &key.serialize_pem())?;
    write_public(&cert_path, &format!("{}{}", certificate.pem, authority.intermediate_pem()))?;
    writeln!(
        io::stdout(),
        "issued {id} into {}, serial {}, until {}",
        out.display(),
        certificate.serial,
        rfc3339(certificate.not_after)
    )?;
    Ok(())
}

pub(crate) fn token_create(dir: &Path, id: &str, dns: &[String], ttl: Duration) -> Outcome {
    let authority = Authority::open(dir)?;
    let subject = authority.subject(id, dns)?;
    let mut database = Database::open(&authority.database_path())?;
    let token = create_token(&mut database, &subject, ttl, OffsetDateTime::now_utc())?;
    writeln!(io::stdout(), "{}", token.as_str())?;
    Ok(())
}

pub(crate) fn bundle_show(dir: &Path) -> Outcome {
    let authority = Authority::open(dir)?;
    io::stdout().write_all(authority.bundle_pem().as_bytes())?;
    Ok(())
}

pub(crate) fn log_list(dir: &Path, json: bool) -> Outcome {
    let authority = Authority::open(dir)?;
    let database = Database::open(&authority.database_path())?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    for_each(database.connection(), |entry| write_entry(&mut out, &entry, json))?;
    out.flush()?;
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum ListError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot write the list: {0}")]
    Output(#[from] io::Error),
}

fn write_entry(out: &mut impl Write, entry: &LogEntry, json: bool) -> Result<(), ListError> {
    let (from, until) = (rfc3339(entry.not_before), rfc3339(entry.not_after));
    let id = entry.id.as_ref().map(|id| id.as_str());
    if json {
        let line = serde_json::json!({
            "serial": entry.serial,
            "id": id,
            "dns": entry.dns_names,
            "not_before": from,
            "not_after": until,
            "issued_at": rfc3339(entry.issued_at),
            "credential": entry.credential.as_str(),
            "credential_ref": entry.credential_ref,
        });
        writeln!(out, "{line}")?;
    } else {
        let id = id.unwrap_or("(this CA's server)");
        let by = entry.credential.as_str();
        writeln!(out, "{} {id} [{}] {from} to {until} by {by}", entry.serial, entry.dns_names.join(" "))?;
    }
    Ok(())
}

pub(crate) fn serve(dir: &Path, listen: SocketAddr, names: Vec<ServerNameText>) -> Outcome {
    let mut authority = Authority::open(dir)?;
    authority.add_server_names(names);
    let authority = Arc::new(authority);
    let database = Database::open(&authority.database_path())?;
    let (store, thread) = Store::spawn(database).map_err(|e| ServeError::System("start the database's thread", e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| ServeError::System("start the runtime", e))?;
    let result = runtime.block_on(run(listen, authority, store));
    // Ends every task, and with the last handle the database's thread, which first finishes what it was given.
    drop(runtime);
    if thread.join().is_err() {
        tracing::error!("the database's thread panicked; this is a defect, please report it");
    }
    Ok(result?)
}

async fn run(listen: SocketAddr, authority: Arc<Authority>, store: Store) -> Result<(), ServeError> {
    // Before anything is promised, so that no signal is missed.
    let stop = |kind| signal(kind).map_err(|e| ServeError::System("handle signals", e));
    let (mut terminate, mut interrupt) = (stop(SignalKind::terminate())?, stop(SignalKind::interrupt())?);
    let (stopping, shutdown) = watch::channel(false);
    let listener = server::listen(listen).await?;
    let address = listener.local_addr().map_err(|source| ServeError::Listen { address: listen, source })?;
    let own = ServerCertificate::issue(&authority, &store).await?;
    let line = format!(
        "outrigger-ca listens on {address} as {} for trust domain {}",
        authority.server_names().join(", "),
        authority.trust_domain()
    );
    let mut out = io::stdout();
    // A closed stdout is no reason not to serve.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to stop; finishing what is under way");
        // The receiver lives as long as the server.
        let _ = stopping.send(true);
        // A second signal does not wait.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    });
    server::serve(listener, authority, store, own, shutdown).await
}

/// Whether `error` is that of writing to somebody who has stopped reading.
pub(crate) fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(e) = next {
        if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
            return true;
        }
        if let Some(ListError::Output(inner)) = e.downcast_ref::<ListError>() {
            return inner.kind() == io::ErrorKind::BrokenPipe;
        }
        next = e.source();
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_read_as_people_write_them_and_bounded() {
        assert_eq!(lifetime("90s").unwrap().as_secs(), 90);
        assert_eq!(lifetime("15m").unwrap().as_secs(), 900);
        assert_eq!(lifetime("24h").unwrap().as_secs(), 86_400);
        assert_eq!(lifetime("30d").unwrap(), MAX_TTL);
        for bad in ["", "s", "24", "1w", "-1h", "0s", "31d", "1.5h", "18446744073709551615d", "5é"] {
            assert!(lifetime(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
