//! What is measured of each system.

use std::{
    net::Ipv4Addr,
    process::Output,
    time::{Duration, Instant},
};

use outrigger_e2e::harness::pod::{APP, SIDECAR};
use serde_json::{Value, json};

use super::{
    paced,
    systems::{Bed, HTTP1, ORDERS, Pair, System, Traffic},
};

/// One figure.
pub(crate) type Figure = (&'static str, f64);

/// A scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scenario {
    Http1Saturated,
    Http1Paced,
    Http2,
    Grpc,
    NewConnections,
    LargeBodies,
    OpaqueMtls,
    OpaquePlain,
    Idle,
    Start,
    ManyEndpoints,
    ManyServices,
}

impl Scenario {
    pub(crate) const ALL: [Self; 12] = [
        Self::Http1Saturated,
        Self::Http1Paced,
        Self::Http2,
        Self::Grpc,
        Self::NewConnections,
        Self::LargeBodies,
        Self::OpaqueMtls,
        Self::OpaquePlain,
        Self::Idle,
        Self::Start,
        Self::ManyEndpoints,
        Self::ManyServices,
    ];

    /// What a sidecar spends its time with.
    pub(crate) const TRAINING: [Self; 8] = [
        Self::Http1Saturated,
        Self::Http1Paced,
        Self::Http2,
        Self::Grpc,
        Self::NewConnections,
        Self::LargeBodies,
        Self::OpaqueMtls,
        Self::OpaquePlain,
    ];

    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Http1Saturated => "http1",
            Self::Http1Paced => "paced",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::NewConnections => "connect",
            Self::LargeBodies => "large",
            Self::OpaqueMtls => "opaque-mtls",
            Self::OpaquePlain => "opaque-plain",
            Self::Idle => "idle",
            Self::Start => "start",
            Self::ManyEndpoints => "endpoints",
            Self::ManyServices => "services",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Http1Saturated => "HTTP/1.1 keep-alive, 32 connections, as fast as it goes, 1 KiB",
            Self::Http1Paced => "HTTP/1.1, 32 connections, a fixed 2,000 requests a second, 1 KiB",
            Self::Http2 => "HTTP/2, 4 connections of 8 streams, 1 KiB",
            Self::Grpc => "gRPC unary, 4 connections of 8 streams, 128 B",
            Self::NewConnections => "HTTP/1.1, a new connection for each request, 32 at once",
            Self::LargeBodies => "HTTP/1.1, responses of 1 MiB, 4 connections",
            Self::OpaqueMtls => "opaque bytes in mTLS, one connection",
            Self::OpaquePlain => "opaque bytes as they are, one connection",
            Self::Idle => "idle: the pair, and 9,000 idle keep-alive connections through both",
            Self::Start => "from the start to ready, no enrolment, the slower of both",
            Self::ManyEndpoints => "10,000 endpoints beside 3, HTTP/1.1",
            Self::ManyServices => "2,000 services beside 4, HTTP/1.1",
        }
    }

    /// Whether the system has it. nginx does not proxy HTTP/2 to an upstream.
    pub(crate) fn fits(self, system: System) -> bool {
        match self {
            Self::Http2 | Self::Grpc => system != System::Nginx,
            // How HTTP goes between the two makes no difference to bytes.
            Self::OpaqueMtls | Self::OpaquePlain => !matches!(system, System::HaproxyH1 | System::EnvoyH1),
            Self::Idle => system != System::Direct,
            Self::Start | Self::ManyEndpoints | Self::ManyServices => system == System::Outrigger,
            _ => true,
        }
    }

    fn traffic(self) -> Traffic {
        match self {
            Self::Http2 => Traffic::Http2,
            Self::Grpc => Traffic::Grpc,
            Self::OpaqueMtls => Traffic::OpaqueMtls,
            Self::OpaquePlain => Traffic::OpaquePlain,
            _ => Traffic::Http1,
        }
    }

    /// Runs it for about `seconds`.
    pub(crate) async fn run(self, bed: &Bed<'_>, seconds: u32) -> Result<Vec<Figure>, String> {
        match self {
            Self::Start => return Ok(start(bed).await),
            Self::ManyEndpoints => return many_endpoints(bed, seconds).await,
            Self::ManyServices => return many_services(bed, seconds).await,
            _ => {}
        }
        let mut pair = bed.start(self.traffic()).await;
        let figures = match self {
            Self::Http1Saturated => {
                wrk(bed, &pair, 32, 1, "/", &[])?;
                wrk(bed, &pair, 32, seconds, "/", &[])
            }
            Self::NewConnections => {
                let close = ["-H", "Connection: close"];
                wrk(bed, &pair, 32, 1, "/", &close)?;
                wrk(bed, &pair, 32, seconds, "/", &close)
            }
            Self::LargeBodies => {
                wrk(bed, &pair, 4, 1, "/large", &[])?;
                let all = wrk(bed, &pair, 4, seconds, "/large", &[])?;
                let of = |wanted| all.iter().find(|(name, _)| *name == wanted).map_or(0.0, |(_, v)| *v);
                Ok(vec![("cpu_us_per_mib", of("cpu_us")), ("gbit_s", of("requests_s") * 8.0 * 1.048_576 / 1_000.0)])
            }
            Self::Http1Paced => paced(bed, &pair, seconds),
            Self::Http2 => {
                h2load(bed, &pair, 1, false)?;
                h2load(bed, &pair, seconds, false)
            }
            Self::Grpc => {
                h2load(bed, &pair, 1, true)?;
                h2load(bed, &pair, seconds, true)
            }
            Self::OpaqueMtls | Self::OpaquePlain => iperf(bed, &pair, seconds),
            Self::Idle => idle(bed, &pair).await,
            Self::Start | Self::ManyEndpoints | Self::ManyServices => Err("not reached".to_owned()),
        };
        pair.assert_running();
        if bed.ends_in_order {
            pair.end().await;
        }
        figures
    }
}

