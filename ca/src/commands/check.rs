use std::path::Path;

use outrigger_ca::{
    authority::{Directory, Password},
    health::{Level, check as check_health},
};
use serde_json::json;
use time::OffsetDateTime;

use super::{Failure, Kind, Outcome, Output};

pub(crate) fn check(dir: &Path, password: Option<&Password>, output: Output) -> Outcome {
    let directory = Directory::look(dir)?;
    let checks = check_health(directory, password, OffsetDateTime::now_utc());
    let told = checks.iter().try_for_each(|check| {
        let line = format!("{:7} {}: {}", check.level.as_str(), check.name, check.detail);
        let value = json!({ "check": check.name, "level": check.level.as_str(), "detail": check.detail });
        output.result(&[line], &value)
    });
    let failed: Vec<_> = checks.iter().filter(|c| c.level == Level::Failure).map(|c| c.name).collect();
    // A reader that has gone does not make a bad verdict good.
    if failed.is_empty() {
        return told;
    }
    let message = format!("{} of {} checks failed: {}", failed.len(), checks.len(), failed.join(", "));
    Err(Failure::new(Kind::Verdict, "check_failed", message))
}
