//! Private keys on disk: PKCS#8, or the same encrypted with a password.
//!
//! No standard container holds an Argon2id key: PKCS#5's schemes, which an `ENCRYPTED PRIVATE KEY` names by their object
//! identifiers, know PBKDF2 and scrypt, and so does age's. So the container is our own, and as plain as can be: PEM whose
//! headers hold the parameters, and whose body is the PKCS#8 under AES-256-GCM with the headers as associated data, so
//! that nothing in the file can be changed.
//!
//! ```text
//! -----BEGIN OUTRIGGER ENCRYPTED PRIVATE KEY-----
//! Version: 1
//! Argon2id: v=19,m=65536,t=3,p=4
//! Salt: <32 hex digits>
//! Nonce: <24 hex digits>
//!
//! <base64>
//! -----END OUTRIGGER ENCRYPTED PRIVATE KEY-----
//! ```

use std::{fmt, path::Path};

use argon2::{Argon2, Block, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use pem::{EncodeConfig, LineEnding, Pem};
use zeroize::{Zeroize as _, Zeroizing};

use super::{AuthorityError, files, hex, keys::SecretKey, random_bytes};

const TAG: &str = "OUTRIGGER ENCRYPTED PRIVATE KEY";
const PLAIN_TAG: &str = "PRIVATE KEY";
/// The second of the two choices that RFC 9106 section 4 recommends, for when 2 GiB are too much: 64 MiB, three passes,
/// four lanes, a salt of 128 bits.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// What a file may ask for at most, so that reading one cannot take the machine's memory or a day.
const MAX_MEMORY_KIB: u32 = 2 * 1024 * 1024;
const MAX_PASSES: u32 = 64;
const MAX_LANES: u32 = 64;
/// A file that is longer holds no key of ours, in bytes.
const MAX_FILE: u64 = 64 * 1024;
/// The longest password, in bytes.
const MAX_PASSWORD: u64 = 4096;

/// A password, wiped when it goes.
pub struct Password(Zeroizing<Vec<u8>>);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(hidden)")
    }
}

impl Password {
    /// Takes a password. One newline at its end, as editors and `echo` leave it, is no part of it.
    pub fn new(bytes: Vec<u8>) -> Result<Self, AuthorityError> {
        let mut bytes = Zeroizing::new(bytes);
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        if bytes.is_empty() { Err(AuthorityError::EmptyPassword) } else { Ok(Self(bytes)) }
    }

    /// Reads a file that holds the password and nothing else.
    pub fn from_file(path: &Path) -> Result<Self, AuthorityError> {
        files::warn_if_shared(path);
        Self::new(read(path, MAX_PASSWORD)?.to_vec())
    }
}

/// The text of a key file: encrypted if there is a password.
pub(super) fn seal(key: &SecretKey, password: Option<&Password>) -> Result<Zeroizing<String>, AuthorityError> {
    let Some(password) = password else { return Ok(key.to_pem()) };
    let (salt, nonce) = (random_bytes::<16>()?, random_bytes::<12>()?);
    let params = Params::new(MEMORY_KIB, PASSES, LANES, Some(32)).map_err(|e| AuthorityError::Crypto(e.to_string()))?;
    let mut file = Pem::new(TAG, Vec::new());
    let headers = [
        ("Version", "1".to_owned()),
        ("Argon2id", format!("v=19,m={MEMORY_KIB},t={PASSES},p={LANES}")),
        ("Salt", hex(&salt)),
        ("Nonce", hex(&nonce)),
    ];
    for (name, value) in &headers {
        file.headers_mut().add(name, value).map_err(|e| AuthorityError::Crypto(e.to_string()))?;
    }
    let cipher = cipher(password, &salt, params)?;
    // The plaintext is encrypted where it lies, and with room for the tag, so nothing of it is left behind.
    let der = key.to_pkcs8();
    let mut body = Zeroizing::new(Vec::with_capacity(der.len() + AES_256_GCM.tag_len()));
    body.extend_from_slice(&der);
    cipher
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(associated(&file)), &mut *body)
        .map_err(|_| AuthorityError::Crypto("AES-256-GCM did not encrypt".into()))?;
    let mut sealed = Pem::new(TAG, body.to_vec());
    *sealed.headers_mut() = file.headers().clone();
    Ok(Zeroizing::new(pem::encode_config(&sealed, EncodeConfig::new().set_line_ending(LineEnding::LF))))
}

