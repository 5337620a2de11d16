//! What a request costs in instructions, counted by callgrind: unlike a time it is the same on a busy machine, so it can
//! be held against a recorded figure.
//!
//! Requests go one after another over one connection, so that how much of the work is shared does not depend on how
//! fast anything is. The cost of a request is the difference of two runs of different length, divided by the requests
//! that one had more; each run is made a few times and the cheapest counts, because a timer of the sidecar's own (a name
//! looked up again, an idle connection closed) may fall into any of them.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use outrigger_e2e::harness::{
    Mesh, Process, eventually,
    pki::Ca,
    pod::{APP, SIDECAR},
};

use super::systems::{Bed, ECHO, HTTP1, HTTP2, ORDERS};

/// Requests of the short run, and of the long one.
const RUNS: (u32, u32) = (100, 500);
/// How often each run is made.
const TRIES: usize = 3;
/// A figure may be this much above the recorded one, in per cent: from run to run they differ by up to six, because a
/// turn of the event loop holds now one and now two of a request's steps.
const TOLERANCE: f64 = 8.0;

type Load = fn(&Bed<'_>, u32);

/// Counts, of all paths or `only` some, and compares with `recorded`; says what differs. With `record` the file is written instead.
pub(crate) async fn check(recorded: &str, record: bool, only: &[String]) -> Result<(), String> {
    let mesh = Mesh::alone();
    let ca = Ca::init(&mesh);
    let bed = Bed::simple(&mesh, &ca).await;
    let mut pair = start(&bed).await;
    let loads: [(&str, Load); 4] = [("http1", http1), ("connect", connect), ("http2", http2), ("opaque", opaque)];
    let mut counted = BTreeMap::new();
    for (name, load) in loads.into_iter().filter(|(name, _)| only.is_empty() || only.iter().any(|o| o == name)) {
        // Names are looked up, connections made, memory taken.
        load(&bed, RUNS.0);
        let (short, long) = (cheapest(&mut pair, &bed, load, RUNS.0), cheapest(&mut pair, &bed, load, RUNS.1));
        for (side, (short, long)) in ["caller", "callee"].into_iter().zip(short.into_iter().zip(long)) {
            let each = long.saturating_sub(short) / u64::from(RUNS.1 - RUNS.0);
            println!("{name:<7} {side}  {each:>7} instructions a request");
            counted.insert(format!("{name} {side}"), each);
        }
    }
    for counted in &mut pair {
        counted.process.assert_running();
    }
    if record {
        let text = serde_json::to_string_pretty(&counted).map_err(|e| e.to_string())? + "\n";
        return fs::write(recorded, text).map_err(|e| format!("cannot write {recorded}: {e}"));
    }
    let text = fs::read_to_string(recorded).map_err(|e| format!("cannot read {recorded}: {e}"))?;
    let known: BTreeMap<String, u64> = serde_json::from_str(&text).map_err(|e| format!("{recorded}: {e}"))?;
    let mut worse = Vec::new();
    for (name, now) in &counted {
        let before = *known.get(name).ok_or_else(|| format!("{recorded} has no figure for \"{name}\""))?;
        let change = (*now as f64 / before as f64 - 1.0) * 100.0;
        if change > TOLERANCE {
            worse.push(format!("{name}: {now} instructions a request, {change:+.1} % of the recorded {before}"));
        } else if change < -TOLERANCE {
            println!("{name} costs {change:+.1} % of what {recorded} says: record it with --record");
        }
    }
    if worse.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}\nWhoever must raise a figure records it with --record and says why in the commit.",
        worse.join("\n")
    ))
}

/// A sidecar under callgrind.
struct Counted {
    process: Process,
    /// The beginning of the names of what it dumps.
    out: String,
    dumps: u32,
}

