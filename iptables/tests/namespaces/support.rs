//! Two network namespaces joined by a veth, with real listeners and real clients in them.
//!
//! A namespace belongs to threads and descriptors of the test process alone, so nothing remains when it is killed. A
//! socket's user is the *filesystem* uid of the thread that makes it (that is what `meta skuid` and `-m owner` read),
//! which each thread sets for itself: no helper programs are needed.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::{Gid, Uid, geteuid, setfsgid, setfsuid},
};
use socket2::{Domain, SockRef, Socket, Type};
use tempfile::TempDir;

pub(crate) const ROOT: u32 = 0;
pub(crate) const APP: u32 = 1000;
pub(crate) const PROXY: u32 = 1337;
const PATIENCE: Duration = Duration::from_secs(3);

/// Whose socket it is: the user and group of its maker, and the mark on it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Who {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mark: u32,
}

impl From<u32> for Who {
    fn from(uid: u32) -> Self {
        Self { uid, ..Self::default() }
    }
}

/// A network namespace that lives as long as this value, or a thread in it.
pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        assert!(
            geteuid().is_root(),
            "these tests make network namespaces and rules: RUN THEM AS ROOT; nothing was tested"
        );
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare(CLONE_NEWNET): the tests need CAP_SYS_ADMIN");
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let namespace = Self { file };
        namespace.sh("ip link set lo up");
        namespace
    }

    /// A path that other programs can open.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs this in the namespace, with sockets that belong to the user.
    pub(crate) fn run<T: Send>(&self, uid: u32, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                setfsuid(Uid::from_raw(uid));
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a shell script that must succeed, and returns what it printed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.run(ROOT, || Command::new("sh").args(["-ec", script]).output().unwrap());
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A listener that tells each caller where it has landed, then echoes. `direct PORT from IP`, or for the sidecar's
    /// ports `inbound|outbound ORIGINAL-DESTINATION from IP`.
    pub(crate) fn listen(&self, uid: u32, port: u16, role: &'static str) {
        let listener = self.run(uid, || transparent_listener(port));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                thread::spawn(move || greet_and_echo(stream, port, role));
            }
        });
    }

    /// Connects, and reads where it has landed.
    pub(crate) fn dial(&self, who: impl Into<Who>, source: Option<&str>, to: &str, port: u16) -> Call {
        self.dial_within(who, source, to, port, PATIENCE)
    }

    /// The same for a connection that is not expected; a source that is not this host's makes a transparent socket.
    pub(crate) fn dial_within(
        &self,
        who: impl Into<Who>,
        source: Option<&str>,
        to: &str,
        port: u16,
        patience: Duration,
    ) -> Call {
        let to = self.address(to, port);
        let who = who.into();
        let stream = self.run(who.uid, || -> std::io::Result<TcpStream> {
            setfsgid(Gid::from_raw(who.gid));
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            if who.mark != 0 {
                socket.set_mark(who.mark)?;
            }
            if let Some(source) = source {
                socket.set_ip_transparent_v4(true)?;
                socket.bind(&SocketAddr::new(source.parse().unwrap(), 0).into())?;
            }
            socket.connect_timeout(&to.into(), patience)?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        let mut landed = String::new();
        match stream {
            Err(error) => Call { landed: format!("error: {:?}", error.kind()), stream: None },
            Ok(stream) => {
                let mut reader = BufReader::new(stream);
                if let Err(error) = reader.read_line(&mut landed) {
                    landed = format!("error while reading: {error}");
                }
                Call { landed: landed.trim().to_owned(), stream: Some(reader) }
            }
        }
    }

    /// Link-local addresses go through the veth; every namespace here calls it `eth0`.
    fn address(&self, to: &str, port: u16) -> SocketAddr {
        match to.parse().unwrap() {
            IpAddr::V6(ip) if ip.is_unicast_link_local() => {
                let scope = self.run(ROOT, || nix::net::if_::if_nametoindex("eth0").unwrap());
                SocketAddrV6::new(ip, port, 0, scope).into()
            }
            ip => SocketAddr::new(ip, port),
        }
    }
}

/// Transparent, so that it serves both modes.
pub(crate) fn transparent_listener(port: u16) -> TcpListener {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_ip_transparent_v4(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()).unwrap();
    socket.listen(64).unwrap();
    socket.into()
}

fn greet_and_echo(mut stream: TcpStream, port: u16, role: &str) {
    // Who has left already need not be greeted.
    let Ok(peer) = stream.peer_addr().map(plain) else { return };
    let place = if role == "direct" {
        port.to_string()
    } else {
        let socket = SockRef::from(&stream);
        let original = if peer.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
        // By TPROXY nothing is translated: what was dialled is the local address.
        let original = original.map_or_else(|_| stream.local_addr().unwrap(), |address| address.as_socket().unwrap());
        SocketAddr::new(plain(original), original.port()).to_string()
    };
    if stream.write_all(format!("{role} {place} from {peer}\n").as_bytes()).is_err() {
        return;
    }
    let mut bytes = [0; 1024];
    while let Ok(length) = stream.read(&mut bytes) {
        if length == 0 || stream.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
}

/// Without the scope of a link-local address, which differs between namespaces.
fn plain(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}

/// A connection, or why there is none.
pub(crate) struct Call {
    pub(crate) landed: String,
    stream: Option<BufReader<TcpStream>>,
}

impl Call {
    /// Whether bytes still travel both ways.
    pub(crate) fn is_alive(&mut self) -> bool {
        let Some(reader) = &mut self.stream else { return false };
        let mut line = String::new();
        reader.get_mut().write_all(b"ping\n").is_ok() && reader.read_line(&mut line).is_ok() && line == "ping\n"
    }

    /// Ends our half.
    pub(crate) fn half_close(&self) {
        self.stream.as_ref().unwrap().get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// The next line, if it comes within this time.
    pub(crate) fn next_line(&mut self, within: Duration) -> Option<String> {
        let reader = self.stream.as_mut()?;
        reader.get_ref().set_read_timeout(Some(within)).unwrap();
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        Some(line.trim().to_owned())
    }

    pub(crate) fn local_port(&self) -> u16 {
        self.stream.as_ref().unwrap().get_ref().local_addr().unwrap().port()
    }
}

/// A pod with an application and a listener in place of the sidecar, and a peer on the same link.
pub(crate) struct Pair {
    pub(crate) pod: Namespace,
    pub(crate) peer: Namespace,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let pair = Self::without_sidecar();
        pair.pod.listen(PROXY, 15006, "inbound");
        pair.pod.listen(PROXY, 15001, "outbound");
        pair.pod.listen(PROXY, 15020, "direct");
        pair
    }

    /// The same where nobody listens on the sidecar's ports.
    pub(crate) fn without_sidecar() -> Self {
        let (pod, peer) = (Namespace::new(), Namespace::new());
        // No duplicate address detection: addresses work at once.
        let quick = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad";
        pod.sh(quick);
        peer.sh(quick);
        for name in ["eth0", "eth1"] {
            peer.sh(&format!("ip link add {name} type veth peer name {name} netns {}", pod.path()));
        }
        for (namespace, last) in [(&pod, 2), (&peer, 1)] {
            namespace.sh(&format!(
                "ip link set eth0 addrgenmode none; ip addr add 10.77.1.{last}/24 dev eth0
                 ip -6 addr add fd77:1::{last}/64 dev eth0; ip -6 addr add fe80::{last}/64 dev eth0; ip link set eth0 up
                 ip link set eth1 addrgenmode none; ip addr add 10.77.3.{last}/24 dev eth1
                 ip -6 addr add fd77:3::{last}/64 dev eth1; ip link set eth1 up"
            ));
        }
        pod.sh("ip route add default via 10.77.1.1; ip -6 route add default via fd77:1::1");
        peer.sh("for ip in 192.0.2.1/32 198.51.100.1/32; do ip addr add $ip dev lo; done
             for ip in 2001:db8::1/128 2001:db9::1/128; do ip -6 addr add $ip dev lo; done");
        for port in [22, 8080, 9000, 9010] {
            pod.listen(APP, port, "direct");
        }
        for port in [25, 80, 3000, 3009, 3010, 4038] {
            peer.listen(ROOT, port, "direct");
        }
        Self { pod, peer }
    }
}

/// The tools under test: the backend's name, and a folder before all others in `PATH`.
pub(crate) struct Tools {
    pub(crate) backend: &'static str,
    pub(crate) folder: TempDir,
}

impl Tools {
    pub(crate) fn nft() -> Self {
        Self { backend: "nft", folder: TempDir::new().unwrap() }
    }

    /// `iptables-nft` or `iptables-legacy`; the plain `iptables` and its companions are of it, whatever the machine's
    /// alternative.
    pub(crate) fn iptables(backend: &'static str) -> Self {
        let multi = if backend == "iptables-nft" { "xtables-nft-multi" } else { "xtables-legacy-multi" };
        let multi = Path::new("/usr/sbin").join(multi);
        assert!(multi.exists(), "{} is missing: apt-get install iptables; nothing was tested", multi.display());
        let tools = Self { backend, folder: TempDir::new().unwrap() };
        for name in
            ["iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore"]
        {
            std::os::unix::fs::symlink(&multi, tools.folder.path().join(name)).unwrap();
        }
        tools
    }

    /// Each backend.
    pub(crate) fn all() -> [Self; 3] {
        [Self::nft(), Self::iptables("iptables-nft"), Self::iptables("iptables-legacy")]
    }

    /// Another folder with the same tools in it.
    pub(crate) fn iptables_folder(of: &Self) -> TempDir {
        if of.backend == "nft" { TempDir::new().unwrap() } else { Self::iptables(of.backend).folder }
    }

    /// Registers the legacy tables where this backend needs them: nothing can unregister one, so that only a namespace
    /// that has them already is as before after `remove`.
    pub(crate) fn prepare(&self, pod: &Namespace) {
        if self.backend == "iptables-legacy" {
            self.sh(pod, "for table in raw mangle nat; do iptables -t $table -S; ip6tables -t $table -S; done");
        }
    }

    /// Puts a shell script in the place of a tool.
    pub(crate) fn replace(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path: PathBuf = self.folder.path().join(name);
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    pub(crate) fn path(&self) -> String {
        format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.folder.path().display())
    }

    /// The program itself, in a namespace; `command` as in `install --proxy-uid 1`.
    pub(crate) fn outrigger(&self, namespace: &Namespace, command: &str) -> Output {
        namespace.run(ROOT, || {
            Command::new(env!("CARGO_BIN_EXE_outrigger-iptables"))
                .args(command.split_whitespace())
                .env("PATH", self.path())
                .output()
                .unwrap()
        })
    }

    /// The same with this backend; it must succeed. Returns everything that it said.
    pub(crate) fn must(&self, namespace: &Namespace, command: &str) -> String {
        let output = self.outrigger(namespace, &format!("{command} --backend {}", self.backend));
        assert!(output.status.success(), "{command}: {}", said(&output));
        said(&output)
    }

    /// The plain `iptables`, for rules of a user's own.
    pub(crate) fn sh(&self, namespace: &Namespace, script: &str) {
        namespace.sh(&format!("PATH={}; {script}", self.path()));
    }
}

pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A listing of nft with the tables, and the chains of each, in the order of their names: that in which they were made has
/// no meaning, and depends on what was there before.
fn in_order(listing: &str) -> String {
    // What nft 1.0.6 has the library of iptables print comes before or after its own words, as their buffers fill.
    let listing = listing.replace("xt target TPROXY", "");
    let lines = listing.lines().filter(|line| !line.starts_with('#'));
    let listing: String = lines.map(|line| format!("{}\n", line.trim_end())).collect();
    let sorted = |table: &str| {
        let (head, body) = table.split_once('\n').unwrap_or((table, ""));
        let body = body.strip_suffix("}\n").unwrap_or(body).trim_end();
        let mut blocks: Vec<&str> = body.split("\n\n").collect();
        blocks.sort_unstable();
        format!("{head}\n{}\n}}\n", blocks.join("\n\n"))
    };
    let mut tables: Vec<String> = listing.split_inclusive("\n}\n").map(sorted).collect();
    tables.sort_unstable();
    tables.concat()
}

/// Everything that `install` may touch, but for packet counters and the time of day.
pub(crate) fn state(namespace: &Namespace) -> String {
    // Time-out policies have no other tool here than ours.
    let ours = Tools::nft().outrigger(namespace, "status");
    let policies: Vec<String> = said(&ours).lines().filter(|line| line.contains("policy")).map(str::to_owned).collect();
    let ruleset = in_order(&namespace.sh("nft list ruleset 2>/dev/null"));
    let raw = ruleset
        + &namespace.sh("iptables-legacy-save; ip6tables-legacy-save; ip -o addr; ip rule; ip -6 rule
         ip route show table all; ip -6 route show table all");
    let without_counters = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let mut kept = Vec::new();
        let mut index = 0;
        while index < words.len() {
            if words[index] == "packets" {
                index += 4; // packets 3 bytes 180
            } else {
                // :INPUT ACCEPT [3:180]
                kept.push(if words[index].starts_with('[') && words[index].ends_with(']') {
                    "[]"
                } else {
                    words[index]
                });
                index += 1;
            }
        }
        kept.join(" ")
    };
    let lines = raw.lines().filter(|line| !line.starts_with('#')).map(without_counters);
    lines.chain(policies).collect::<Vec<_>>().join("\n")
}

/// Fails with the lines that differ.
#[track_caller]
pub(crate) fn assert_same(now: &str, wanted: &str, context: &str) {
    let extra = |these: &str, those: &str| {
        let mut those: Vec<&str> = those.lines().collect();
        let mut extra = Vec::new();
        for line in these.lines() {
            match those.iter().position(|other| *other == line) {
                Some(index) => drop(those.swap_remove(index)),
                None => extra.push(line),
            }
        }
        extra.join("\n")
    };
    let first = now.lines().zip(wanted.lines()).enumerate().find(|(_, (now, wanted))| now != wanted);
    assert!(
        now == wanted,
        "{context}\n--- the first line that differs: {first:?}\n--- there, and should not be:\n{}\n--- not there, and should be:\n{}\n--- all:\n{now}",
        extra(now, wanted),
        extra(wanted, now)
    );
}
