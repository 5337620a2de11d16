//! A pod: a thread in namespaces of its own. Everything that must happen inside happens on that thread: sockets made on
//! it belong to the pod for ever, and processes that it starts inherit its namespaces and die with it.

use std::{
    cell::RefCell,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
    unistd::Pid,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::sys::die_with_parent;

/// The uid of the application.
pub const APP: u32 = 1000;
/// The uid of the sidecar.
pub const SIDECAR: u32 = 1337;

type Job = Box<dyn FnOnce() + Send>;

/// A thread in namespaces of its own that does what it is sent.
pub(super) struct Inside {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// The network namespace, for `ip link … netns`.
    pub(super) path: String,
}

impl Inside {
    pub(super) fn new(name: &str) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, made) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("pod {name}"))
            .spawn(move || {
                let result = unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).and_then(|()| {
                    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
                });
                let _ = ready.send(result.map(|()| nix::unistd::gettid()));
                while let Ok(job) = queue.recv() {
                    job();
                }
            })
            .unwrap();
        let tid = made.recv().unwrap().unwrap_or_else(|e| {
            panic!("cannot make network and mount namespaces: {e}; run the end-to-end tests as root")
        });
        let path = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
        Self { jobs: Some(jobs), thread: Some(thread), path }
    }

    /// Does `job` inside and gives back its result.
    pub(super) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = mpsc::channel();
        let job = Box::new(move || {
            let _ = reply.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)));
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        answer.recv().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a batch of `ip` commands inside.
    pub(super) fn ip(&self, batch: String) {
        self.run(move || {
            let mut child =
                Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
            let child = child.as_mut().unwrap_or_else(|e| panic!("cannot run ip (package iproute2): {e}"));
            io::Write::write_all(&mut child.stdin.take().unwrap(), batch.as_bytes()).unwrap();
            let mut words = String::new();
            io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut words).unwrap();
            assert!(child.wait().unwrap().success(), "ip refused: {words}in:\n{batch}");
        });
    }

    pub(super) fn mount(&self, source: &Path, target: &Path) {
        let (source, target) = (source.to_owned(), target.to_owned());
        self.run(move || {
            mount(Some(&source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .unwrap_or_else(|e| panic!("cannot mount {} at {}: {e}", source.display(), target.display()));
        });
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.jobs.take();
        // Ends when its queue has: all jobs are short.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// One pod.
pub struct Pod {
    /// Its name, in logs.
    pub name: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    pub(super) inside: Arc<Inside>,
    pub(super) dir: PathBuf,
    pub(super) logs: Arc<std::sync::Mutex<Vec<PathBuf>>>,
    started: RefCell<u32>,
}

impl Pod {
    pub(super) fn new(
        name: &str,
        index: u8,
        inside: Inside,
        dir: PathBuf,
        logs: Arc<std::sync::Mutex<Vec<PathBuf>>>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            v4: Ipv4Addr::new(10, 77, 0, index),
            v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, index.into()),
            inside: Arc::new(inside),
            dir,
            logs,
            started: RefCell::new(0),
        }
    }

    /// Its IPv4 address and a port.
    pub fn at4(&self, port: u16) -> SocketAddr {
        (self.v4, port).into()
    }

    /// Its IPv6 address and a port.
    pub fn at6(&self, port: u16) -> SocketAddr {
        (self.v6, port).into()
    }

    /// Both addresses.
    pub fn ips(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Shows `source` at `target` to what is started in the pod from now on.
    pub fn mount(&self, source: &Path, target: &Path) {
        self.inside.mount(source, target);
    }

    /// Does something inside the pod's namespaces; it must be short and must not block.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.inside.run(job)
    }

    /// Runs something long in the pod's network, on a thread of its own.
    pub fn thread<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = File::open(&self.inside.path).unwrap();
        std::thread::spawn(move || {
            nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            job()
        })
    }

    /// Connects from inside the pod, as its application would.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket =
            self.run(move || Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP)))?;
        socket.set_tcp_nodelay(true)?;
        let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
        match tokio::time::timeout(Duration::from_secs(10), connecting).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("connect to {to}: 10 s passed"))),
        }
    }

    /// Listens inside the pod, as its application would.
    pub fn listen(&self, port: u16) -> TcpListener {
        // tokio registers the socket with the runtime of the calling thread, so only the socket is made inside.
        let listener = self.run(move || {
            let socket = Socket::new(Domain::IPV6, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
            socket.listen(1024)?;
            Ok::<_, io::Error>(socket)
        });
        TcpListener::from_std(listener.unwrap().into()).unwrap()
    }

    /// Starts one of our programs in the pod, as this user; its output goes to a log file.
    pub fn start(&self, uid: u32, program: &str, args: &[&str]) -> Process {
        self.start_with(uid, program, args, &[])
    }

    /// The same with these variables in its environment.
    pub fn start_with(&self, uid: u32, program: &str, args: &[&str], env: &[(&str, &str)]) -> Process {
        let n = self.started.replace_with(|n| *n + 1);
        let file = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
        let log = self.dir.join("logs").join(format!("{}-{n}-{file}.log", self.name));
        let file = File::create(&log).unwrap();
        self.logs.lock().unwrap().push(log.clone());
        let mut command = self.command(uid, program, args);
        command.stdout(file.try_clone().unwrap()).stderr(file).envs(env.iter().copied());
        let child = self.spawn(command);
        Process { child, log, name: format!("{program} of {}", self.name), _inside: self.inside.clone(), status: None }
    }

    /// Runs one of our programs, or of the system's, in the pod to its end.
    pub fn output(&self, uid: u32, program: &str, args: &[&str]) -> std::process::Output {
        let mut command = self.command(uid, program, args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn(command).wait_with_output().unwrap()
    }

    fn command(&self, uid: u32, program: &str, args: &[&str]) -> Command {
        let ours = self.dir.join("bin").join(program);
        let own = program.starts_with("outrigger-");
        let mut command = Command::new(if own { ours.as_os_str() } else { program.as_ref() });
        command.args(args).current_dir(&self.dir).stdin(Stdio::null());
        // OUTRIGGER_BIN_DIR and its like are for the tests; the sidecar would take them for settings.
        let own = std::env::vars_os().map(|(name, _)| name).filter(|n| n.as_encoded_bytes().starts_with(b"OUTRIGGER_"));
        own.for_each(|name| {
            command.env_remove(name);
        });
        if uid != 0 {
            command.uid(uid).gid(uid);
        }
        die_with_parent(&mut command);
        command
    }

    fn spawn(&self, mut command: Command) -> Child {
        self.run(move || command.spawn().map_err(|e| format!("cannot run {command:?}: {e}"))).unwrap()
    }

    /// Installs the redirection with the real tool, leaving these further options to it.
    pub fn redirect(&self, options: &[&str]) {
        let output = self.output(0, "outrigger-iptables", &[&["install"], options].concat());
        assert!(
            output.status.success(),
            "outrigger-iptables in {}: {}: {}",
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Starts the workload's origin and waits until it listens.
    pub async fn serve(&self, args: &[&str]) -> Process {
        let mut process = self.start(APP, "outrigger-workload", &[&["serve", "--name", &self.name], args].concat());
        super::eventually("the origin is ready", Duration::from_secs(10), || {
            process.assert_running();
            let ready = process.log_text().contains(" ready");
            async move { ready.then_some(()).ok_or_else(|| "it has not said so".to_owned()) }
        })
        .await;
        process
    }

    /// Starts the workload's load generator.
    pub fn load(&self, args: &[&str]) -> Load {
        Load(self.start(APP, "outrigger-workload", &[&["load"], args].concat()))
    }

    /// A folder of the pod's own that its sidecar may write.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.dir.join(&self.name).join(name);
        std::fs::create_dir_all(&path).unwrap();
        for dir in [&self.dir.join(&self.name), &path] {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::os::unix::fs::chown(dir, Some(SIDECAR), Some(SIDECAR)).unwrap();
        }
        path
    }
}

/// A load generator under way.
pub struct Load(Process);

impl Load {
    /// Panics if it has come to its end: what is to happen under it would happen to nothing.
    pub fn assert_running(&mut self) {
        self.0.assert_running();
    }

    /// Waits for the report.
    pub async fn report(mut self) -> serde_json::Value {
        self.0.wait(Duration::from_secs(180)).await;
        let text = self.0.log_text();
        let line = text.lines().rev().find(|l| l.starts_with('{')).unwrap_or_else(|| panic!("no report but: {text}"));
        serde_json::from_str(line).unwrap()
    }
}

/// A program in a pod; killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
    name: String,
    status: Option<ExitStatus>,
    // The child dies with its parent thread, which must outlive it.
    _inside: Arc<Inside>,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    /// How it ended, if it did.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status
    }

    /// Panics with the end of its log if it ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.status() {
            panic!("{} ended ({status}): {}", self.name, tail(&self.log, 20));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    /// SIGKILL, and waits.
    pub fn kill(&mut self) {
        if self.status().is_none() {
            self.signal(Signal::SIGKILL);
            self.status = Some(self.child.wait().unwrap());
        }
    }

    /// Waits for its end.
    pub async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.status() {
                return status;
            }
            assert!(Instant::now() < end, "{} did not end in {limit:?}: {}", self.name, tail(&self.log, 20));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A line of `/proc/PID/status` in KiB: `VmRSS` (memory now) or `VmHWM` (its highest).
    pub fn memory_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Sets `VmHWM` back to the memory of now.
    pub fn reset_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").unwrap();
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let signalled = self.status().and_then(|s| s.signal());
        if std::thread::panicking() && self.status.is_some() {
            eprintln!("--- {} had ended: {:?}, signal {signalled:?}", self.name, self.status);
        }
        if self.status.is_none() {
            // It may end between the look and the kill.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The last lines of a file.
pub(super) fn tail(path: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
