use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    time::Duration,
};

use outrigger_ca::{
    admin::{CertificateMade, CertificateWish},
    authority::{Authority, MAX_CSR_LEN, Password, RequestedKey, rfc3339, write_public},
    issue,
    store::Database,
};
use serde_json::json;
use time::OffsetDateTime;

use super::{Ca, Failure, Kind, Outcome, Output};

pub(crate) struct Sign<'a> {
    pub(crate) csr: &'a Path,
    pub(crate) id: &'a str,
    pub(crate) dns: &'a [String],
    pub(crate) ttl: Duration,
    pub(crate) out: Option<&'a Path>,
    pub(crate) force: bool,
    pub(crate) password: Option<&'a Password>,
}

pub(crate) fn sign(ca: &Ca, wish: &Sign<'_>, output: Output) -> Outcome {
    let csr = read(wish.csr)?;
    let key = RequestedKey::from_csr_pem(&csr)?;
    if let Some(out) = wish.out {
        super::refuse_to_overwrite(out, wish.force)?;
    }
    let made = match ca {
        Ca::Folder(dir) => sign_in(dir, wish, &key)?,
        Ca::Running(socket) => socket.issue(&CertificateWish {
            csr,
            id: wish.id.to_owned(),
            dns: wish.dns.to_vec(),
            ttl_seconds: wish.ttl.as_secs(),
        })?,
    };
    let line = match wish.out {
        Some(out) => {
            write_public(out, &made.chain)?;
            format!("signed {} into {}, serial {}, until {}", wish.id, out.display(), made.serial, made.not_after)
        }
        None => made.chain.trim_end().to_owned(),
    };
    let value = json!({
        "id": wish.id,
        "dns": made.dns,
        "serial": made.serial,
        "not_after": made.not_after,
        "out": wish.out,
        "chain": made.chain,
    });
    output.result(&[line], &value)
}

fn sign_in(dir: &Path, wish: &Sign<'_>, key: &RequestedKey) -> Result<CertificateMade, Failure> {
    let authority = Authority::open(dir, wish.password)?;
    let subject = authority.subject(wish.id, wish.dns)?;
    let dns = subject.dns_names.clone();
    let mut database = Database::of(&authority)?;
    let now = OffsetDateTime::now_utc();
    let issued =
        database.transaction(|tx| issue::for_operator(tx, &authority, &subject, key, wish.ttl, now, None))?.certificate;
    Ok(CertificateMade {
        chain: format!("{}{}", issued.pem, authority.intermediate_pem()),
        bundle: authority.bundle_pem().to_owned(),
        serial: issued.serial,
        dns,
        not_after: rfc3339(issued.not_after),
    })
}

/// Reads a request from a file, or from stdin if it is `-`. One byte more than the limit, which the parser then names.
fn read(path: &Path) -> Result<String, Failure> {
    let limit = MAX_CSR_LEN as u64 + 1;
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(limit).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    read.map_err(|e| {
        let kind = if e.kind() == io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Failed };
        let message = format!("cannot read the request {}: {e}; give a PKCS#10 file in PEM, or -", path.display());
        Failure::new(kind, if kind == Kind::NotFound { "no_file" } else { "file" }, message)
    })?;
    Ok(text)
}
