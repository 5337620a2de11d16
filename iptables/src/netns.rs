//! The network namespace: entering another one, and the lock that makes parallel runs take turns.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl},
    sched::{CloneFlags, setns},
};

use crate::Error;

/// The calling thread's namespace: `/proc/self` would be the main thread's.
const OURS: &str = "/proc/thread-self/ns/net";

/// Moves the calling thread into the network namespace at this path.
///
/// # Errors
/// When it is no network namespace, or we may not.
pub fn enter(path: &Path) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Netns { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))
}

/// Waits for the runs before us. The lock is on the namespace itself, so that it works in every mount namespace, on a
/// read-only root, and between exactly those runs that would disturb each other; the kernel drops it with its holders.
/// Whoever may open the file may hold it, the workload too: it can delay us for `wait`, no more, and is named.
/// The tools that we start hold it too: one that outlives us, killed, must not meet the run that repairs what it does.
pub(crate) fn lock(wait: Duration) -> Result<Flock<File>, Error> {
    let failed = |source| Error::System {
        what: format!("lock {OURS}"),
        source,
        remedy: "mount /proc; it names the network namespace",
    };
    let mut file = File::open(OURS).map_err(failed)?;
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|errno| failed(errno.into()))?;
    let deadline = Instant::now() + wait;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = back,
            Err((_, Errno::EWOULDBLOCK)) => {
                let who = holder(OURS).unwrap_or_else(|| "a process that is not seen from here".to_owned());
                return Err(Error::Busy(format!("{who} has held the lock of this network namespace for {wait:?}")));
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Connections that were open before the rules are picked up in their middle, which this setting forbids: they become
/// INVALID and are dropped.
pub(crate) fn warn_if_strict_conntrack(notices: &mut Vec<String>) {
    let setting = "net.netfilter.nf_conntrack_tcp_loose";
    if fs::read_to_string(format!("/proc/sys/{}", setting.replace('.', "/"))).is_ok_and(|text| text.trim() == "0") {
        notices.push(format!(
            "{setting} is 0: connections that were open before connection tracking began will stall; set it to 1"
        ));
    }
}

/// Who holds a lock on this file, as the kernel lists it (proc_locks(5)): for those of other pid namespaces it has no number.
fn holder(path: &str) -> Option<String> {
    let facts = fs::metadata(path).ok()?;
    let (major, minor) = (nix::sys::stat::major(facts.dev()), nix::sys::stat::minor(facts.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", facts.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = locks.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 708 00:04:4026531840 0 EOF; who waits has "->" after the number.
        let mut words = line.split_whitespace().skip(1);
        let is_held = words.next()? == "FLOCK" && words.nth(1)? == "WRITE";
        let pid: u32 = words.next()?.parse().ok().filter(|pid| *pid > 0)?;
        (is_held && words.next()? == place).then_some(pid)
    })?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let uid = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    Some(format!("process {pid} ({}, uid {uid})", name.trim()))
}
