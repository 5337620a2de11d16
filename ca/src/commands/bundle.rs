use std::path::Path;

use outrigger_ca::authority::Directory;
use serde_json::json;

use super::{Outcome, Output};

pub(crate) fn show(dir: &Path, output: Output) -> Outcome {
    let directory = Directory::open(dir)?;
    let pem = directory.bundle_pem();
    let value = json!({ "trust_domain": directory.trust_domain(), "bundle": pem });
    output.result(&[pem.trim_end().to_owned()], &value)
}
