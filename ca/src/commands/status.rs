use outrigger_ca::admin::AdminSocket;
use serde_json::json;

use super::{Failure, Kind, Outcome, Output};

/// Prints how a running CA is. One that cannot issue is a verdict, as for `check`.
pub(crate) fn status(socket: &AdminSocket, output: Output) -> Outcome {
    let status = socket.status()?;
    let tokens = status.tokens_waiting.map_or("unknown".to_owned(), |count| count.to_string());
    let lines = [
        format!("trust domain {}, version {}", status.trust_domain, status.version),
        format!("intermediate until {}", status.intermediate_not_after),
        format!("connections {}, join tokens waiting {tokens}", status.connections),
        if status.ready { "ready".to_owned() } else { format!("not ready: {}", status.failing.join("; ")) },
    ];
    output.result(&lines, &json!(status))?;
    if status.ready {
        return Ok(());
    }
    Err(Failure::new(Kind::Verdict, "not_ready", format!("the CA cannot issue: {}", status.failing.join("; "))))
}
