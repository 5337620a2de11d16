//! Where a rotation stands, in words, and what to do next. Whatever moment a command was killed at, this says so.

use time::OffsetDateTime;

use super::{
    AuthorityError, Directory, Living, Member,
    retirement::living_under,
    rfc3339,
    upkeep::{activate_left, prepare_left},
};
use crate::store::{AuthorityKind, AuthorityState, Database};

/// One root or intermediate.
#[derive(Debug)]
pub struct StatusLine {
    /// What it is.
    pub member: Member,
    /// Where its key is: `here`, `elsewhere`.
    pub key: &'static str,
    /// For a root that is old or tainted: what still leads to it.
    pub living: Option<Living>,
}

/// Everything.
#[derive(Debug)]
pub struct Status {
    /// The authorities that are not revoked and not over, oldest first.
    pub lines: Vec<StatusLine>,
    /// What to do next, one sentence each; empty when there is nothing.
    pub next: Vec<String>,
    /// Files that nothing refers to, as an interrupted command leaves them.
    pub leftovers: Vec<String>,
}

impl Directory {
    /// Looks at everything.
    pub fn status(&self, database: &mut Database, now: OffsetDateTime) -> Result<Status, AuthorityError> {
        let members = self.members();
        let mut lines = Vec::new();
        for member in members.all() {
            let is_root = member.kind() == AuthorityKind::Root;
            let shown = member.is_of_use(now) || is_root && member.state() != AuthorityState::Revoked;
            if !shown {
                continue;
            }
            let key = if self.ring().key_of(&member.row.fingerprint).is_some() { "here" } else { "elsewhere" };
            let leaving = matches!(member.state(), AuthorityState::Old | AuthorityState::Tainted);
            let living = (is_root && leaving)
                .then(|| database.snapshot(|tx| living_under(tx, members, member, now)))
                .transpose()?;
            lines.push(StatusLine { member: member.clone(), key, living });
        }
        let next = self.next(&lines, now);
        Ok(Status { lines, next, leftovers: self.leftovers() })
    }

    fn next(&self, lines: &[StatusLine], now: OffsetDateTime) -> Vec<String> {
        let mut next = Vec::new();
        if let Some(prepared) = self.prepared() {
            let root = self.members().root_of(prepared);
            let ready_at = root.and_then(|root| self.ready_at(root)).filter(|at| *at > now);
            next.push(match (ready_at, root.map(Member::state)) {
                (Some(at), _) => format!(
                    "the new root is in the bundle and not yet with every verifier; \"outrigger-ca rotate activate\" from {}",
                    rfc3339(at)
                ),
                (None, Some(AuthorityState::Active | AuthorityState::Prepared)) => format!(
                    "the intermediate {} is ready; \"outrigger-ca rotate activate\"",
                    prepared.short()
                ),
                (None, _) => format!(
                    "the intermediate {} is under a root that signs no more; \"outrigger-ca rotate revoke {}\"",
                    prepared.short(),
                    prepared.short()
                ),
            });
        } else {
            let active = self.active();
            let left = active.not_after - now;
            if left <= prepare_left(active) || left <= activate_left(active) {
                next.push("the intermediate is in the second half of its life; \"outrigger-ca rotate prepare\"".into());
            }
            let prepared = self.members().roots().find(|root| root.state() == AuthorityState::Prepared);
            if let Some(root) = prepared {
                next.push(format!(
                    "the root {} is in the bundle and has no intermediate; \"outrigger-ca rotate prepare --root-key FILE\" with its key",
                    root.short()
                ));
            }
            if self.active_root().state() != AuthorityState::Active {
                next.push(
                    "this folder's intermediate is under a root that is being replaced; \"outrigger-ca rotate prepare\" and \"outrigger-ca rotate activate\""
                        .into(),
                );
            }
        }
        for line in lines.iter().filter(|line| line.member.kind() == AuthorityKind::Root) {
            let name = line.member.short();
            match (line.member.state(), line.living.and_then(|living| living.last)) {
                (AuthorityState::Old, _) => {
                    next.push(format!("the root {name} signs no more; \"outrigger-ca rotate taint {name}\""));
                }
                (AuthorityState::Tainted, None) => {
                    next.push(format!(
                        "nothing leads to the root {name} any more; \"outrigger-ca rotate revoke {name}\""
                    ));
                }
                (AuthorityState::Tainted, Some(last)) => next.push(format!(
                    "certificates lead to the root {name} until {}; then \"outrigger-ca rotate revoke {name}\"",
                    rfc3339(last)
                )),
                _ => {}
            }
        }
        next
    }

    /// Files of the folder that nothing in the database refers to.
    pub fn leftovers(&self) -> Vec<String> {
        let ring = self.ring();
        let unknown = ring.files.iter().filter(|file| self.members().get(&file.fingerprint).is_none());
        let files = unknown.flat_map(|file| [&file.certificate, &file.key]).filter(|path| path.exists());
        files.chain(&ring.unreadable).map(|path| path.display().to_string()).collect()
    }
}
