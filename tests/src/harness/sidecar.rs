//! A real sidecar in a pod, with redirection by the real tool.

use std::{
    net::Ipv4Addr,
    ops::{Deref, DerefMut},
    path::PathBuf,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    Mesh, Pod, Process, Reply,
    openmetrics::{self, Scrape},
    pod::SIDECAR,
};

/// Workers of every sidecar that is not told otherwise, whatever the machine: what tests say about limits and
/// ejections, which are kept by each worker for itself, must not depend on its processors.
pub const WORKERS: u32 = 2;

/// A running sidecar.
pub struct Sidecar(Process);

impl Deref for Sidecar {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.0
    }
}

impl DerefMut for Sidecar {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.0
    }
}

/// Puts `over` onto `base`, object by object.
pub fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

impl Sidecar {
    /// Installs the redirection and starts a sidecar with `config` (an object) over the tests' own settings: the mesh's
    /// DNS server, the pod's `identity` folder, [`WORKERS`] workers, a short drain. Waits until it is ready.
    pub async fn start(mesh: &Mesh, pod: &Pod, config: Value) -> Self {
        let mut sidecar = Self::launch(mesh, pod, config);
        sidecar.ready(pod).await;
        sidecar
    }

    /// The same without the wait.
    pub fn launch(mesh: &Mesh, pod: &Pod, config: Value) -> Self {
        let file = Self::configure(mesh, pod, config);
        pod.redirect(&[]);
        Self(pod.start(SIDECAR, "outrigger-sidecar", &["run", "--config", file.to_str().unwrap()]))
    }

    /// The same with `inbound.interception: tproxy` and the one capability that it takes, in a pod whose redirection is
    /// installed by TPROXY.
    pub async fn start_transparent(mesh: &Mesh, pod: &Pod, config: Value) -> Self {
        let mut whole = json!({ "inbound": { "interception": "tproxy" } });
        merge(&mut whole, config);
        let file = Self::configure(mesh, pod, whole);
        pod.redirect(&["--mode", "tproxy"]);
        let program = mesh.dir.join("bin/outrigger-sidecar");
        let uid = SIDECAR.to_string();
        // A change of user clears the death signal that was set before it.
        let who = [
            "--reuid",
            &uid,
            "--regid",
            &uid,
            "--clear-groups",
            "--pdeathsig",
            "KILL",
            "--bounding-set",
            "-all,+net_raw",
        ];
        let may = ["--inh-caps", "-all,+net_raw", "--ambient-caps", "-all,+net_raw"];
        let what = [program.to_str().unwrap(), "run", "--config", file.to_str().unwrap()];
        let mut sidecar = Self(pod.start(0, "setpriv", &[&who[..], &may[..], &what[..]].concat()));
        sidecar.ready(pod).await;
        sidecar
    }

    /// Writes the settings that [`Self::start`] gives a sidecar; gives back the file.
    pub fn configure(mesh: &Mesh, pod: &Pod, config: Value) -> PathBuf {
        let mut whole = json!({
            "workers": WORKERS,
            "identity": { "dir": pod.folder("identity") },
            "dns": { "servers": [mesh.dns.address()], "timeout": "1s" },
            "drain": { "minimum": "500ms", "timeout": "20s" },
        });
        merge(&mut whole, config);
        let file = pod.folder("config").join("outrigger.yaml");
        // JSON is YAML.
        std::fs::write(&file, format!("{whole:#}\n")).unwrap();
        file
    }

    /// The same with nothing but these arguments after `run` and these variables.
    pub fn bare(pod: &Pod, args: &[&str], env: &[(&str, &str)]) -> Self {
        pod.redirect(&[]);
        Self(pod.start_with(SIDECAR, "outrigger-sidecar", &[&["run"], args].concat(), env))
    }

    /// The process alone.
    pub fn into_process(self) -> Process {
        self.0
    }

    /// Waits until `/readyz` says so.
    pub async fn ready(&mut self, pod: &Pod) {
        super::eventually("the sidecar is ready", Duration::from_secs(15), || {
            self.assert_running();
            async {
                let reply = pod.try_get((Ipv4Addr::LOCALHOST, 15020).into(), "localhost", "/readyz").await?;
                if reply.status == 200 { Ok(()) } else { Err(reply.text()) }
            }
        })
        .await;
    }
}

impl Pod {
    /// An answer of the sidecar's operator address.
    pub async fn admin(&self, path: &str) -> Reply {
        self.get((Ipv4Addr::LOCALHOST, 15000).into(), "localhost", path).await
    }

    /// What a scraper reads from the sidecar's telemetry address; panics unless it is right OpenMetrics text.
    pub async fn scrape(&self) -> Scrape {
        let text = self.get((Ipv4Addr::LOCALHOST, 15020).into(), "localhost", "/metrics").await.text();
        openmetrics::parse(&text).unwrap_or_else(|why| panic!("/metrics of {}: {why}", self.name))
    }

    /// The sum of all series of a metric whose labels include these.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.scrape().await.sum(name, labels)
    }

    /// Waits until the sum of some series is this. A counter is a moment behind what a caller has read.
    pub async fn until_metric(&self, name: &str, labels: &[(&str, &str)], wanted: f64) {
        let what = format!("{name} {labels:?} of {} is {wanted}", self.name);
        super::eventually(&what, std::time::Duration::from_secs(5), || async {
            let now = self.metric(name, labels).await;
            if now == wanted { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
    }
}
