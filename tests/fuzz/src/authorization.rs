//! The `authorization` header: what kind of proof it is taken for.

use outrigger_ca::attest::{Credential, MAX_TOKEN_LEN};
use rustls::pki_types::CertificateDer;

/// The kind by the words of RFC 9110 section 11.1 and RFC 6750 section 2.1.
fn expected(header: &str) -> Option<&'static str> {
    let (scheme, token) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") || token.len() > MAX_TOKEN_LEN {
        return None;
    }
    Some(if token.contains('.') { "service_account" } else { "token" })
}

/// A header alone decides, a certificate beside it changes nothing, and a refusal does not repeat what was shown.
pub fn check(data: &[u8]) -> bool {
    let Ok(header) = std::str::from_utf8(data) else { return false };
    let beside = CertificateDer::from(data.to_vec());
    for peer in [None, Some(beside.clone())] {
        match Credential::of(Some(header), peer) {
            Ok(credential) => assert_eq!(Some(credential.as_str()), expected(header), "{header:?}"),
            Err(refusal) => {
                assert_eq!(expected(header), None, "{header:?}: {refusal}");
                let words = refusal.to_string();
                assert!(header.len() < 32 || !words.contains(header), "the log would show a secret: {words}");
            }
        }
    }
    assert!(matches!(Credential::of(None, Some(beside)), Ok(Credential::Certificate(_))));
    expected(header).is_some()
}
