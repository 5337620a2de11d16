//! A server forgets by itself what is long over, so that its database does not grow for ever.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::sleep;

use crate::store::{ChainFault, Store};

/// How often it looks, the first time at its start.
const EVERY: Duration = Duration::from_secs(3600);
/// So many records, tokens and keys go in one transaction at most: callers wait behind it.
const AT_ONCE: u32 = 2000;
/// Between two such transactions callers have their turn.
const PAUSE: Duration = Duration::from_millis(200);

/// Forgets for ever what has been over for longer than `after`. What fails is logged and tried again at the next look.
pub async fn keep_forgetting(store: Store, after: Duration) {
    loop {
        match look(&store, after).await {
            Ok((0, 0)) => {}
            Ok((records, tokens)) => {
                tracing::info!(records, tokens, "forgot what has been over for longer than {after:?}");
            }
            Err(error) => tracing::error!(%error, "cannot forget what is long over; trying again in {EVERY:?}"),
        }
        sleep(EVERY).await;
    }
}

async fn look(store: &Store, after: Duration) -> Result<(u64, u64), Box<dyn std::error::Error + Send + Sync>> {
    let (mut records, mut tokens) = (0, 0);
    loop {
        let now = OffsetDateTime::now_utc();
        let forgot = store.transaction(move |tx| tx.forget::<ChainFault>(now - after, now, AT_ONCE)).await??;
        records += forgot.pruned.records;
        tokens += forgot.tokens;
        if [forgot.pruned.records, forgot.tokens, forgot.keys].iter().all(|gone| *gone < u64::from(AT_ONCE)) {
            return Ok((records, tokens));
        }
        sleep(PAUSE).await;
    }
}
