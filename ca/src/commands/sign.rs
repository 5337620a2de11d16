use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    time::Duration,
};

use outrigger_ca::{
    authority::{Authority, MAX_CSR_LEN, Password, RequestedKey, rfc3339, write_public},
    issue,
    store::Database,
};
use serde_json::json;
use time::OffsetDateTime;

use super::{Failure, Kind, Outcome, Output};

pub(crate) struct Sign<'a> {
    pub(crate) csr: &'a Path,
    pub(crate) id: &'a str,
    pub(crate) dns: &'a [String],
    pub(crate) ttl: Duration,
    pub(crate) out: Option<&'a Path>,
    pub(crate) force: bool,
    pub(crate) password: Option<&'a Password>,
}

pub(crate) fn sign(dir: &Path, wish: &Sign<'_>, output: Output) -> Outcome {
    let key = RequestedKey::from_csr_pem(&read(wish.csr)?)?;
    if let Some(out) = wish.out {
        super::refuse_to_overwrite(out, wish.force)?;
    }
    let authority = Authority::open(dir, wish.password)?;
    let subject = authority.subject(wish.id, wish.dns)?;
    let mut database = Database::of(&authority)?;
    let now = OffsetDateTime::now_utc();
    let issued = database.transaction(|tx| issue::for_operator(tx, &authority, &subject, &key, wish.ttl, now))?;
    let certificate = issued.certificate;
    let chain = format!("{}{}", certificate.pem, authority.intermediate_pem());
    let until = rfc3339(certificate.not_after);
    let line = match wish.out {
        Some(out) => {
            write_public(out, &chain)?;
            format!("signed {} into {}, serial {}, until {until}", wish.id, out.display(), certificate.serial)
        }
        None => chain.trim_end().to_owned(),
    };
    let value = json!({
        "id": wish.id,
        "dns": wish.dns,
        "serial": certificate.serial,
        "not_after": until,
        "out": wish.out,
        "chain": chain,
    });
    output.result(&[line], &value)
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
