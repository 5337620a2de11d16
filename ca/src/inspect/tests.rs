//! The reading of files and addresses. What each rule refuses stands in the table of hostile certificates, which is held
//! against the CA, the sidecar and these rules together (`ca/tests/hostile`).

use rcgen::{CertificateParams, KeyPair};
use time::OffsetDateTime;

use super::*;

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

#[test]
fn certificates_are_read_from_pem_and_from_der_and_from_nothing_else() {
    let certificate = CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap();
    let two = certificate.pem().repeat(2);
    assert_eq!(read_certificates(file(two.as_bytes()).path()).unwrap().len(), 2);
    assert_eq!(read_certificates(file(certificate.der()).path()).unwrap(), [certificate.der().clone()]);
    let key = KeyPair::generate().unwrap().serialize_pem();
    for bad in ["", "hello", key.as_str(), "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"] {
        let error = read_certificates(file(bad.as_bytes()).path()).unwrap_err();
        assert!(matches!(error, InspectError::NotCertificates { .. }), "{bad:?}: {error}");
    }
}

#[test]
fn an_address_is_a_host_and_a_port_and_a_path_is_not() {
    for address in ["ca.mesh:15012", "127.0.0.1:443", "[::1]:443"] {
        assert!(is_address(address), "{address}");
    }
    for path in ["cert.pem", "/tmp/a:b", "a:b", "a:0", ":443", "dir/x:443", "a:65536"] {
        assert!(!is_address(path), "{path}");
    }
}

#[test]
fn without_roots_nothing_is_proved() {
    let certificate = CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap();
    let presented = Presented { chain: vec![certificate.der().clone()], possession: None };
    let findings = judge(&presented, &Expectation::default(), OffsetDateTime::now_utc());
    let path = findings.iter().find(|f| f.rule == "path").unwrap();
    assert_eq!(path.verdict, Verdict::NotChecked);
    assert!(path.detail.contains("--bundle"), "{}", path.detail);
}
