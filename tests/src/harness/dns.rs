//! The DNS server of a mesh: its records change while it runs, it counts what it was asked, and it can be told to
//! fail in the ways in which DNS fails.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, SOA, SRV},
    },
};

use super::pod::Pod;

/// How the server fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SERVFAIL to every question.
    ServFail,
    /// No answer at all.
    Silent,
}

#[derive(Default)]
struct Zone {
    /// By lower-case name without its final dot.
    records: HashMap<String, (u32, Vec<RData>)>,
    fault: Option<Fault>,
    asked: HashMap<(String, RecordType), u32>,
    turn: usize,
}

/// The negative TTL in the SOA of an empty answer, in seconds.
pub const NEGATIVE_TTL: u32 = 1;

/// The server; ends when dropped.
pub struct Dns {
    /// The pod that it runs in.
    pub pod: Pod,
    zone: Arc<Mutex<Zone>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Dns {
    pub(super) fn start(pod: Pod) -> Self {
        let zone = Arc::new(Mutex::new(Zone::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let socket = pod.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 53))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let thread = std::thread::spawn({
            let (zone, stop) = (zone.clone(), stop.clone());
            move || {
                let mut buffer = [0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
                    if let Some(reply) = zone.lock().unwrap().answer(&buffer[..n]) {
                        // The asker may have gone.
                        let _ = socket.send_to(&reply, from);
                    }
                }
            }
        });
        Self { pod, zone, stop, thread: Some(thread) }
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.pod.at4(53)
    }

    /// Gives a name these addresses, with a TTL in seconds. No address: NODATA.
    pub fn set(&self, name: &str, ttl: u32, addresses: &[IpAddr]) {
        let data = addresses.iter().map(|ip| match ip {
            IpAddr::V4(ip) => RData::A(A(*ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
        });
        self.put(name, ttl, data.collect());
    }

    /// Gives a name these SRV records: priority, weight, port, target.
    pub fn set_srv(&self, name: &str, ttl: u32, records: &[(u16, u16, u16, &str)]) {
        let data = records.iter().map(|&(priority, weight, port, target)| {
            RData::SRV(SRV::new(priority, weight, port, Name::from_ascii(format!("{target}.")).unwrap()))
        });
        self.put(name, ttl, data.collect());
    }

    fn put(&self, name: &str, ttl: u32, data: Vec<RData>) {
        self.zone.lock().unwrap().records.insert(name.to_owned(), (ttl, data));
    }

    /// Makes a name unknown: NXDOMAIN.
    pub fn remove(&self, name: &str) {
        self.zone.lock().unwrap().records.remove(name);
    }

    /// Fails from now on, or no more.
    pub fn fail(&self, fault: Option<Fault>) {
        self.zone.lock().unwrap().fault = fault;
    }

    /// How often it was asked for this.
    pub fn asked(&self, name: &str, kind: RecordType) -> u32 {
        self.zone.lock().unwrap().asked.get(&(name.to_owned(), kind)).copied().unwrap_or(0)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

impl Zone {
    fn answer(&mut self, request: &[u8]) -> Option<Vec<u8>> {
        let request = Message::from_vec(request).ok()?;
        let query = request.queries.first()?;
        let (name, kind) = (query.name().clone(), query.query_type());
        let key = name.to_ascii().to_ascii_lowercase().trim_end_matches('.').to_owned();
        *self.asked.entry((key.clone(), kind)).or_default() += 1;
        let mut reply = Message::new(request.metadata.id, MessageType::Response, OpCode::Query);
        reply.metadata.recursion_desired = request.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.add_query(query.clone());
        match self.fault {
            Some(Fault::Silent) => return None,
            Some(Fault::ServFail) => {
                reply.metadata.response_code = ResponseCode::ServFail;
                return reply.to_vec().ok();
            }
            None => {}
        }
        let known = self.records.get(&key);
        let mut answers: Vec<_> = known
            .iter()
            .flat_map(|(ttl, data)| data.iter().map(|d| Record::from_rdata(name.clone(), *ttl, d.clone())))
            .filter(|record| record.record_type() == kind)
            .collect();
        if answers.is_empty() {
            if known.is_none() {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, NEGATIVE_TTL);
            reply.add_authority(Record::from_rdata(name.base_name(), NEGATIVE_TTL, RData::SOA(soa)));
        } else {
            // Another order each time, as servers do.
            self.turn += 1;
            let by = self.turn % answers.len();
            answers.rotate_left(by);
            reply.add_answers(answers);
        }
        reply.to_vec().ok()
    }
}
