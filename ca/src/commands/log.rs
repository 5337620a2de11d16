use std::{
    io::{self, Write},
    path::Path,
    time::Duration,
};

use outrigger_ca::{
    authority::{Directory, rfc3339},
    store::{ChainFault, ChainHash, Database, LogRecord, StoreError},
};
use serde_json::json;
use time::OffsetDateTime;

use super::{Failure, Outcome, Output};

pub(crate) fn list(dir: &Path, output: Output) -> Outcome {
    let directory = Directory::look(dir)?;
    let mut database = Database::of(&directory)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    database.snapshot(|tx| tx.for_each::<Failure>(|record| Ok(write(&mut out, &record, output.json)?)))?;
    Ok(out.flush()?)
}

fn write(out: &mut impl Write, record: &LogRecord, json: bool) -> io::Result<()> {
    let entry = &record.entry;
    let (from, until) = (rfc3339(entry.not_before), rfc3339(entry.not_after));
    let id = entry.id.as_ref().map(|id| id.as_str());
    if json {
        let line = json!({
            "seq": record.seq,
            "serial": entry.serial,
            "id": id,
            "dns": entry.dns_names,
            "not_before": from,
            "not_after": until,
            "issued_at": rfc3339(entry.issued_at),
            "credential": entry.credential.as_str(),
            "credential_ref": entry.credential_ref,
            "hash": record.hash.to_string(),
        });
        writeln!(out, "{line}")
    } else {
        let id = id.unwrap_or("(this CA's server)");
        let by = entry.credential.as_str();
        writeln!(out, "{} {id} [{}] {from} to {until} by {by}", entry.serial, entry.dns_names.join(" "))
    }
}

pub(crate) fn verify(dir: &Path, head: Option<ChainHash>, output: Output) -> Outcome {
    let directory = Directory::look(dir)?;
    let mut database = Database::of(&directory)?;
    let (report, (revocations, revocations_head)) =
        database.snapshot::<_, ChainFault>(|tx| Ok((tx.verify_chain(head)?, tx.verify_revocations()?)))?;
    let mut lines = vec![format!("{} records, each of them proved", report.records)];
    if revocations > 0 {
        lines.push(format!("{revocations} revocations, each of them proved; their head is {revocations_head}"));
    }
    if let Some((seq, hash)) = report.anchor {
        lines.push(format!("records up to number {seq} were pruned; the chain begins at {hash}"));
    }
    if let Some(head) = head {
        lines.push(format!("the hash {head} is part of the chain"));
    }
    lines.push(format!("its head is {}; keep it elsewhere to prove later that nothing was cut", report.head));
    let value = json!({
        "records": report.records,
        "revocations": revocations,
        "revocations_head": revocations_head.to_string(),
        "last_seq": report.last_seq,
        "head": report.head.to_string(),
        "anchor": report.anchor.map(|(seq, hash)| json!({ "seq": seq, "hash": hash.to_string() })),
    });
    output.result(&lines, &value)
}

/// Verifies the chain first: pruning a broken log would hide where it broke.
pub(crate) fn prune(dir: &Path, older_than: Duration, output: Output) -> Outcome {
    let directory = Directory::open(dir)?;
    let mut database = Database::of(&directory)?;
    let now = OffsetDateTime::now_utc();
    database.snapshot(|tx| tx.verify_chain(None))?;
    let (pruned, tokens) = database.transaction(|tx| {
        let tokens = tx.forget_tokens((now - older_than).min(now), u32::MAX)?;
        Ok::<_, StoreError>((tx.prune(now - older_than, now)?, tokens))
    })?;
    let line = match pruned.anchor {
        Some((seq, hash)) => {
            format!("pruned {} records, up to number {seq}; the chain goes on from {hash}", pruned.records)
        }
        None => "pruned nothing: no record at the front of the log is that old".to_owned(),
    };
    let value = json!({
        "pruned": pruned.records,
        "tokens": tokens,
        "anchor": pruned.anchor.map(|(seq, hash)| json!({ "seq": seq, "hash": hash.to_string() })),
    });
    let tokens = format!("removed {tokens} tokens that expired before that");
    output.result(&[line, tokens], &value)
}
