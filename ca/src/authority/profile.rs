//! What the certificates look like: SPIFFE X509-SVID section 4 and RFC 5280, nothing left to a library's defaults.
//!
//! rcgen's defaults that would be wrong here: a serial that is a hash of the key, validity from 1975 to 4096, a
//! common name, no key identifier in a leaf, and CA:FALSE encoded as an explicit FALSE, which is not DER.

use std::{net::IpAddr, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use time::OffsetDateTime;

use super::{AuthorityError, BACKDATE, Subject};
use outrigger_identity::TrustDomain;

const OID_SUBJECT_KEY_ID: &[u64] = &[2, 5, 29, 14];
const OID_BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
/// `SEQUENCE {}`: cA is FALSE by default, and DER forbids writing a default (X.690 section 11.5).
const CA_FALSE: &[u8] = &[0x30, 0x00];

/// Serial and validity of one certificate.
#[derive(Clone)]
pub(super) struct Window {
    pub(super) serial: [u8; 20],
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
}

impl Window {
    /// A window of `lifetime` from `now`, which begins [`BACKDATE`] earlier, and a fresh serial.
    pub(super) fn new(now: OffsetDateTime, lifetime: Duration) -> Result<Self, AuthorityError> {
        // X.509 has whole seconds.
        let now = now.replace_nanosecond(0).unwrap_or(now);
        Ok(Self { serial: serial()?, not_before: now - BACKDATE, not_after: now + lifetime })
    }
}

/// Random bytes from the crypto provider.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], AuthorityError> {
    let mut bytes = [0; N];
    rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut bytes).map_err(|_| AuthorityError::Random)?;
    Ok(bytes)
}

/// A serial of the full 20 octets (RFC 5280 section 4.1.2.2) with 158 random bits: positive, and no leading zero.
fn serial() -> Result<[u8; 20], AuthorityError> {
    let mut bytes = random_bytes::<20>()?;
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    Ok(bytes)
}

fn base(window: &Window) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&window.serial));
    params.not_before = window.not_before;
    params.not_after = window.not_after;
    params.use_authority_key_identifier_extension = true;
    params
}

fn leaf(window: &Window, key: &impl PublicKeyData) -> CertificateParams {
    let mut params = base(window);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // IsCa::NoCa makes rcgen write neither of these two.
    let id = params.key_identifier(key);
    let mut octet_string = vec![0x04, id.len() as u8]; // SHA-256 cut to 20 octets, so the length is one octet
    octet_string.extend_from_slice(&id);
    let mut constraints = CustomExtension::from_oid_content(OID_BASIC_CONSTRAINTS, CA_FALSE.to_vec());
    constraints.set_criticality(true);
    params.custom_extensions = vec![CustomExtension::from_oid_content(OID_SUBJECT_KEY_ID, octet_string), constraints];
    params
}

/// A workload's certificate: one URI SAN, its DNS SANs, and an empty subject, which makes the SAN critical.
pub(super) fn workload(
    subject: &Subject,
    key: &impl PublicKeyData,
    window: &Window,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = leaf(window, key);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names.push(SanType::URI(subject.id.as_str().try_into()?));
    for name in &subject.dns_names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    Ok(params)
}

/// The enrolment server's certificate: DNS and IP SANs, no SPIFFE id, serverAuth alone.
pub(super) fn server(
    names: &[String],
    key: &impl PublicKeyData,
    window: &Window,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = leaf(window, key);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    Ok(params)
}

/// A CA's certificate. Its URI SAN is the trust domain without a path (SPIFFE X509-SVID section 3).
fn ca(domain: &TrustDomain, name: &str, window: &Window) -> Result<CertificateParams, AuthorityError> {
    let mut params = base(window);
    // A trust domain may be longer than a common name may be (64, RFC 5280 appendix A), so it is not in there;
    // the digits tell one CA's certificates from another's in a list.
    let digits = super::hex(&window.serial[..4]);
    params.distinguished_name.push(DnType::CommonName, format!("Outrigger {name} {digits}"));
    params.subject_alt_names.push(SanType::URI(format!("spiffe://{domain}").try_into()?));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

pub(super) fn root(domain: &TrustDomain, window: &Window) -> Result<CertificateParams, AuthorityError> {
    let mut params = ca(domain, "root", window)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(params)
}

pub(super) fn intermediate(domain: &TrustDomain, window: &Window) -> Result<CertificateParams, AuthorityError> {
    let mut params = ca(domain, "intermediate", window)?;
    // It signs leaves and nothing that could sign further.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    Ok(params)
}
