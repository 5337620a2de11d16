//! Certificates: those of the real CA, and those that no real CA would issue.

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use time::OffsetDateTime;

use super::{Mesh, Pod, Process, pod::SIDECAR};

/// The trust domain of every test.
pub const TRUST_DOMAIN: &str = "mesh.example";

/// The id of a workload of this name.
pub fn id(name: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/test/sa/{name}")
}

/// The real CA in a pod of its own.
pub struct Ca {
    /// Its pod.
    pub pod: Pod,
    /// Its folder.
    pub dir: PathBuf,
}

impl Ca {
    /// Makes root, intermediate and log; nothing is served yet.
    pub fn init(mesh: &Mesh) -> Self {
        let pod = mesh.pod("ca");
        let dir = pod.folder("state").join("ca");
        let ca = Self { pod, dir };
        let (v4, v6) = (ca.pod.v4.to_string(), ca.pod.v6.to_string());
        ca.run(&["init", "--trust-domain", TRUST_DOMAIN, "--name", "ca.mesh", "--name", &v4, "--name", &v6]);
        ca
    }

    /// Runs a command of the CA's on its folder; gives back what it printed.
    pub fn run(&self, args: &[&str]) -> String {
        self.attempt(args).unwrap_or_else(|e| panic!("outrigger-ca {}: {e}", args.join(" ")))
    }

    /// The same, where it may fail; the error is all that it said.
    ///
    /// # Errors
    ///
    /// Where its exit status is not 0.
    pub fn attempt(&self, args: &[&str]) -> Result<String, String> {
        // "token create" and its like are two words.
        let words = if matches!(args[0], "token" | "log" | "bundle" | "rotate") { 2 } else { 1 };
        let (command, options) = args.split_at(words);
        let output = self.pod.output(SIDECAR, "outrigger-ca", &[command, &["--dir", self.dir()], options].concat());
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            Ok(out.trim_end().to_owned())
        } else {
            Err(format!("{}: {out}{err}", output.status))
        }
    }

    fn dir(&self) -> &str {
        self.dir.to_str().unwrap()
    }

    /// Issues a certificate for a pod that may serve these names; gives back the identity's folder.
    pub fn issue(&self, pod: &Pod, names: &[&str], ttl: &str) -> PathBuf {
        let out = pod.folder("identity");
        let id = id(&pod.name);
        let mut args = vec!["issue", "--id", &id, "--ttl", ttl, "--out", out.to_str().unwrap(), "--force"];
        names.iter().for_each(|name| args.extend(["--dns", name]));
        self.run(&args);
        out
    }

    /// Starts the server and waits until it takes connections.
    pub async fn serve(&self) -> Process {
        let mut process = self.pod.start(SIDECAR, "outrigger-ca", &["serve", "--dir", self.dir()]);
        super::eventually("the CA listens", Duration::from_secs(10), || {
            process.assert_running();
            let connecting = self.pod.connect(SocketAddr::new(self.pod.v4.into(), 15012));
            async { connecting.await.map(drop).map_err(|e| e.to_string()) }
        })
        .await;
        process
    }

    /// The `identity` part of a sidecar's configuration that enrols here with a fresh token for these names.
    pub fn enrolment(&self, pod: &Pod, names: &[&str], ttl: &str) -> serde_json::Value {
        let (dir, folder) = (pod.folder("identity"), pod.folder("enrolment"));
        let id = id(&pod.name);
        let mut args = vec!["token", "create", "--id", &id];
        names.iter().for_each(|name| args.extend(["--dns", name]));
        let (token, bundle) = (folder.join("token"), folder.join("ca-bundle.pem"));
        secret(&token, &self.run(&args));
        std::fs::write(&bundle, self.run(&["bundle", "show"]) + "\n").unwrap();
        serde_json::json!({
            "dir": dir,
            "ca": { "address": format!("{}:15012", self.pod.v4), "bundle": bundle, "token_file": token, "ttl": ttl },
        })
    }
}

/// Writes a file that only the sidecar may read.
pub fn secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(path, Some(SIDECAR), Some(SIDECAR)).unwrap();
}

/// What a certificate of the tests' own CA says; [`Leaf::of`] is a right one.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Its URI SANs.
    pub uris: Vec<String>,
    /// Its DNS and address SANs.
    pub names: Vec<String>,
    /// Begin of validity, seconds from now.
    pub from: i64,
    /// End of validity, seconds from now.
    pub until: i64,
}

impl Leaf {
    /// A right certificate of this workload.
    pub fn of(workload: &str, names: &[&str]) -> Self {
        Self { uris: vec![id(workload)], names: names.iter().map(|&n| n.to_owned()).collect(), from: -60, until: 3_600 }
    }
}

/// A certificate with its chain and key, as PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Leaf first.
    pub chain: String,
    /// PKCS#8.
    pub key: String,
}

/// A CA that issues whatever it is asked to, as an attacker's would.
pub struct TestCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// From itself up to what its root has signed; empty for a root.
    intermediates: String,
}

fn serial() -> SerialNumber {
    let mut bytes = [0; 16];
    fastrand::fill(&mut bytes);
    // Positive, and without a leading zero octet.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

impl TestCa {
    /// A root of this name.
    pub fn new(name: &str) -> Self {
        let issuer = CertifiedIssuer::self_signed(Self::params(name), KeyPair::generate().unwrap()).unwrap();
        Self { issuer, intermediates: String::new() }
    }

    /// An intermediate of this name under it.
    pub fn intermediate(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::signed_by(Self::params(name), key, &self.issuer).unwrap();
        let intermediates = issuer.pem() + &self.intermediates;
        Self { issuer, intermediates }
    }

    /// The certificates between what it issues and the root.
    pub fn intermediates(&self) -> &str {
        &self.intermediates
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial());
        params.not_before = OffsetDateTime::now_utc() - time::Duration::hours(1);
        params.not_after = OffsetDateTime::now_utc() + time::Duration::days(1);
        params.use_authority_key_identifier_extension = true;
        params
    }

    /// The root, as PEM.
    pub fn bundle(&self) -> String {
        self.issuer.pem()
    }

    /// Issues it, right or wrong.
    pub fn issue(&self, leaf: &Leaf) -> Issued {
        let key = KeyPair::generate().unwrap();
        Issued { chain: self.sign(leaf, &key) + &self.intermediates, key: key.serialize_pem() }
    }

    /// Signs it for somebody's key; the leaf alone.
    pub fn sign(&self, leaf: &Leaf, key: &impl PublicKeyData) -> String {
        let uris = leaf.uris.iter().map(|u| SanType::URI(u.as_str().try_into().unwrap()));
        let names = leaf.names.iter().map(|n| match n.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(n.as_str().try_into().unwrap()),
        });
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "tests");
        params.subject_alt_names = uris.chain(names).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        let now = OffsetDateTime::now_utc();
        params.not_before = now + time::Duration::seconds(leaf.from);
        params.not_after = now + time::Duration::seconds(leaf.until);
        // basicConstraints present and in DER: an empty sequence, critical (rcgen's own would spell out the default).
        let mut constraints = CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 0x00]);
        constraints.set_criticality(true);
        params.custom_extensions.push(constraints);
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    /// Issues it into the identity folder of a pod, with this CA's root as the bundle.
    pub fn install(&self, pod: &Pod, leaf: &Leaf) -> PathBuf {
        let dir = pod.folder("identity");
        let issued = self.issue(leaf);
        secret(&dir.join("cert.pem"), &issued.chain);
        secret(&dir.join("key.pem"), &issued.key);
        secret(&dir.join("bundle.pem"), &self.bundle());
        dir
    }
}