impl Counted {
    /// Tells callgrind to do `command`; done when this returns.
    fn tell(&self, command: &str) {
        // As the user of the sidecar: vgdb and valgrind open each other's pipes.
        let user = SIDECAR.to_string();
        let pid = format!("--pid={}", self.process.pid());
        let output = Command::new("setpriv")
            .args(["--reuid", &user, "--regid", &user, "--clear-groups", "timeout", "30", "vgdb", &pid, command])
            .output()
            .unwrap();
        assert!(output.status.success(), "vgdb {command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The instructions since the last `zero`.
    fn dump(&mut self) -> u64 {
        self.tell("dump");
        self.dumps += 1;
        let file = format!("{}.{}", self.out, self.dumps);
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{file}: {e}"));
        text.lines().find_map(|l| l.strip_prefix("totals:")).unwrap().trim().parse().unwrap()
    }
}

/// The caller's sidecar and the callee's, ready.
async fn start(bed: &Bed<'_>) -> [Counted; 2] {
    let [caller, callee] = bed.configure();
    let mut pair = [(&bed.client, caller), (&bed.server, callee)].map(|(pod, config)| {
        let out = pod.folder("proxy").join("callgrind.out");
        let out = out.to_str().unwrap().to_owned();
        let binary = outrigger_e2e::harness::mesh::bin_dir().join("outrigger-sidecar");
        let file = format!("--callgrind-out-file={out}");
        let args = ["--tool=callgrind", &file, binary.to_str().unwrap(), "run", "--config", config.to_str().unwrap()];
        (pod, Counted { process: pod.start(SIDECAR, "valgrind", &args), out, dumps: 0 })
    });
    for (pod, counted) in &mut pair {
        eventually("the sidecar is ready under callgrind", Duration::from_secs(90), || {
            counted.process.assert_running();
            async {
                let reply = pod.try_get((Ipv4Addr::LOCALHOST, 15020).into(), "localhost", "/readyz").await?;
                if reply.status == 200 { Ok(()) } else { Err(reply.text()) }
            }
        })
        .await;
    }
    pair.map(|(_, counted)| counted)
}

/// Instructions of the caller's sidecar and of the callee's for `requests`, in the cheapest of some tries.
fn cheapest(pair: &mut [Counted; 2], bed: &Bed<'_>, load: Load, requests: u32) -> [u64; 2] {
    let mut least = [u64::MAX; 2];
    for _ in 0..TRIES {
        pair.iter().for_each(|counted| counted.tell("zero"));
        load(bed, requests);
        for (least, counted) in least.iter_mut().zip(pair.iter_mut()) {
            *least = counted.dump().min(*least);
        }
    }
    least
}

/// Sends `message` and reads an answer of `length` bytes, again and again, over one connection of the caller.
fn exchange(bed: &Bed<'_>, to: SocketAddr, requests: u32, message: Vec<u8>, whole: fn(&[u8]) -> bool) {
    let talk = move || {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut buffer = [0; 16 * 1024];
        for _ in 0..requests {
            stream.write_all(&message).unwrap();
            let mut answer = Vec::new();
            while !whole(&answer) {
                let n = stream.read(&mut buffer).unwrap();
                assert!(n > 0, "the connection ended");
                answer.extend_from_slice(&buffer[..n]);
            }
        }
    };
    bed.client.thread(talk).join().unwrap();
}

fn http1(bed: &Bed<'_>, requests: u32) {
    let message =
        format!("GET /bytes/1024 HTTP/1.1\r\nHost: {ORDERS}:{HTTP1}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n");
    exchange(bed, bed.server.at4(HTTP1), requests, message.into_bytes(), |answer| {
        answer.windows(4).position(|w| w == b"\r\n\r\n").is_some_and(|at| answer.len() >= at + 4 + 1_024)
    });
}

/// A connection for each request.
fn connect(bed: &Bed<'_>, requests: u32) {
    let message = format!("GET /bytes/1024 HTTP/1.1\r\nHost: {ORDERS}:{HTTP1}\r\nConnection: close\r\n\r\n");
    let to = bed.server.at4(HTTP1);
    let talk = move || {
        for _ in 0..requests {
            let mut stream = TcpStream::connect(to).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream.write_all(message.as_bytes()).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.len() > 1_024);
        }
    };
    bed.client.thread(talk).join().unwrap();
}

fn opaque(bed: &Bed<'_>, requests: u32) {
    exchange(bed, bed.server.at4(ECHO), requests, vec![b'x'; 1_024], |answer| answer.len() >= 1_024);
}

fn http2(bed: &Bed<'_>, requests: u32) {
    let (count, url) = (requests.to_string(), format!("http://{ORDERS}:{HTTP2}/bytes/1024"));
    let output = bed.client.output(APP, "outrigger-workload", &["load", "--h2", "--requests", &count, "--url", &url]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
