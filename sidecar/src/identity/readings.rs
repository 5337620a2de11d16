//! How well the CA's documents can be followed, for the metrics: what came of each reading, and when one was last good.

use std::time::SystemTime;

use outrigger_identity::documents::{Document, Documents, ReadError};

/// Readings of the CA's bundle and revocation lists since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readings {
    /// Documents that are in use now, be they new or unchanged.
    pub ok: u64,
    /// Documents that changed nothing because something about them is wrong.
    pub refused: u64,
    /// The CA publishes none (istiod).
    pub absent: u64,
    /// The CA, or one of its documents, could not be read.
    pub failed: u64,
    /// When the last of `ok` was.
    pub last_ok: Option<SystemTime>,
}

/// What came of a reading before its documents were judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Documents,
    Absent,
    Failed,
}

impl Answer {
    pub(super) fn of(answer: &Result<Documents, ReadError>) -> Self {
        match answer {
            Ok(documents) if matches!(documents.first(), Some(Ok(Document::Absent))) => Self::Absent,
            Ok(documents) if documents.iter().all(Result::is_ok) => Self::Documents,
            _ => Self::Failed,
        }
    }
}

impl Readings {
    /// Counts one. `refused`: the documents were judged, and something about them is wrong.
    pub(super) fn count(&mut self, answer: Answer, refused: bool, now: SystemTime) {
        match answer {
            Answer::Failed => self.failed += 1,
            Answer::Absent => self.absent += 1,
            Answer::Documents if refused => self.refused += 1,
            Answer::Documents => {
                self.ok += 1;
                self.last_ok = Some(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use tokio::time::sleep;

    use super::super::{
        tests_ca::{HOUR, SOON, World},
        tests_trust::{NEXT_READING, document},
    };
    use crate::tls::test_pki::eventually;

    #[tokio::test(start_paused = true)]
    async fn each_reading_counts_once_by_what_came_of_it() {
        let world = World::new(24 * HOUR, vec![]);
        let ca = &world.ca.pki;
        let handle = world.enrolled().await;
        eventually(SOON, "a CA without documents", || handle.readings().absent == 1).await;
        assert_eq!((handle.readings().last_ok, handle.lists_next_update()), (None, None));
        drop(handle);

        world.publish(document(1, &[(&ca.root, false)]));
        world.publish_lists(ca.root.crl(1, &[]) + &ca.intermediate.crl(1, &[]));
        let handle = world.start();
        eventually(SOON, "a good reading", || handle.readings().ok == 1).await;
        let next_update = handle.lists_next_update().map(super::super::rfc3339);
        assert!(next_update.is_some() && next_update == handle.status().revocation_lists[0].next_update);
        // Unchanged ones are as good as new ones.
        let first = handle.readings().last_ok.unwrap();
        eventually(NEXT_READING, "another", || handle.readings().ok == 2).await;
        let second = handle.readings().last_ok.unwrap();
        assert!(second.duration_since(first).unwrap() > Duration::from_secs(20));

        world.publish("{}".to_owned());
        eventually(NEXT_READING, "a refusal", || handle.readings().refused == 1).await;
        world.ca.publishes.lock().unwrap().away = true;
        eventually(NEXT_READING, "a failure", || handle.readings().failed >= 1).await;
        sleep(Duration::from_secs(120)).await;
        let bad = handle.readings();
        assert_eq!((bad.ok, bad.refused, bad.last_ok), (2, 1, Some(second)), "{bad:?}");
        assert_eq!(world.readings() as u64, 1 + bad.ok + bad.refused + bad.failed);

        world.ca.publishes.lock().unwrap().away = false;
        world.publish(document(2, &[(&ca.root, false)]));
        eventually(2 * NEXT_READING, "a good one", || handle.readings().ok == 3).await;
        assert!(handle.readings().last_ok.unwrap() > second);
    }
}
