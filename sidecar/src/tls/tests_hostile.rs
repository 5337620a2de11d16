//! The table of hostile certificates against the rules by which a sidecar knows its peers. The CA is held against the same
//! table, which is why it stands in the CA's tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use outrigger_identity::TrustDomain;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::UnixTime;

use super::{PeerRefusal, PeerRules, verify_chain};
use crate::identity::{TrustBundle, Usage};

#[path = "../../../ca/tests/hostile/table.rs"]
mod table;

use table::{Chain, Gate, HOSTILE, Pki};

fn authority(name: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI("spiffe://mesh.example".try_into().unwrap())];
    params.use_authority_key_identifier_extension = true;
    params
}

/// A root and an intermediate as `outrigger-ca init` makes them.
fn pki() -> Pki {
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let params = authority("root", BasicConstraints::Unconstrained);
    let root = params.self_signed(&root_key).unwrap();
    let issuer = Issuer::from_params(&params, &root_key);
    let intermediate = authority("intermediate", BasicConstraints::Constrained(0)).signed_by(&key, &issuer).unwrap();
    Pki::of(&root.pem(), &root_key.serialize_pem(), &intermediate.pem(), &key.serialize_pem())
}

/// The first refusal, as a server and as a client.
fn judge(pki: &Pki, chain: &Chain) -> Result<(), PeerRefusal> {
    let bundle = Arc::new(TrustBundle::from_der(vec![pki.root.clone()]).unwrap());
    let rules = PeerRules { bundle, trust_domain: TrustDomain::parse(table::TRUST_DOMAIN).unwrap() };
    let (leaf, intermediates) = chain.certificates.split_first().unwrap();
    for usage in [Usage::Server, Usage::Client] {
        verify_chain(leaf, intermediates, &rules, UnixTime::now(), usage)?;
    }
    Ok(())
}

#[test]
fn hostile_chains_are_refused_each_for_its_own_reason() {
    let pki = pki();
    assert_eq!(judge(&pki, &table::harmless(&pki)), Ok(()));
    let mut refused = 0;
    for hostile in HOSTILE {
        match judge(&pki, &hostile.chain(&pki)) {
            Err(refusal) => {
                assert_eq!(refusal.code(), hostile.sidecar, "{}: {refusal}", hostile.name);
                refused += 1;
            }
            // What only the standard's letter forbids, or only the CA's log can know: the CA refuses to renew it.
            Ok(()) => {
                assert_eq!(hostile.sidecar, "", "{} was accepted", hostile.name);
                assert!(matches!(hostile.ca, Gate::Renewal(_)), "{}: nobody refuses it", hostile.name);
            }
        }
    }
    assert!(refused >= 40, "{refused} of {} refused", HOSTILE.len());
}
