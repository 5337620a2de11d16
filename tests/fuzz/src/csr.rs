//! Certificate requests: the first byte says what the rest is.

use std::{
    collections::HashMap,
    io::Write as _,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use outrigger_ca::authority::{MAX_CSR_LEN, RequestedKey};
use rcgen::{PublicKeyData as _, SubjectPublicKeyInfo};

use crate::signed;

/// The text that these bytes stand for: PEM as it is, DER in PEM, a signed body, a signed body with a right key.
pub(crate) fn text(data: &[u8]) -> Option<String> {
    let (kind, rest) = data.split_first()?;
    let der = match kind % 4 {
        0 => return String::from_utf8(rest.to_vec()).ok(),
        1 => rest.to_vec(),
        2 => signed::body(rest),
        _ => signed::request(rest),
    };
    Some(pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der)))
}

/// The key in a request, if OpenSSL too finds that it has signed it.
fn openssl(text: &str) -> Option<String> {
    static SEEN: Mutex<Option<HashMap<String, Option<String>>>> = Mutex::new(None);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let seen = seen.get_or_insert_default();
    // What stands around the block does not count; one request is asked about once.
    let block = text.split_once("-----BEGIN").map_or(text, |(_, block)| block);
    let block = block.split("-----END").next().unwrap_or(block).to_owned();
    let ask = || {
        let mut child = Command::new("openssl")
            .args(["req", "-verify", "-noout", "-pubkey"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        out.status.success().then(|| String::from_utf8(out.stdout).unwrap())
    };
    seen.entry(block).or_insert_with(ask).clone()
}

/// What is accepted is short enough, its key is of an allowed kind, and OpenSSL finds the same key and a right signature.
pub fn check(data: &[u8]) -> bool {
    let Some(text) = text(data) else { return false };
    let Ok(accepted) = RequestedKey::from_csr_pem(&text) else { return false };
    assert!(text.len() <= MAX_CSR_LEN);
    let theirs = openssl(&text).unwrap_or_else(|| panic!("OpenSSL refuses what was accepted:\n{text}"));
    let theirs = SubjectPublicKeyInfo::from_pem(&theirs).unwrap();
    let allowed = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
    assert!(allowed.contains(&theirs.algorithm()), "a key of another kind:\n{text}");
    assert_eq!(RequestedKey::of(&theirs).unwrap(), accepted, "two readers see two keys:\n{text}");
    true
}