/// Whether a key file is encrypted with a password.
pub fn is_encrypted(path: &Path) -> Result<bool, AuthorityError> {
    parse(path).map(|file| file.tag() == TAG)
}

/// Reads a key file of either kind.
pub(super) fn open(path: &Path, password: Option<&Password>) -> Result<SecretKey, AuthorityError> {
    files::warn_if_shared(path);
    let file = parse(path)?;
    let damaged = |why: &str| files::damaged(path, why.to_owned());
    let shown = || path.display().to_string();
    let der = match file.tag() {
        TAG => {
            let password = password.ok_or_else(|| AuthorityError::Locked { path: shown() })?;
            unseal(file, password, path)?
        }
        PLAIN_TAG => {
            if password.is_some() {
                tracing::warn!(file = %path.display(), "a password was given, but the key is not encrypted");
            }
            Zeroizing::new(file.into_contents())
        }
        other => return Err(damaged(&format!("it holds a \"{other}\" and no private key"))),
    };
    SecretKey::from_pkcs8(&der).map_err(|e| damaged(&format!("its key cannot be read: {e}")))
}

fn unseal(file: Pem, password: &Password, path: &Path) -> Result<Zeroizing<Vec<u8>>, AuthorityError> {
    let damaged = |why: &str| files::damaged(path, why.to_owned());
    let header = |name: &str| file.headers().get(name).ok_or_else(|| damaged(&format!("it has no header {name}")));
    if header("Version")? != "1" {
        return Err(damaged("its version is not 1; a newer outrigger-ca may have written it"));
    }
    let params = params(header("Argon2id")?).ok_or_else(|| damaged("its Argon2id parameters are not acceptable"))?;
    let salt = unhex::<16>(header("Salt")?).ok_or_else(|| damaged("its salt is not 32 hex digits"))?;
    let nonce = unhex::<12>(header("Nonce")?).ok_or_else(|| damaged("its nonce is not 24 hex digits"))?;
    let associated = associated(&file);
    let cipher = cipher(password, &salt, params)?;
    let mut body = Zeroizing::new(file.into_contents());
    let length = cipher
        .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(associated), &mut body)
        .map_err(|_| AuthorityError::WrongPassword { path: path.display().to_string() })?
        .len();
    body.truncate(length);
    Ok(body)
}

/// `v=19,m=…,t=…,p=…` within the limits.
fn params(text: &str) -> Option<Params> {
    let mut parts = text.split(',');
    let mut number = |name: &str| parts.next()?.strip_prefix(name)?.strip_prefix('=')?.parse::<u32>().ok();
    let (version, memory, passes, lanes) = (number("v")?, number("m")?, number("t")?, number("p")?);
    let within = version == 19 && memory <= MAX_MEMORY_KIB && passes <= MAX_PASSES && lanes <= MAX_LANES;
    if !within || parts.next().is_some() {
        return None;
    }
    Params::new(memory, passes, lanes, Some(32)).ok()
}

fn cipher(password: &Password, salt: &[u8], params: Params) -> Result<LessSafeKey, AuthorityError> {
    let mut memory = Vec::new();
    // A vector that finds no memory ends the process; this is an error like any other.
    memory.try_reserve_exact(params.block_count()).map_err(|_| AuthorityError::NoMemory(params.m_cost() / 1024))?;
    memory.resize(params.block_count(), Block::new());
    let mut key = Zeroizing::new([0; 32]);
    let derived = Argon2::new(argon2::Algorithm::Argon2id, Version::V0x13, params).hash_password_into_with_memory(
        &password.0,
        salt,
        &mut *key,
        &mut memory,
    );
    // What is left in there would save a guesser the last pass.
    memory.iter_mut().for_each(|block| block.zeroize());
    derived.map_err(|e| AuthorityError::Crypto(e.to_string()))?;
    let key = UnboundKey::new(&AES_256_GCM, &*key).map_err(|_| AuthorityError::Crypto("AES-256-GCM".into()))?;
    Ok(LessSafeKey::new(key))
}

/// The headers, in their order, as they stand in the file.
fn associated(file: &Pem) -> Vec<u8> {
    let headers = file.headers().iter().map(|(name, value)| format!("{name}: {value}\n"));
    std::iter::once(format!("{TAG}\n")).chain(headers).collect::<String>().into_bytes()
}

fn parse(path: &Path) -> Result<Pem, AuthorityError> {
    let text = read(path, MAX_FILE)?;
    pem::parse(&*text).map_err(|e| files::damaged(path, format!("it is not PEM: {e}")))
}

