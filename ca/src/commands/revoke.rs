use std::path::Path;

use outrigger_ca::{
    authority::{Directory, Password, RevokeRequest, hex},
    store::{Database, RevocationReason, StoreError},
};
use outrigger_identity::SpiffeId;
use serde_json::json;
use time::OffsetDateTime;

use super::{Failure, Kind, Outcome, Output, token::find_token};

/// Which certificates to take back.
pub(crate) enum Which {
    Serials(Vec<String>),
    Id { id: SpiffeId, block: bool },
    Token(String),
}

pub(crate) fn revoke(
    dir: &Path,
    which: &Which,
    reason: RevocationReason,
    password: Option<&Password>,
    output: Output,
) -> Outcome {
    let directory = Directory::open(dir)?;
    let mut database = Database::of(&directory)?;
    let now = OffsetDateTime::now_utc();
    let mut token_back = false;
    let hash;
    let request = match which {
        Which::Serials(serials) => RevokeRequest::Serials(serials),
        Which::Id { id, block } => RevokeRequest::Id { id, block: *block },
        Which::Token(digits) => {
            let (found, _) = find_token(digits, |digits| database.snapshot(|tx| tx.tokens_by_ref(digits)))?;
            // Not used yet: then it will not be.
            token_back = database.transaction::<_, StoreError>(|tx| tx.revoke_token(&found, now))?;
            hash = hex(&found);
            RevokeRequest::Token(&hash)
        }
    };
    let mut revoked = directory.revoke(&mut database, &request, reason, password, now)?;
    revoked.tokens += u64::from(token_back);
    let mut lines: Vec<_> = revoked.serials.iter().map(|serial| format!("revoked {serial}")).collect();
    lines.extend(revoked.before.iter().map(|serial| format!("{serial} was revoked before")));
    if revoked.tokens > 0 {
        lines.push(format!("took {} unused tokens back", revoked.tokens));
    }
    if let Which::Id { id, block } = which {
        lines.push(match (block, revoked.blocked) {
            (true, true) => format!("blocked {id}: nothing is issued for it any more"),
            (true, false) => format!("{id} was blocked before"),
            (false, _) => format!("new certificates for {id} are still issued; add --block if they shall not be"),
        });
    }
    if revoked.serials.is_empty() && revoked.before.is_empty() {
        lines.insert(0, "revoked nothing: no certificate of it is still good".to_owned());
    }
    if revoked.lists_waiting > 0 {
        lines.push("the list is signed by the running server: the issuer's key is not open here".to_owned());
    }
    let value = json!({
        "revoked": revoked.serials,
        "before": revoked.before,
        "tokens": revoked.tokens,
        "blocked": revoked.blocked,
        "lists_waiting": revoked.lists_waiting,
        "reason": reason.as_str(),
    });
    output.result(&lines, &value)
}

pub(crate) fn unblock(dir: &Path, id: &SpiffeId, output: Output) -> Outcome {
    let directory = Directory::open(dir)?;
    let mut database = Database::of(&directory)?;
    if !database.transaction::<_, StoreError>(|tx| tx.unblock_id(id.as_str()))? {
        return Err(Failure::new(Kind::NotFound, "not_blocked", format!("{id} is not blocked")));
    }
    output.result(&[format!("{id} may have certificates again")], &json!({ "id": id, "unblocked": true }))
}