fn good(program: &str, output: Output) -> Result<String, String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{program}: {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr)))
    }
}

/// Runs a program in the caller's pod and gives what it printed and the sidecars' CPU time meanwhile.
fn under_load(bed: &Bed<'_>, pair: &Pair, program: &str, args: &[&str]) -> Result<(String, Duration), String> {
    let before = pair.cpu();
    let output = bed.client.output(APP, program, args);
    let cpu = pair.cpu().saturating_sub(before);
    Ok((good(program, output)?, cpu))
}

fn per(cpu: Duration, count: f64) -> f64 {
    cpu.as_secs_f64() * 1e6 / count.max(1.0)
}

fn wrk(
    bed: &Bed<'_>,
    pair: &Pair,
    connections: u32,
    seconds: u32,
    path: &str,
    more: &[&str],
) -> Result<Vec<Figure>, String> {
    let (connections, duration) = (connections.to_string(), format!("{seconds}s"));
    let url = format!("http://{ORDERS}:{HTTP1}{path}");
    let args = [&["-t1", "-c", &connections, "-d", &duration, "--latency", "--timeout", "10s"], more, &[&url]].concat();
    let (text, cpu) = under_load(bed, pair, "wrk", &args)?;
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(format!("requests failed: {text}"));
    }
    let line = text.lines().find(|l| l.contains(" requests in ")).ok_or_else(|| format!("wrk said: {text}"))?;
    let requests: f64 = line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
    let rate = text.lines().find_map(|l| l.strip_prefix("Requests/sec:")).and_then(|r| r.trim().parse().ok());
    Ok(vec![("cpu_us", per(cpu, requests)), ("requests_s", rate.unwrap_or(0.0))])
}

fn paced(bed: &Bed<'_>, pair: &Pair, seconds: u32) -> Result<Vec<Figure>, String> {
    let load = paced::Load {
        to: bed.address(Traffic::Http1),
        request: format!("GET / HTTP/1.1\r\nHost: {ORDERS}:{HTTP1}\r\nUser-Agent: paced\r\nAccept: */*\r\n\r\n")
            .into_bytes(),
        rate: 2_000.0,
        connections: 32,
        warm_up: Duration::from_secs(1),
        duration: Duration::from_secs(seconds.into()),
    };
    let total = (load.rate * (load.warm_up + load.duration).as_secs_f64()).round();
    let before = pair.cpu();
    let ended = bed.client.thread(move || paced::run(&load)).join().map_err(|_| "the load panicked".to_owned())?;
    let cpu = pair.cpu().saturating_sub(before);
    let latencies = ended.map_err(|e| e.to_string())?;
    if latencies.len() == 0 {
        return Err("no answers".to_owned());
    }
    Ok(vec![
        ("p50_ms", latencies.percentile(0.50)),
        ("p99_ms", latencies.percentile(0.99)),
        ("p999_ms", latencies.percentile(0.999)),
        ("cpu_us", per(cpu, total)),
    ])
}

