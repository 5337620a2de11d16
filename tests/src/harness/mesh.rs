//! The network between the pods, and what all tests of one mesh share.

use std::{
    cell::Cell,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use super::{
    dns::Dns,
    pod::{Inside, Pod, tail},
};

const PREFIX: &str = "outrigger-e2e-";
/// The lines of each log that a failed test prints.
const TAIL: usize = 40;

/// Tests that measure run alone in their process; all others beside each other.
static TURN: RwLock<()> = RwLock::new(());

/// Held for its drop alone.
enum Turn {
    Shared(#[allow(dead_code)] RwLockReadGuard<'static, ()>),
    Alone(#[allow(dead_code)] RwLockWriteGuard<'static, ()>),
}

/// A bridge, a DNS server at 10.77.0.2 and fd77::2, and the folder of everything.
pub struct Mesh {
    /// The DNS server of all pods.
    pub dns: Dns,
    /// The folder of everything, readable by all.
    pub dir: PathBuf,
    bridge: Inside,
    next: Cell<u8>,
    logs: Arc<Mutex<Vec<PathBuf>>>,
    // Last, so that the pods are gone before the next test measures.
    _turn: Turn,
}

/// The folder of the binaries under test.
pub fn bin_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        // target/e2e/deps/TEST-HASH: the binaries are one folder up.
        let beside = || std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
        let dir = std::env::var_os("OUTRIGGER_BIN_DIR").map_or_else(beside, PathBuf::from);
        for name in ["outrigger-sidecar", "outrigger-ca", "outrigger-iptables", "outrigger-workload"] {
            assert!(
                dir.join(name).is_file(),
                "there is no {name} in {}; build it with \"cargo build --profile e2e\" or set OUTRIGGER_BIN_DIR",
                dir.display()
            );
        }
        dir
    })
}

impl Mesh {
    /// A mesh for a test that may run beside others.
    pub fn new() -> Self {
        Self::make(Turn::Shared(TURN.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// A mesh for a test that measures or that needs the whole machine.
    pub fn alone() -> Self {
        Self::make(Turn::Alone(TURN.write().unwrap_or_else(PoisonError::into_inner)))
    }

    fn make(turn: Turn) -> Self {
        bin_dir();
        sweep();
        let dir =
            tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir().unwrap().keep();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.join("bin")).unwrap();
        fs::create_dir(dir.join("logs")).unwrap();
        fs::write(dir.join("resolv.conf"), "nameserver 10.77.0.2\noptions timeout:1 attempts:2\n").unwrap();
        let bridge = Inside::new("bridge");
        bridge.ip("link set lo up\nlink add br0 type bridge stp_state 0 forward_delay 0\nlink set br0 up\n".to_owned());
        let logs = Arc::default();
        let pod = Self::join(&bridge, &dir, &logs, "dns", 2);
        Self { dns: Dns::start(pod), dir, bridge, next: Cell::new(10), logs, _turn: turn }
    }

    /// A new pod on the bridge, its interface up and its addresses set.
    pub fn pod(&self, name: &str) -> Pod {
        let index = self.next.replace(self.next.get() + 1);
        Self::join(&self.bridge, &self.dir, &self.logs, name, index)
    }

    fn join(bridge: &Inside, dir: &Path, logs: &Arc<Mutex<Vec<PathBuf>>>, name: &str, index: u8) -> Pod {
        let inside = Inside::new(name);
        inside.run(|| {
            // An address is of use at once, not after a second of duplicate detection.
            fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
            fs::write("/proc/sys/net/ipv6/conf/default/accept_ra", "0").unwrap();
        });
        bridge.ip(format!(
            "link add veth{index} type veth peer name eth0 netns {}\nlink set veth{index} master br0 up\n",
            inside.path
        ));
        let pod = Pod::new(name, index, inside, dir.to_owned(), Arc::clone(logs));
        pod.inside.ip(format!(
            "link set lo up\nlink set eth0 up\naddr add {}/16 dev eth0\naddr add {}/64 dev eth0 nodad\n",
            pod.v4, pod.v6
        ));
        // The sidecar's user must be able to reach the binaries wherever the tree is, even under /root.
        pod.inside.mount(super::mesh::bin_dir(), &dir.join("bin"));
        let resolv = fs::canonicalize("/etc/resolv.conf").unwrap_or_else(|e| panic!("no /etc/resolv.conf: {e}"));
        pod.inside.mount(&dir.join("resolv.conf"), &resolv);
        pod
    }
}

impl Default for Mesh {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in self.logs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                eprintln!("--- {}\n{}", log.display(), tail(log, TAIL));
            }
        }
        if std::env::var_os("OUTRIGGER_KEEP_LOGS").is_none() {
            // A leftover is removed by the next run.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Removes what earlier runs left behind that were killed.
fn sweep() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        for entry in fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    });
}
