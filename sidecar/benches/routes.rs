//! What routes cost: 2,000 services and 5,000 routes loaded, and a request matched.
//!
//! `cargo bench -p outrigger-sidecar --bench routes`. Memory and time of loading are of this process; a match must
//! allocate nothing, which the counting allocator proves or the benchmark fails. Times are medians of 15 rounds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fmt::Write as _,
    hint::black_box,
    io::Write as _,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Instant,
};

use http::{HeaderMap, HeaderValue, Method};
use outrigger_sidecar::{
    config::{self, Host, PathNormalization},
    http::path::{Canonical, canonical},
    route::{Asked, Routes},
};

const SERVICES: usize = 2_000;
const ROUTES: usize = 5_000;
const ROUNDS: usize = 15;
const REQUESTS: usize = 20_000;

/// The system's allocator, counted.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's own; the counts touch no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        BYTES.fetch_add(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// 2,000 services, and 5,000 routes: each of two hosts in turn, each of a prefix of its own with a weight, a header and a
/// timeout; all but one host have two or three, and the last one has all that are left.
fn text(routes_of_one: usize) -> String {
    let mut text = String::from("services:\n");
    for i in 0..SERVICES {
        writeln!(
            text,
            "- {{ name: s{i}.example, port: 8080, endpoints: {{ static: [\"10.0.{}.{}:8080\"] }} }}",
            i / 250,
            i % 250 + 1
        )
        .unwrap();
    }
    text.push_str("routes:\n");
    for i in 0..ROUTES {
        let host = if i < routes_of_one { 0 } else { i % SERVICES };
        let (other, kind) = ((host + 1) % SERVICES, if i % 2 == 0 { "PathPrefix" } else { "Exact" });
        writeln!(
            text,
            "- {{ name: r{i}, hostnames: [s{host}.example], rules: [{{ matches: [{{ path: {{ type: {kind}, value: /api/v{i}/orders }}, \
             headers: [{{ name: x-canary, value: \"yes\" }}] }}, {{ path: {{ type: {kind}, value: /api/v{i}/orders }} }}], \
             backendRefs: [{{ name: s{host}.example, weight: 9 }}, {{ name: s{other}.example, weight: 1 }}], timeouts: {{ request: 5s }} }}] }}"
        )
        .unwrap();
    }
    text
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// The median time of `work` in nanoseconds, and its allocations in all rounds.
fn timed(mut work: impl FnMut(usize)) -> (f64, usize) {
    work(0);
    let before = ALLOCATIONS.load(Relaxed);
    let mut times = [0.0; ROUNDS];
    for time in &mut times {
        let begun = Instant::now();
        (0..REQUESTS).for_each(&mut work);
        *time = begun.elapsed().as_nanos() as f64 / REQUESTS as f64;
    }
    let allocations = ALLOCATIONS.load(Relaxed) - before;
    (median(times.to_vec()), allocations)
}

fn main() {
    for (what, routes_of_one) in [("2 or 3 routes a host", 0), ("3,000 routes of one host", 3_000)] {
        let text = text(routes_of_one);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let begun = Instant::now();
        let config = config::load(Some(file.path()), std::iter::empty()).unwrap_or_else(|e| panic!("{e}"));
        let loaded = begun.elapsed();
        let (before, begun) = (BYTES.load(Relaxed), Instant::now());
        let routes = Routes::compile(&config).unwrap();
        let compiled = begun.elapsed();
        println!("{what}: {SERVICES} services, {ROUTES} routes, {} KiB of YAML", text.len() / 1_024);
        println!(
            "  read and checked in {loaded:.0?}, compiled in {compiled:.1?}, {} KiB of tables",
            (BYTES.load(Relaxed) - before) / 1_024
        );

        let host = Host::parse("s0.example").unwrap();
        let (finding, allocated) = timed(|_| {
            black_box(routes.find(black_box(&host), 8080));
        });
        assert_eq!(allocated, 0, "finding the table of a host allocates");
        let table = &routes.tables()[routes.find(&host, 8080).unwrap()];
        let mut headers = HeaderMap::new();
        headers.insert("x-canary", HeaderValue::from_static("no"));
        headers.insert("accept", HeaderValue::from_static("*/*"));
        for (kind, path, is_there) in
            [("prefix", "/api/v0/orders/17/items", true), ("nothing", "/api/v1/other/17/items", false)]
        {
            let (time, allocated) = timed(|_| {
                let Canonical::Path(path) = canonical(black_box(path), PathNormalization::default()) else { panic!() };
                let asked = Asked { path: &path, query: "", method: &Method::GET, headers: &headers };
                assert_eq!(black_box(table.take(asked)).is_some(), is_there);
            });
            assert_eq!(allocated, 0, "a match allocates");
            println!("  {kind}: {time:.0} ns a request, no allocation");
        }
        println!("  finding the table of a host, once a connection: {finding:.0} ns");
    }
}
