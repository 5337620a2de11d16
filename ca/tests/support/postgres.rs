//! A real PostgreSQL for tests: private, made anew, and gone with the process that started it.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/postgres.sh");

struct Pipes {
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// A running server.
pub struct Postgres {
    child: Child,
    pipes: Option<Mutex<Pipes>>,
    dir: PathBuf,
    port: u16,
    databases: AtomicU32,
}

impl Postgres {
    /// The one that the tests of a process share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(|_| Vec::new()))
    }

    /// One of its own, with options; `prepare` may put files into its folder, which will be the server's.
    pub fn start(prepare: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let dir = tempfile::Builder::new().prefix("outrigger-pg-").tempdir().unwrap().keep();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
        let options = prepare(&dir);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut child = Command::new(SCRIPT)
            .arg(&dir)
            .arg(port.to_string())
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        answers.read_line(&mut first).unwrap();
        assert_eq!(first, "ready\n", "PostgreSQL did not start");
        let pipes = Some(Mutex::new(Pipes { commands, answers }));
        Self { child, pipes, dir, port, databases: AtomicU32::new(0) }
    }

    /// The URL of a database over the Unix socket.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://ca@{}:{}/{database}", self.dir.to_str().unwrap().replace('/', "%2F"), self.port)
    }

    /// The port at 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A new and empty database; gives back its URL.
    pub fn database(&self) -> String {
        let name = format!("ca{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.client("postgres").batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        self.url(&name)
    }

    /// A client of the tests' own. Not within an asynchronous runtime.
    pub fn client(&self, database: &str) -> ::postgres::Client {
        ::postgres::Client::connect(&self.url(database), ::postgres::NoTls).unwrap()
    }

    /// `restart` (every process killed, and started again), `stop` or `start`.
    pub fn command(&self, command: &str) {
        let mut pipes = self.pipes.as_ref().unwrap().lock().unwrap();
        writeln!(pipes.commands, "{command}").unwrap();
        let mut answer = String::new();
        pipes.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The end of its input is what the script waits for.
        self.pipes = None;
        let _ = self.child.wait();
    }
}
