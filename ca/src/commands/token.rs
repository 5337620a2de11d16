use std::{path::Path, time::Duration};

use outrigger_ca::{
    admin::{TokenMade, TokenWish},
    attest::{TokenHash, create_token},
    authority::{Directory, hex, rfc3339},
    store::{Database, MIN_REF_LEN, StoreError, TokenRow, TokenState, Transaction},
};
use outrigger_identity::SpiffeId;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Ca, Failure, Kind, Outcome, Output};

/// Hex digits of a token's hash that `token list` shows to people.
const SHOWN: usize = 16;

/// Which tokens to take back.
pub(crate) enum Revoke<'a> {
    /// The one whose hash begins with these hex digits.
    Ref(&'a str),
    /// Every one of an id that could still be used.
    Id(&'a SpiffeId),
}

pub(crate) fn create(ca: &Ca, id: &str, dns: &[String], ttl: Duration, output: Output) -> Outcome {
    let made = match ca {
        Ca::Folder(dir) => create_in(dir, id, dns, ttl)?,
        Ca::Running(socket) => {
            socket.create_token(&TokenWish { id: id.to_owned(), dns: dns.to_vec(), ttl_seconds: ttl.as_secs() })?
        }
    };
    output.result(std::slice::from_ref(&made.token), &json!(made))
}

fn create_in(dir: &Path, id: &str, dns: &[String], ttl: Duration) -> Result<TokenMade, Failure> {
    let directory = Directory::open(dir)?;
    let subject = directory.subject(id, dns)?;
    let mut database = Database::of(&directory)?;
    let now = OffsetDateTime::now_utc();
    let token = create_token(&mut database, &subject, ttl, now)?;
    Ok(TokenMade {
        reference: TokenHash::of(token.as_str()).to_hex(),
        token: token.as_str().to_owned(),
        id: id.to_owned(),
        dns: subject.dns_names,
        expires_at: rfc3339(now + ttl),
    })
}

pub(crate) fn list(dir: &Path, output: Output) -> Outcome {
    let directory = Directory::look(dir)?;
    let mut database = Database::of(&directory)?;
    let now = OffsetDateTime::now_utc();
    database
        .snapshot(|tx| tx.list_tokens())?
        .iter()
        .try_for_each(|(hash, token)| output.result(&[line(hash, token, now)], &value(hash, token, now)))
}

pub(crate) fn revoke(dir: &Path, which: &Revoke<'_>, output: Output) -> Outcome {
    let directory = Directory::open(dir)?;
    let mut database = Database::of(&directory)?;
    let now = OffsetDateTime::now_utc();
    match which {
        Revoke::Id(id) => {
            let count = database.transaction(|tx| tx.revoke_tokens_of(id.as_str(), now))?;
            let line = format!("revoked {count} unused tokens of {id}");
            output.result(&[line], &json!({ "id": id, "revoked": count }))
        }
        Revoke::Ref(digits) => {
            let (hash, token) = database.transaction(|tx| revoke_one(tx, digits, now))?;
            let line = format!("revoked the token {} of {}", &hex(&hash)[..SHOWN], token.id);
            output.result(&[line], &json!({ "ref": hex(&hash), "id": token.id, "revoked": 1 }))
        }
    }
}

fn revoke_one(tx: &mut Transaction<'_>, digits: &str, now: OffsetDateTime) -> Result<([u8; 32], TokenRow), Failure> {
    let (hash, token) = find_token(digits, |digits| tx.tokens_by_ref(digits))?;
    if !tx.revoke_token(&hash, now)? {
        let message = match token.state(now) {
            TokenState::Used(at) => format!(
                "the token of {} was already used at {}, so there is nothing to revoke; see what was issued for it with \"outrigger-ca log list\", and take that back with \"outrigger-ca revoke --token\"",
                token.id,
                rfc3339(at)
            ),
            TokenState::Revoked(at) => format!("the token of {} was already revoked at {}", token.id, rfc3339(at)),
            TokenState::Unused | TokenState::Expired(_) => format!("the token of {} could not be revoked", token.id),
        };
        return Err(Failure::new(Kind::Refused, "token_spent", message));
    }
    Ok((hash, token))
}

/// The one token that these hex digits name.
pub(super) fn find_token(
    digits: &str,
    look_up: impl FnOnce(&str) -> Result<Vec<([u8; 32], TokenRow)>, StoreError>,
) -> Result<([u8; 32], TokenRow), Failure> {
    let digits = digits.to_ascii_lowercase();
    if digits.len() < MIN_REF_LEN || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        let message = format!(
            "\"{digits}\" does not name a token; give at least {MIN_REF_LEN} hex digits from the first column of \"outrigger-ca token list\""
        );
        return Err(Failure::new(Kind::Usage, "token_ref", message));
    }
    let mut found = look_up(&digits)?;
    match (found.pop(), found.len()) {
        (Some(one), 0) => Ok(one),
        (None, _) => {
            let message = format!("no token begins with {digits}; look it up with \"outrigger-ca token list\"");
            Err(Failure::new(Kind::NotFound, "no_token", message))
        }
        (Some(_), others) => {
            let message = format!("{} tokens begin with {digits}; give more digits", others + 1);
            Err(Failure::new(Kind::Refused, "token_ref", message))
        }
    }
}

fn line(hash: &[u8; 32], token: &TokenRow, now: OffsetDateTime) -> String {
    let state = token.state(now);
    let when = match state {
        TokenState::Unused => format!("until {}", rfc3339(token.expires_at)),
        TokenState::Used(at) | TokenState::Revoked(at) | TokenState::Expired(at) => format!("at {}", rfc3339(at)),
    };
    let (hash, names) = (hex(hash), token.dns_names.join(" "));
    format!("{} {} [{names}] {} {when}", &hash[..SHOWN], token.id, state.as_str())
}

fn value(hash: &[u8; 32], token: &TokenRow, now: OffsetDateTime) -> Value {
    json!({
        "ref": hex(hash),
        "id": token.id,
        "dns": token.dns_names,
        "state": token.state(now).as_str(),
        "created_at": rfc3339(token.created_at),
        "expires_at": rfc3339(token.expires_at),
        "used_at": token.used_at.map(rfc3339),
        "revoked_at": token.revoked_at.map(rfc3339),
    })
}
