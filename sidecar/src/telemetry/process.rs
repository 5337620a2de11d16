//! What the operating system knows of this process, under the names that every Prometheus client uses.
//! A value that `/proc` does not give is left out of the scrape.

use std::{
    fmt, fs,
    time::{SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::resource::{Resource, UsageWho, getrlimit, getrusage},
    unistd::{SysconfVar, sysconf},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

/// Start time, memory, file descriptors and CPU time of this process, and the build.
#[derive(Debug)]
pub(super) struct ProcessCollector {
    started: f64,
}

impl ProcessCollector {
    /// To be made when the process starts: that moment is its start time.
    pub(super) fn new() -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        Self { started }
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        to.encode_descriptor("outrigger_build", "The version that runs.", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;

        let seconds = Some(&Unit::Seconds);
        to.encode_descriptor("process_start_time", "Start, since the Unix epoch.", seconds, MetricType::Gauge)?
            .encode_gauge(&self.started)?;
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let time = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
            let spent = time(usage.user_time()) + time(usage.system_time());
            to.encode_descriptor("process_cpu", "User and system CPU time.", seconds, MetricType::Counter)?
                .encode_counter::<NoLabelSet, f64, f64>(&spent, None)?;
        }
        let mut gauge = |name, help, value: Option<u64>| match value {
            Some(value) => to
                .encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
            None => Ok(()),
        };
        gauge("process_resident_memory_bytes", "Resident memory.", resident_bytes())?;
        gauge("process_open_fds", "Open file descriptors.", open_fds())?;
        let max = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft);
        gauge("process_max_fds", "Limit on open file descriptors.", max)
    }
}

fn resident_bytes() -> Option<u64> {
    // proc_pid_statm(5): the second field is the resident set in pages.
    let pages: u64 = fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    pages.checked_mul(page)
}

fn open_fds() -> Option<u64> {
    // Less the one that reads the folder.
    u64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()?.checked_sub(1)
}
