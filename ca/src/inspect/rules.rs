//! One verdict for each rule of the SPIFFE X509-SVID standard, and of RFC 5280 where that is what it rests on.

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Presented, path};
use crate::authority::rfc3339;
use outrigger_identity::{SpiffeId, TrustDomain};

/// What came of one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Kept.
    Pass,
    /// Broken.
    Fail,
    /// Could not be looked at: something that it needs was not given, or the certificate is not readable that far.
    NotChecked,
}

impl Verdict {
    /// As `verify` prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::NotChecked => "not checked",
        }
    }
}

/// The verdict of one rule on one certificate.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The rule's name, in lower-case words joined by underscores.
    pub rule: &'static str,
    /// Where the rule stands.
    pub source: &'static str,
    /// Which certificate of the chain: 0 is the leaf.
    pub certificate: usize,
    /// What came of it.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
}

/// What the certificates are measured by.
#[derive(Debug, Clone, Default)]
pub struct Expectation {
    /// The roots that a path must lead to.
    pub roots: Option<Vec<CertificateDer<'static>>>,
    /// The trust domain that the id must belong to. `None`: the one that the roots name, if they do.
    pub trust_domain: Option<TrustDomain>,
    /// The revocation lists of the path's issuers. Empty: revocation is not looked at.
    pub crls: Vec<CertificateRevocationListDer<'static>>,
}

