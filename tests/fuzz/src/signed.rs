//! Bytes of the fuzzer's choice with a signature that is right, so that it gets past the check of signatures.

use std::sync::OnceLock;

use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};

/// ecdsa-with-SHA256, without parameters.
const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// The key that signs.
pub(crate) fn key() -> &'static KeyPair {
    static KEY: OnceLock<KeyPair> = OnceLock::new();
    KEY.get_or_init(|| KeyPair::generate().unwrap())
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    match length {
        0..128 => out.push(length as u8),
        128..256 => out.extend([0x81, length as u8]),
        256..65536 => out.extend([0x82, (length >> 8) as u8, length as u8]),
        _ => out.extend([0x83, (length >> 16) as u8, (length >> 8) as u8, length as u8]),
    }
    out.extend_from_slice(content);
    out
}

fn seal(body: &[u8]) -> Vec<u8> {
    let signature = key().sign(body).unwrap();
    tlv(0x30, &[body, ECDSA_SHA256, &tlv(0x03, &[&[0], &signature[..]].concat())].concat())
}

/// A certificate or a request of this body, signed by [`key`].
pub(crate) fn body(body: &[u8]) -> Vec<u8> {
    seal(body)
}

/// A request for [`key`] whose subject and attributes are these bytes.
pub(crate) fn request(rest: &[u8]) -> Vec<u8> {
    let (subject, attributes) = rest.split_at(rest.len() / 2);
    let spki = key().subject_public_key_info();
    let version = [0x02, 0x01, 0x00];
    seal(&tlv(0x30, &[&version[..], &tlv(0x30, subject), &spki, &tlv(0xa0, attributes)].concat()))
}
