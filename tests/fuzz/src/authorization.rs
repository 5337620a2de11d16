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

/// The words in which a header of the same shape is refused that shows nothing.
fn words_for_nothing(header: &str) -> Option<String> {
    let masked = match header.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => format!("Bearer {}", "x".repeat(token.len())),
        _ => "x".to_owned(),
    };
    Credential::of(Some(&masked), None).err().map(|refusal| refusal.to_string())
}

/// A header alone decides, a certificate beside it changes nothing, and a refusal's words do not depend on what was shown.
pub fn check(data: &[u8]) -> bool {
    let Ok(header) = std::str::from_utf8(data) else { return false };
    let beside = CertificateDer::from(data.to_vec());
    for peer in [None, Some(beside.clone())] {
        match Credential::of(Some(header), peer) {
            Ok(credential) => assert_eq!(Some(credential.as_str()), expected(header), "{header:?}"),
            Err(refusal) => {
                assert_eq!(expected(header), None, "{header:?}: {refusal}");
                let words = Some(refusal.to_string());
                assert_eq!(words, words_for_nothing(header), "the log would show a secret of {header:?}");
            }
        }
    }
    assert!(matches!(Credential::of(None, Some(beside)), Ok(Credential::Certificate(_))));
    expected(header).is_some()
}