fn read(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, AuthorityError> {
    use std::io::Read as _;
    let fail = |e| files::error("read", path, e);
    let file = std::fs::File::open(path).map_err(fail)?;
    // All the room at once: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit as usize + 1));
    file.take(limit + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > limit {
        return Err(files::damaged(path, format!("it is longer than {limit} bytes")));
    }
    Ok(bytes)
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{super::Algorithm, *};
    use rcgen::PublicKeyData as _;

    fn password(text: &str) -> Password {
        Password::new(text.into()).unwrap()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_sealed_key_of_each_kind_opens_with_its_password_alone() {
        for algorithm in [Algorithm::P256, Algorithm::P384, Algorithm::Ed25519] {
            let key = SecretKey::generate(algorithm).unwrap();
            let text = seal(&key, Some(&password("correct horse"))).unwrap();
            let file = file(&text);
            // A newline at the end of the password's file is not part of the password.
            let read = open(file.path(), Some(&password("correct horse\n"))).unwrap();
            assert_eq!(read.subject_public_key_info(), key.subject_public_key_info());
            let wrong = open(file.path(), Some(&password("Correct horse"))).unwrap_err();
            assert!(matches!(wrong, AuthorityError::WrongPassword { .. }), "{wrong}");
            let locked = open(file.path(), None).unwrap_err();
            assert!(matches!(locked, AuthorityError::Locked { .. }), "{locked}");
            assert!(!text.contains(key.to_pem().lines().nth(1).unwrap()), "the key stands in the file");
        }
    }

    #[test]
    fn the_same_key_and_password_make_another_file_each_time() {
        let key = SecretKey::generate(Algorithm::P256).unwrap();
        let sealed = || seal(&key, Some(&password("x"))).unwrap();
        let (one, two) = (sealed(), sealed());
        for (a, b) in one.lines().zip(two.lines()).filter(|(a, _)| a.starts_with("Salt") || a.starts_with("Nonce")) {
            assert_ne!(a, b);
        }
    }

    #[test]
    fn nothing_in_a_sealed_file_can_be_changed() {
        let key = SecretKey::generate(Algorithm::P256).unwrap();
        let text = seal(&key, Some(&password("x"))).unwrap();
        let fails = |text: &str| open(file(text).path(), Some(&password("x"))).unwrap_err();
        // Other costs are other bytes for the cipher too.
        let cheap = fails(&text.replace("m=65536", "m=65535"));
        assert!(matches!(cheap, AuthorityError::WrongPassword { .. }), "{cheap}");
        let added = fails(&text.replace("Version: 1\n", "Version: 1\nComment: x\n"));
        assert!(matches!(added, AuthorityError::WrongPassword { .. }), "{added}");
        let body = text.lines().nth(6).unwrap();
        let other: String = body.chars().rev().collect();
        assert!(matches!(fails(&text.replace(body, &other)), AuthorityError::WrongPassword { .. }));
        for (from, to) in [
            ("Version: 1", "Version: 2"),
            ("m=65536", "m=4294967295"),
            ("m=65536", "m=0"),
            ("t=3", "t=1000"),
            ("p=4", "p=0"),
            ("v=19", "v=16"),
            ("p=4", "p=4,x=1"),
            ("Salt: ", "Salt: zz"),
            ("Nonce: ", "Nope: "),
            ("OUTRIGGER ENCRYPTED", "RSA"),
        ] {
            let error = fails(&text.replace(from, to));
            assert!(matches!(error, AuthorityError::Damaged { .. }), "{from} as {to}: {error}");
        }
        assert!(matches!(fails(""), AuthorityError::Damaged { .. }));
        assert!(matches!(fails(&"x".repeat(70_000)), AuthorityError::Damaged { .. }));
    }

    #[test]
    fn without_a_password_the_file_is_plain_pkcs8_and_an_empty_password_is_none() {
        let key = SecretKey::generate(Algorithm::P256).unwrap();
        let text = seal(&key, None).unwrap();
        assert!(text.starts_with("-----BEGIN PRIVATE KEY-----"));
        open(file(&text).path(), None).unwrap();
        for empty in ["", "\n", "\r\n"] {
            assert!(matches!(Password::new(empty.into()), Err(AuthorityError::EmptyPassword)), "{empty:?}");
        }
        assert!(!format!("{key:?} {:?}", password("secret")).contains("secret"));
    }
}
