use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use outrigger_ca::authority::{Algorithm, Directory, Password, rfc3339};
use serde_json::json;
use time::OffsetDateTime;

use super::{Outcome, Output};

pub(crate) struct Prepare {
    pub(crate) root_key: Option<PathBuf>,
    pub(crate) algorithm: Algorithm,
    pub(crate) ttl: Duration,
    pub(crate) password: Option<Password>,
}

pub(crate) fn prepare(dir: &Path, wish: &Prepare, output: Output) -> Outcome {
    let directory = Directory::open(dir)?;
    let root_key = wish.root_key.clone().unwrap_or_else(|| directory.root_key_path());
    let now = OffsetDateTime::now_utc();
    let until = directory.prepare_intermediate(&root_key, wish.algorithm, wish.ttl, wish.password.as_ref(), now)?;
    let until = rfc3339(until);
    let lines = [
        format!("prepared an intermediate until {until}; the current one goes on signing"),
        format!("next: outrigger-ca rotate activate --dir {}", dir.display()),
    ];
    output.result(&lines, &json!({ "prepared_not_after": until }))
}

pub(crate) fn activate(dir: &Path, password: Option<&Password>, output: Output) -> Outcome {
    let directory = Directory::open(dir)?;
    let until = rfc3339(directory.activate_intermediate(password, OffsetDateTime::now_utc())?.expires_at());
    let lines = [
        format!("the prepared intermediate signs from now on, until {until}"),
        "next: restart \"outrigger-ca serve\", which takes it at its start".to_owned(),
    ];
    output.result(&lines, &json!({ "intermediate_not_after": until }))
}

pub(crate) fn status(dir: &Path, output: Output) -> Outcome {
    let directory = Directory::open(dir)?;
    let left = directory.lifetime_left(OffsetDateTime::now_utc());
    let until = rfc3339(directory.expires_at());
    let prepared = directory.prepared_until()?.map(rfc3339);
    let lines = [
        format!("the intermediate expires at {until}, {:.0} % of its life is left", left * 100.0),
        match &prepared {
            Some(until) => format!("the next one is prepared, until {until}"),
            None => "no next one is prepared".to_owned(),
        },
    ];
    let value = json!({
        "intermediate_not_after": until,
        // Two digits: what follows them changes with every second.
        "life_left": (left * 100.0).round() / 100.0,
        "prepared_not_after": prepared,
    });
    output.result(&lines, &value)
}
