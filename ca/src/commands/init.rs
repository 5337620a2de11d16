use std::path::Path;

use outrigger_ca::{
    authority::{Directory, InitOptions, ServerNameText, init as make_ca, rfc3339},
    store::Database,
};
use outrigger_identity::TrustDomain;
use serde_json::json;
use time::OffsetDateTime;

use super::{Outcome, Output};

pub(crate) struct Init {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) names: Vec<ServerNameText>,
    pub(crate) force: bool,
}

pub(crate) fn init(dir: &Path, wish: Init, output: Output) -> Outcome {
    let options = InitOptions { trust_domain: wish.trust_domain, names: wish.names, force: wish.force };
    let aside = make_ca(dir, options, OffsetDateTime::now_utc())?;
    let directory = Directory::open(dir)?;
    // Makes the schema, so that the first enrolment does not have to.
    Database::open(&directory.database_path())?;
    let mut lines = Vec::new();
    if let Some(aside) = &aside {
        lines.push(format!("moved the CA that was there to {}", aside.display()));
    }
    lines.push(format!("made a CA for {} in {}", directory.trust_domain(), dir.display()));
    lines.push(format!("its server is known as {}", directory.server_names().join(", ")));
    lines.push(format!("its intermediate expires at {}", rfc3339(directory.expires_at())));
    lines.push(format!("next: outrigger-ca serve --dir {}", dir.display()));
    let value = json!({
        "dir": dir,
        "trust_domain": directory.trust_domain(),
        "server_names": directory.server_names(),
        "intermediate_not_after": rfc3339(directory.expires_at()),
        "replaced": aside,
    });
    output.result(&lines, &value)
}