/// Judges a chain at `now`. It is good if every verdict is [`Verdict::Pass`].
pub fn judge(presented: &Presented, expect: &Expectation, now: OffsetDateTime) -> Vec<Finding> {
    let mut judge = Judge { findings: Vec::new(), certificate: 0 };
    for (at, der) in presented.chain.iter().enumerate() {
        judge.certificate = at;
        let parsed = match X509Certificate::from_der(der) {
            Ok(([], certificate)) => Ok(certificate),
            Ok(_) => Err("bytes follow its end".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let readable = parsed.and_then(|c| if c.version().0 == 2 { Ok(c) } else { Err("it is not version 3".into()) });
        let certificate =
            judge.require("readable", "RFC 5280 section 4.1", readable, |_| "a version 3 certificate".into());
        match certificate {
            Some(certificate) if at == 0 => judge.leaf(&certificate, expect, now),
            Some(certificate) => judge.issuer(&certificate),
            None => {}
        }
    }
    judge.certificate = 0;
    if let Some(possession) = &presented.possession {
        judge.require("possession", "RFC 8446 section 4.4.3", possession.clone(), |()| {
            "the server proved that it has the key".into()
        });
    }
    match &expect.roots {
        Some(roots) => {
            let found = path::find(&presented.chain, roots, &expect.crls, now);
            judge.require("path", "X509-SVID section 5.1, RFC 5280 section 6", found, |()| {
                "leads to a root of the bundle, for servers and for clients".into()
            });
        }
        None => judge.skip(
            "path",
            "X509-SVID section 5.1, RFC 5280 section 6",
            "no roots were given; name them with --bundle",
        ),
    }
    judge.findings
}

struct Judge {
    findings: Vec<Finding>,
    certificate: usize,
}

impl Judge {
    fn note(&mut self, rule: &'static str, source: &'static str, verdict: Verdict, detail: String) {
        self.findings.push(Finding { rule, source, certificate: self.certificate, verdict, detail });
    }

    fn skip(&mut self, rule: &'static str, source: &'static str, why: &str) {
        self.note(rule, source, Verdict::NotChecked, why.to_owned());
    }

    fn require<T>(
        &mut self,
        rule: &'static str,
        source: &'static str,
        result: Result<T, String>,
        good: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        match result {
            Ok(value) => {
                self.note(rule, source, Verdict::Pass, good(&value));
                Some(value)
            }
            Err(why) => {
                self.note(rule, source, Verdict::Fail, why);
                None
            }
        }
    }

    fn leaf(&mut self, certificate: &X509Certificate<'_>, expect: &Expectation, now: OffsetDateTime) {
        self.require("serial", "RFC 5280 section 4.1.2.2", serial(certificate), |()| {
            "positive, at most 20 octets".into()
        });
        let uri = self.require("one_uri", "X509-SVID section 2", only_uri(certificate), |uri| uri.clone());
        const ID: &str = "SPIFFE-ID section 2";
        const DOMAIN: &str = "X509-SVID section 5.2";
        let id = match &uri {
            Some(uri) => {
                let id = SpiffeId::parse(uri).map_err(|e| format!("\"{uri}\": {e}"));
                self.require("spiffe_id", ID, id, |id| format!("a workload's id with the path {}", id.path()))
            }
            None => {
                self.skip("spiffe_id", ID, "there is not one URI name");
                None
            }
        };
        match (&id, domain_of(expect)) {
            (None, _) => self.skip("trust_domain", DOMAIN, "there is no SPIFFE id"),
            (Some(_), Err(why)) => self.skip("trust_domain", DOMAIN, why),
            (Some(id), Ok(domain)) => {
                let member = if id.is_member_of(&domain) { Ok(()) } else { Err(format!("{id} is not in {domain}")) };
                self.require("trust_domain", DOMAIN, member, |()| format!("in {domain}"));
            }
        }
        self.require("leaf_not_ca", "X509-SVID section 4.1", not_ca(certificate), |()| "cA is false".into());
        self.require("key_usage", "X509-SVID section 4.3", leaf_usage(certificate), |()| {
            "critical, with digitalSignature".into()
        });
        self.require("no_signing", "X509-SVID section 4.3", no_signing(certificate), |()| {
            "neither keyCertSign nor cRLSign".into()
        });
        self.require("ext_key_usage", "X509-SVID section 4.4", purposes(certificate), |text| (*text).into());
        self.require("san_critical", "RFC 5280 section 4.2.1.6", san_critical(certificate), |text| (*text).into());
        let end = rfc3339(certificate.validity().not_after.to_datetime());
        self.require("validity", "RFC 5280 section 4.1.2.5", validity(certificate, now), |()| format!("until {end}"));
    }

    fn issuer(&mut self, certificate: &X509Certificate<'_>) {
        let ca = match certificate.basic_constraints() {
            Ok(Some(c)) if c.value.ca && c.critical => Ok(()),
            Ok(Some(c)) if c.value.ca => Err("basicConstraints is not critical".to_owned()),
            Ok(_) => Err("cA is not true".to_owned()),
            Err(_) => Err("basicConstraints cannot be read".to_owned()),
        };
        self.require("issuer_is_ca", "X509-SVID section 4.1", ca, |()| "cA is true, critical".into());
        let usage = match certificate.key_usage() {
            Ok(Some(u)) if u.value.key_cert_sign() && u.critical => Ok(()),
            Ok(Some(u)) if u.value.key_cert_sign() => Err("keyUsage is not critical".to_owned()),
            Ok(_) => Err("keyUsage has no keyCertSign".to_owned()),
            Err(_) => Err("keyUsage cannot be read".to_owned()),
        };
        self.require("issuer_may_sign", "X509-SVID section 4.3", usage, |()| "critical, with keyCertSign".into());
        let path = match uris(certificate) {
            Err(why) => Err(why),
            Ok(uris) => match &uris[..] {
                [] => Ok("no URI name".to_owned()),
                [uri] => match uri.strip_prefix("spiffe://").map(TrustDomain::parse) {
                    Some(Ok(domain)) => Ok(format!("the trust domain {domain} without a path")),
                    _ => Err(format!("\"{uri}\" is not a trust domain's id without a path")),
                },
                many => Err(format!("it has {} URI names", many.len())),
            },
        };
        self.require("issuer_id", "X509-SVID section 3.2", path, Clone::clone);
    }
}

fn serial(certificate: &X509Certificate<'_>) -> Result<(), String> {
    match certificate.raw_serial() {
        [] => Err("it is empty".into()),
        [first, ..] if first & 0x80 != 0 => Err("it is negative".into()),
        bytes if bytes.iter().all(|b| *b == 0) => Err("it is zero".into()),
        bytes if bytes.len() > 20 => Err(format!("it has {} octets", bytes.len())),
        _ => Ok(()),
    }
}

/// Every URI SAN, as written.
fn uris(certificate: &X509Certificate<'_>) -> Result<Vec<String>, String> {
    let san = certificate
        .subject_alternative_name()
        .map_err(|_| "subjectAltName cannot be read or stands twice".to_owned())?;
    let mut uris = Vec::new();
    for name in san.iter().flat_map(|san| &san.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push((*uri).to_owned()),
            // What cannot be read might be a second URI.
            GeneralName::Invalid(..) => return Err("subjectAltName has a name that cannot be read".into()),
            _ => {}
        }
    }
    Ok(uris)
}

fn only_uri(certificate: &X509Certificate<'_>) -> Result<String, String> {
    let mut uris = uris(certificate)?;
    match (uris.pop(), uris.len()) {
        (Some(uri), 0) => Ok(uri),
        (None, _) => Err("it has no URI name".into()),
        (Some(_), others) => Err(format!("it has {} URI names", others + 1)),
    }
}

/// What the caller said, else what the roots say of themselves.
fn domain_of(expect: &Expectation) -> Result<TrustDomain, &'static str> {
    if let Some(domain) = &expect.trust_domain {
        return Ok(domain.clone());
    }
    let roots = expect.roots.as_deref().ok_or("no roots were given; name them with --bundle")?;
    let mut named = roots.iter().filter_map(|der| {
        let (_, root) = X509Certificate::from_der(der).ok()?;
        let uris = uris(&root).ok()?;
        let [uri] = &uris[..] else { return None };
        TrustDomain::parse(uri.strip_prefix("spiffe://")?).ok()
    });
    let first = named.next().ok_or("the bundle's roots name no trust domain; say which with --trust-domain")?;
    if named.any(|other| other != first) {
        return Err("the bundle's roots name more than one trust domain; say which with --trust-domain");
    }
    Ok(first)
}

