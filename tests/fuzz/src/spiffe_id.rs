//! SPIFFE ids against the grammar of the SPIFFE-ID standard, sections 2.1 to 2.3, written a second time and another way.

use outrigger_identity::{SpiffeId, TrustDomain};

/// The standard's grammar as a machine that takes one byte after the other.
fn is_workload_id(text: &[u8]) -> bool {
    enum At {
        Domain(usize),
        Segment { length: usize, dots: bool },
    }
    let Some(rest) = text.strip_prefix(b"spiffe://") else { return false };
    let mut at = At::Domain(0);
    for byte in rest {
        at = match (at, byte) {
            (At::Domain(1..=255), b'/') => At::Segment { length: 0, dots: true },
            (At::Domain(n), b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_') => At::Domain(n + 1),
            (At::Segment { length, dots }, b'/') if length > 0 && !(dots && length <= 2) => {
                At::Segment { length: 0, dots: true }
            }
            (At::Segment { length, dots }, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_') => {
                At::Segment { length: length + 1, dots: dots && *byte == b'.' }
            }
            _ => return false,
        };
    }
    text.len() <= 2048 && matches!(at, At::Segment { length, dots } if length > 0 && !(dots && length <= 2))
}

/// Accepted exactly if the grammar accepts it, and then the same text in every form.
pub fn check(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let parsed = SpiffeId::parse(text);
    assert_eq!(parsed.is_ok(), is_workload_id(data), "{text:?}: {parsed:?}");
    let accepted = parsed.is_ok();
    if let Ok(id) = parsed {
        assert_eq!(id.as_str(), text);
        assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
        assert!(id.is_member_of(&id.trust_domain()));
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<SpiffeId>(&json).unwrap(), id);
        assert_eq!(id.to_string().parse::<SpiffeId>().unwrap(), id);
    }
    let domain = TrustDomain::parse(text);
    assert_eq!(domain.is_ok(), is_workload_id(format!("spiffe://{text}/a").as_bytes()) && !text.contains('/'));
    if let Ok(domain) = domain {
        assert_eq!(domain.as_str(), text);
    }
    accepted
}
