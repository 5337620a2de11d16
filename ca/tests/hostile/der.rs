//! DER by hand, for what no encoder would write.

/// An element of fewer than 128 bytes.
pub(super) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    assert!(content.len() < 128);
    [&[tag, content.len() as u8][..], content].concat()
}

/// One DER element: its tag, its content, and what follows it.
pub(super) fn element(der: &[u8]) -> (u8, &[u8], &[u8]) {
    let (length, at) = match der[1] {
        short @ 0..=0x7f => (usize::from(short), 2),
        long => {
            let at = 2 + usize::from(long & 0x7f);
            (der[2..at].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), at)
        }
    };
    (der[0], &der[at..at + length], &der[at + length..])
}

/// As [`tlv`], of any length.
pub(super) fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().position(|byte| *byte != 0).unwrap_or(7)..];
    let head = match significant {
        [short @ 0..=0x7f] => vec![tag, *short],
        long => [&[tag, 0x80 | long.len() as u8], long].concat(),
    };
    [&head, content].concat()
}

/// The fields of a certificate's body, each with its head: version, serial, algorithm, issuer, validity, subject, key,
/// extensions.
pub(super) fn fields(certificate: &[u8]) -> Vec<Vec<u8>> {
    let (_, mut rest, _) = element(element(certificate).1);
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let (tag, content, after) = element(rest);
        fields.push(der(tag, content));
        rest = after;
    }
    fields
}