fn h2load(bed: &Bed<'_>, pair: &Pair, seconds: u32, grpc: bool) -> Result<Vec<Figure>, String> {
    let duration = seconds.to_string();
    let traffic = if grpc { Traffic::Grpc } else { Traffic::Http2 };
    let path = if grpc { "/test.Echo/Unary" } else { "/" };
    let url = format!("http://{ORDERS}:{}{path}", traffic.port());
    let message = bed.client.folder("bench").join("message");
    // A message of 128 B in gRPC's framing.
    std::fs::write(&message, [&[0, 0, 0, 0, 128][..], &[b'm'; 128]].concat()).map_err(|e| e.to_string())?;
    let mut args = vec!["-t1", "-c4", "-m8", "-D", &duration];
    if grpc {
        args.extend(["-d", message.to_str().unwrap_or_default(), "-H", "content-type: application/grpc"]);
        args.extend(["-H", "te: trailers"]);
    }
    args.push(&url);
    let (text, cpu) = under_load(bed, pair, "h2load", &args)?;
    let line = text.lines().find(|l| l.starts_with("requests:")).ok_or_else(|| format!("h2load said: {text}"))?;
    let count = |word: &str| -> f64 {
        let part = line.trim_start_matches("requests:").split(',').find(|p| p.trim_end().ends_with(word));
        part.and_then(|p| p.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
    };
    let (ok, failed) = (count("succeeded"), count("failed"));
    if ok == 0.0 || failed > 0.0 {
        return Err(format!("requests failed: {text}"));
    }
    Ok(vec![("cpu_us", per(cpu, ok)), ("requests_s", ok / f64::from(seconds))])
}

fn iperf(bed: &Bed<'_>, pair: &Pair, seconds: u32) -> Result<Vec<Figure>, String> {
    let traffic = Traffic::OpaqueMtls;
    let (host, port, time) = (bed.server.v4.to_string(), traffic.port().to_string(), seconds.to_string());
    let args = ["-c", &host, "-p", &port, "-t", &time, "-J"];
    let mut tries = 0;
    let (text, cpu, report) = loop {
        let (text, cpu) = under_load(bed, pair, "iperf3", &args)?;
        let report: Value = serde_json::from_str(&text).map_err(|e| format!("iperf3 said {text}: {e}"))?;
        // Its server takes one client at a time, and may not have seen yet that the last one has gone with its pair.
        if report["error"].is_null() || tries == 3 {
            break (text, cpu, report);
        }
        tries += 1;
        std::thread::sleep(Duration::from_secs(1));
    };
    let received = &report["end"]["sum_received"];
    let (bytes, rate) = (received["bytes"].as_f64(), received["bits_per_second"].as_f64());
    let (Some(bytes), Some(rate)) = (bytes, rate) else { return Err(format!("iperf3 said {text}")) };
    Ok(vec![("cpu_us_per_mib", per(cpu, bytes / f64::from(1 << 20))), ("gbit_s", rate / 1e9)])
}

/// Connections that have each carried one request and are then left alone.
async fn idle(bed: &Bed<'_>, pair: &Pair) -> Result<Vec<Figure>, String> {
    const MANY: usize = 9_000;
    // What is loaded at the first request belongs to the pair and not to the connections.
    wrk(bed, pair, 1, 1, "/", &[])?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let empty = pair.memory_kib();
    let to = bed.address(Traffic::Http1);
    let made = bed.client.thread(move || -> std::io::Result<Vec<std::net::TcpStream>> {
        use std::io::{Read as _, Write as _};
        let mut all = Vec::with_capacity(MANY);
        for _ in 0..MANY {
            let mut stream = std::net::TcpStream::connect(to)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(format!("GET / HTTP/1.1\r\nHost: {ORDERS}:{HTTP1}\r\n\r\n").as_bytes())?;
            let mut answer = Vec::new();
            let mut buffer = [0; 4_096];
            while answer.iter().rev().take_while(|b| **b == b'x').count() < 1_024 {
                match stream.read(&mut buffer)? {
                    0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                    n => answer.extend_from_slice(&buffer[..n]),
                }
            }
            all.push(stream);
        }
        Ok(all)
    });
    let connections = made.join().map_err(|_| "the connections panicked".to_owned())?.map_err(|e| e.to_string())?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let full = pair.memory_kib();
    let each = full.saturating_sub(empty) as f64 / connections.len() as f64;
    Ok(vec![("pair_mib", empty as f64 / 1_024.0), ("kib_per_connection", each)])
}

async fn start(bed: &Bed<'_>) -> Vec<Figure> {
    let begun = Instant::now();
    let _pair = bed.outrigger(Traffic::Http1, json!({})).await;
    drop(_pair);
    let mut slowest = Duration::ZERO;
    for pod in [&bed.client, &bed.server] {
        let config = pod.folder("config").join("outrigger.yaml");
        let launched = Instant::now();
        let mut process = pod.start(SIDECAR, "outrigger-sidecar", &["run", "--config", config.to_str().unwrap()]);
        loop {
            process.assert_running();
            if let Ok(reply) = pod.try_get((Ipv4Addr::LOCALHOST, 15020).into(), "localhost", "/readyz").await
                && reply.status == 200
            {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "not ready");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        slowest = slowest.max(launched.elapsed());
    }
    vec![("ready_ms", slowest.as_secs_f64() * 1_000.0)]
}

/// Addresses that all lead to the one callee, each an endpoint of its own.
async fn many_endpoints(bed: &Bed<'_>, seconds: u32) -> Result<Vec<Figure>, String> {
    let (peer, network) = (bed.server.v4.to_string(), "10.78.0.0/16");
    let replace = ["route", "replace"];
    good("ip", bed.client.output(0, "ip", &[&replace[..], &[network, "via", &peer]].concat()))?;
    good("ip", bed.server.output(0, "ip", &[&replace[..], &["local", network, "dev", "lo"]].concat()))?;
    let mut figures = Vec::new();
    for (name, count) in [("few_cpu_us", 3_u32), ("many_cpu_us", 10_000)] {
        let addresses: Vec<_> = (0..count)
            .map(|i| format!("{}:{HTTP1}", Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 78, 0, 1)) + i)))
            .collect();
        let more = json!({ "services": [{ "name": ORDERS, "port": HTTP1, "endpoints": { "static": addresses },
            "circuit_breakers": { "max_connections": 19_000 } }] });
        let mut pair = Pair(bed.outrigger(Traffic::Http1, more).await);
        // As many of them come into use as the load needs.
        wrk(bed, &pair, 32, 3, "/", &[])?;
        let all = wrk(bed, &pair, 32, seconds, "/", &[])?;
        pair.assert_running();
        figures.push((name, all[0].1));
    }
    Ok(figures)
}

async fn many_services(bed: &Bed<'_>, seconds: u32) -> Result<Vec<Figure>, String> {
    let mut figures = Vec::new();
    for (name, count) in [("few_cpu_us", 0), ("many_cpu_us", 2_000)] {
        let peer = format!("{}:{HTTP1}", bed.server.v4);
        let mut services = vec![json!({ "name": ORDERS, "port": HTTP1 })];
        services.extend(
            (0..count).map(
                |i| json!({ "name": format!("service-{i}.mesh"), "port": HTTP1, "endpoints": { "static": [peer] } }),
            ),
        );
        let mut pair = Pair(bed.outrigger(Traffic::Http1, json!({ "services": services })).await);
        wrk(bed, &pair, 32, 1, "/", &[])?;
        let all = wrk(bed, &pair, 32, seconds, "/", &[])?;
        pair.assert_running();
        figures.push((name, all[0].1));
    }
    Ok(figures)
}
