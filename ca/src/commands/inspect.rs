use std::path::PathBuf;

use outrigger_ca::{
    authority::Directory,
    inspect::{self, CertificateText, Expectation, Verdict},
};
use outrigger_identity::TrustDomain;
use serde_json::json;
use time::OffsetDateTime;

use super::{Failure, Kind, Outcome, Output, printable};

pub(crate) fn inspect(target: &str, output: Output) -> Outcome {
    let presented = inspect::load(target)?;
    let now = OffsetDateTime::now_utc();
    for (at, der) in presented.chain.iter().enumerate() {
        let text = inspect::describe(der, now).map_err(|why| {
            let message = format!("certificate {at} of {target} cannot be read: {why}; ask its issuer for another");
            Failure::new(Kind::Failed, "certificate", message)
        })?;
        let value = json!({ "position": at, "certificate": text });
        output.result(&lines(at, &text), &value)?;
    }
    Ok(())
}

fn lines(at: usize, text: &CertificateText) -> Vec<String> {
    let mut lines = vec![format!("certificate {at}, serial {}", text.serial)];
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            lines.push(format!("  {name:<16} {}", printable(value)));
        }
    };
    line("subject", &text.subject);
    line("issuer", &text.issuer);
    let left = text.life_left * 100.0;
    line("valid", &format!("{} to {}, {left:.0} % left", text.not_before, text.not_after));
    line("URI", &text.uris.join(" "));
    line("DNS", &text.dns.join(" "));
    line("other names", &text.other_names.join(" "));
    let ca = match (text.ca, text.path_length) {
        (false, _) => "no".to_owned(),
        (true, None) => "yes".to_owned(),
        (true, Some(below)) => format!("yes, with at most {below} below it"),
    };
    line("CA", &ca);
    line("key usage", &text.key_usage.join(", "));
    line("extended usage", &text.ext_key_usage.join(", "));
    line("key", &text.key);
    line("signed with", &text.signature);
    line("subject key", text.subject_key_id.as_deref().unwrap_or_default());
    line("authority key", text.authority_key_id.as_deref().unwrap_or_default());
    line("SHA-256", &text.sha256);
    line("unreadable", &text.unreadable.join(", "));
    lines
}

pub(crate) struct Verify {
    pub(crate) target: String,
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) trust_domain: Option<TrustDomain>,
    pub(crate) crl: Option<PathBuf>,
}

pub(crate) fn verify(wish: Verify, output: Output) -> Outcome {
    let mut expect = Expectation { trust_domain: wish.trust_domain, ..Expectation::default() };
    if let Some(path) = &wish.crl {
        expect.crls = inspect::read_crls(path)?;
    }
    if let Some(path) = &wish.bundle {
        expect.roots = Some(inspect::read_certificates(path)?);
    } else if let Some(dir) = &wish.dir {
        let directory = Directory::look(dir)?;
        expect.roots = Some(directory.members().roots().map(|root| root.der.clone()).collect());
        expect.trust_domain.get_or_insert_with(|| directory.trust_domain().clone());
    }
    let presented = inspect::load(&wish.target)?;
    let findings = inspect::judge(&presented, &expect, OffsetDateTime::now_utc());
    let told = findings.iter().try_for_each(|finding| {
        let (verdict, at) = (finding.verdict.as_str(), finding.certificate);
        let line =
            format!("{verdict:<11} {at} {:<15} {} ({})", finding.rule, printable(&finding.detail), finding.source);
        let value = json!({
            "rule": finding.rule,
            "certificate": at,
            "verdict": verdict,
            "detail": finding.detail,
            "source": finding.source,
        });
        output.result(&[line], &value)
    });
    let rules = |verdict: Verdict| {
        let names = findings.iter().filter(move |f| f.verdict == verdict).map(|f| f.rule);
        names.collect::<Vec<_>>().join(", ")
    };
    let (broken, open) = (rules(Verdict::Fail), rules(Verdict::NotChecked));
    let message = match (broken.is_empty(), open.is_empty()) {
        // A reader that has gone does not make a bad verdict good.
        (true, true) => return told,
        (false, _) => format!("{} is no good X509-SVID here: it breaks {broken}; have a new one issued", wish.target),
        (true, false) => format!(
            "{} breaks no rule that was checked, but {open} could not be; give --bundle and, if need be, --trust-domain",
            wish.target
        ),
    };
    let code = if broken.is_empty() { "not_proved" } else { "rules_broken" };
    Err(Failure::new(Kind::Verdict, code, message))
}
