//! Files of certificates as `inspect` and `verify` read them, and chains as they are judged.

use std::{path::Path, sync::OnceLock};

use outrigger_ca::inspect::{Expectation, Presented, Verdict, certificates_in, describe, judge};
use outrigger_identity::SpiffeId;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose};
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, UnixTime},
};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::signed;

/// More than this a file does not hold here: every certificate costs time.
const MOST: usize = 8;

fn root() -> &'static CertificateDer<'static> {
    static ROOT: OnceLock<CertificateDer<'static>> = OnceLock::new();
    ROOT.get_or_init(|| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.self_signed(signed::key()).unwrap().der().clone()
    })
}

/// No input makes a reader panic, and a chain that passes every rule passes those that matter by another reading too:
/// one URI name, a workload's id, no CA, and a path by webpki for both ends of a connection.
pub fn check(data: &[u8]) -> bool {
    let Some((kind, rest)) = data.split_first() else { return false };
    let bytes = if kind % 2 == 0 { rest.to_vec() } else { signed::body(rest) };
    let Ok(mut chain) = certificates_in(Path::new("fuzzed"), bytes) else { return false };
    assert!(!chain.is_empty(), "a file without certificates was accepted");
    chain.truncate(MOST);
    let now = OffsetDateTime::now_utc();
    for certificate in &chain {
        let _ = describe(certificate, now);
    }
    let leaf = chain[0].clone();
    let presented = Presented { chain, possession: None };
    let expect = Expectation { roots: Some(vec![root().clone()]), trust_domain: None, crls: Vec::new() };
    let findings = judge(&presented, &expect, now);
    assert!(!findings.is_empty());
    if findings.iter().any(|f| f.verdict == Verdict::Fail) {
        return false;
    }
    let (rest, parsed) = X509Certificate::from_der(&leaf).unwrap();
    assert!(rest.is_empty() && !parsed.is_ca());
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    let uris: Vec<_> = names.value.general_names.iter().filter(|n| matches!(n, GeneralName::URI(_))).collect();
    let [GeneralName::URI(uri)] = uris[..] else { panic!("{} URI names passed", uris.len()) };
    SpiffeId::parse(uri).unwrap();
    let (anchors, end) = ([anchor_from_trusted_cert(root()).unwrap()], EndEntityCert::try_from(&leaf).unwrap());
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
        let between = &presented.chain[1..];
        end.verify_for_usage(algorithms, &anchors, between, UnixTime::now(), usage, None, None).unwrap();
    }
    true
}
