//! What a connection costs beside its bytes.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use outrigger_e2e::harness::{
    self, Mesh, Pod,
    pair::{HTTP, Pair},
    pod::APP,
};

/// Packets that have passed the pod's loopback: those between the workload and its sidecar.
fn loopback_packets(pod: &Pod) -> u64 {
    let output = pod.output(APP, "cat", &["/proc/net/dev"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|l| l.trim().strip_prefix("lo:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_connection_for_one_request_is_eight_packets_to_the_workload() {
    harness::run(async {
        const REQUESTS: u64 = 50;
        let pair = Pair::new(Mesh::new()).await;
        let to = pair.server.at4(HTTP);
        let ask = move |requests: u64| {
            for _ in 0..requests {
                let mut stream = TcpStream::connect(to).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let request = format!("GET /whoami HTTP/1.1\r\nhost: orders4.mesh:{HTTP}\r\nconnection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            }
        };
        pair.client.thread(move || ask(5)).join().unwrap();
        let before = loopback_packets(&pair.client);
        pair.client.thread(move || ask(REQUESTS)).join().unwrap();
        let each = (loopback_packets(&pair.client) - before) as f64 / REQUESTS as f64;
        // Three to begin, the request, the answer with its end, what the client says to that, and the last word. A
        // request that is acknowledged by itself is one more, and so is an end that comes after its answer.
        assert!((7.0..8.5).contains(&each), "{each} packets a request");
    });
}