fn not_ca(certificate: &X509Certificate<'_>) -> Result<(), String> {
    match certificate.basic_constraints() {
        Ok(Some(c)) if c.value.ca => Err("cA is true".into()),
        Ok(_) => Ok(()),
        Err(_) => Err("basicConstraints cannot be read or stands twice".into()),
    }
}

fn leaf_usage(certificate: &X509Certificate<'_>) -> Result<(), String> {
    match certificate.key_usage() {
        Ok(None) => Err("it has no keyUsage".into()),
        Ok(Some(usage)) if !usage.critical => Err("keyUsage is not critical".into()),
        Ok(Some(usage)) if !usage.value.digital_signature() => Err("keyUsage has no digitalSignature".into()),
        Ok(Some(_)) => Ok(()),
        Err(_) => Err("keyUsage cannot be read or stands twice".into()),
    }
}

fn no_signing(certificate: &X509Certificate<'_>) -> Result<(), String> {
    match certificate.key_usage() {
        Ok(Some(usage)) if usage.value.key_cert_sign() => Err("keyUsage has keyCertSign".into()),
        Ok(Some(usage)) if usage.value.crl_sign() => Err("keyUsage has cRLSign".into()),
        Ok(_) => Ok(()),
        Err(_) => Err("keyUsage cannot be read or stands twice".into()),
    }
}

fn purposes(certificate: &X509Certificate<'_>) -> Result<&'static str, String> {
    match certificate.extended_key_usage() {
        Ok(None) => Ok("absent, so any"),
        Ok(Some(usage)) if usage.value.server_auth && usage.value.client_auth => Ok("serverAuth and clientAuth"),
        Ok(Some(_)) => Err("it is there without both serverAuth and clientAuth".into()),
        Err(_) => Err("extendedKeyUsage cannot be read or stands twice".into()),
    }
}

fn san_critical(certificate: &X509Certificate<'_>) -> Result<&'static str, String> {
    if certificate.subject().iter().next().is_some() {
        return Ok("the subject is not empty, so subjectAltName need not be critical");
    }
    match certificate.subject_alternative_name() {
        Ok(Some(san)) if san.critical => Ok("critical, because the subject is empty"),
        Ok(_) => Err("the subject is empty and subjectAltName is not critical".into()),
        Err(_) => Err("subjectAltName cannot be read or stands twice".into()),
    }
}

fn validity(certificate: &X509Certificate<'_>, now: OffsetDateTime) -> Result<(), String> {
    let (from, until) =
        (certificate.validity().not_before.to_datetime(), certificate.validity().not_after.to_datetime());
    if now < from {
        Err(format!("not valid before {}", rfc3339(from)))
    } else if now > until {
        Err(format!("expired at {}", rfc3339(until)))
    } else {
        Ok(())
    }
}
