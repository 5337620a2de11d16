//! `remove --drain`: open connections finish, new ones go their own way at once.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::support::{APP, PROXY, Pair, ROOT, Tools, said, state};

#[test]
fn open_connections_finish_and_new_ones_go_their_own_way() {
    thread::scope(|scope| {
        for mode in ["redirect", "tproxy"] {
            for tools in Tools::all() {
                scope.spawn(move || drain(&tools, mode));
            }
        }
    });
}

fn drain(tools: &Tools, mode: &str) {
    let Pair { pod, peer } = &Pair::new();
    tools.prepare(pod);
    let before = state(pod);
    tools.must(pod, &format!("install --mode {mode} --dns-port 15053"));
    let mut calls = vec![
        peer.dial(ROOT, None, "10.77.1.2", 8080),
        peer.dial(ROOT, None, "fd77:1::2", 8080),
        pod.dial(APP, None, "10.77.1.1", 80),
        pod.dial(APP, None, "fd77:1::1", 80),
    ];
    if mode == "tproxy" {
        calls.push(pod.dial(PROXY, Some("10.77.1.1"), "10.77.1.2", 8080));
    }
    thread::scope(|scope| {
        let removing = scope.spawn(|| {
            let words = tools.must(pod, "remove --drain 20s");
            (words, Instant::now())
        });
        // The families and tables follow each other.
        let deadline = Instant::now() + Duration::from_secs(10);
        let until = |what: &dyn Fn() -> String, wanted: &str| {
            while what() != wanted {
                assert!(Instant::now() < deadline, "{} {mode}: {} instead of {wanted}", tools.backend, what());
            }
        };
        until(&|| peer.dial(ROOT, None, "10.77.1.2", 8080).landed, "direct 8080 from 10.77.1.1");
        until(&|| peer.dial(ROOT, None, "fd77:1::2", 8080).landed, "direct 8080 from fd77:1::1");
        until(&|| pod.dial(APP, None, "10.77.1.1", 80).landed, "direct 80 from 10.77.1.2");
        until(&|| pod.dial(APP, None, "fd77:1::1", 80).landed, "direct 80 from fd77:1::2");
        let status = tools.outrigger(pod, "status");
        assert_eq!(status.status.code(), Some(9), "{}", said(&status));
        assert!(said(&status).contains("draining"), "{}", said(&status));
        for call in &mut calls {
            assert!(call.is_alive(), "{} {mode}: {:?} died while it should drain", tools.backend, call.landed);
        }
        assert!(!removing.is_finished(), "{} {mode}: it did not wait", tools.backend);
        let closed = Instant::now();
        calls.clear();
        let (words, ended) = removing.join().unwrap();
        assert!(!words.contains("still open"), "{words}");
        assert!(ended - closed < Duration::from_secs(5), "{} {mode}: nobody noticed the end", tools.backend);
    });
    assert_eq!(state(pod), before, "{} {mode}", tools.backend);
}

#[test]
fn the_time_to_drain_has_an_end_that_says_what_was_cut() {
    let (Pair { pod, peer }, tools) = (&Pair::new(), Tools::nft());
    tools.must(pod, "install");
    let _call = peer.dial(ROOT, None, "10.77.1.2", 8080);
    let start = Instant::now();
    let words = tools.must(pod, "remove --drain 300ms");
    assert!(words.contains("1 connections were still open after 300ms"), "{words}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(!state(pod).contains("outrigger"));
}

#[test]
fn what_is_installed_while_another_drains_stays() {
    let (Pair { pod, peer }, tools) = (&Pair::new(), Tools::nft());
    tools.must(pod, "install");
    let call = peer.dial(ROOT, None, "10.77.1.2", 8080);
    thread::scope(|scope| {
        let removing = scope.spawn(|| tools.must(pod, "remove --drain 20s"));
        while tools.outrigger(pod, "status").status.code() != Some(9) {}
        tools.must(pod, "install");
        drop(call);
        let words = removing.join().unwrap();
        assert!(words.contains("it stays"), "{words}");
    });
    assert_eq!(peer.dial(ROOT, None, "10.77.1.2", 8080).landed, "inbound 10.77.1.2:8080 from 10.77.1.1");
}
