//! A DNS server on 127.0.0.1, over UDP and TCP, that answers from a table which the test changes as it goes.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{CNAME, NS, SOA, SRV},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
};

/// What the server does with a question.
#[derive(Clone, Debug)]
pub(super) enum Script {
    /// These records, in another order each time.
    Records(u32, Vec<RData>),
    /// An alias, and the records of its target with it.
    Alias(u32, &'static str, u32, Vec<RData>),
    /// NXDOMAIN, with an SOA of this TTL and minimum.
    NxDomain(u32, u32),
    /// NODATA, with an SOA of this TTL and minimum.
    NoData(u32, u32),
    /// NODATA without an SOA.
    Bare,
    /// A delegation to somebody else.
    Referral,
    /// This code and nothing else.
    Code(ResponseCode),
    /// No answer.
    Silence,
    /// Over UDP "truncated", over TCP these records.
    Truncated(u32, Vec<RData>),
}

type Table = HashMap<(String, RecordType), Script>;

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    asked: Mutex<HashMap<(String, RecordType), usize>>,
    turn: Mutex<usize>,
}

pub(super) struct TestServer {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl TestServer {
    pub(super) async fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // The same port must be free for TCP too; else try another one.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let (address, shared) = (udp.local_addr().unwrap(), Arc::new(Shared::default()));
        let tasks = [tokio::spawn(serve_udp(udp, shared.clone())), tokio::spawn(serve_tcp(tcp, shared.clone()))];
        Self { address, shared, tasks }
    }

    pub(super) fn set(&self, name: &str, kind: RecordType, script: Script) {
        self.shared.table.lock().unwrap().insert((name.to_owned(), kind), script);
    }

    /// A records of this TTL, and NODATA for AAAA.
    pub(super) fn v4(&self, name: &str, ttl: u32, ips: &[&str]) {
        self.set(name, RecordType::A, Script::Records(ttl, addresses(ips)));
        self.set(name, RecordType::AAAA, Script::NoData(60, 60));
    }

    pub(super) fn both(&self, name: &str, script: &Script) {
        self.set(name, RecordType::A, script.clone());
        self.set(name, RecordType::AAAA, script.clone());
    }

    pub(super) fn asked(&self, name: &str, kind: RecordType) -> usize {
        self.shared.asked.lock().unwrap().get(&(name.to_owned(), kind)).copied().unwrap_or(0)
    }
}

pub(super) fn addresses(ips: &[&str]) -> Vec<RData> {
    ips.iter().map(|ip| RData::from(ip.parse::<IpAddr>().unwrap())).collect()
}

pub(super) fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(priority, weight, port, Name::from_ascii(target).unwrap()))
}

async fn serve_udp(socket: UdpSocket, shared: Arc<Shared>) {
    let mut buffer = vec![0; 4_096];
    loop {
        let (n, from) = socket.recv_from(&mut buffer).await.unwrap();
        if let Some(reply) = shared.answer(&buffer[..n], false) {
            socket.send_to(&reply, from).await.unwrap();
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let shared = shared.clone();
        tokio::spawn(async move {
            while let Ok(n) = stream.read_u16().await {
                let mut buffer = vec![0; n.into()];
                stream.read_exact(&mut buffer).await.unwrap();
                if let Some(reply) = shared.answer(&buffer, true) {
                    stream.write_u16(reply.len() as u16).await.unwrap();
                    stream.write_all(&reply).await.unwrap();
                }
            }
        });
    }
}

impl Shared {
    fn answer(&self, request: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let request = Message::from_vec(request).unwrap();
        let query: &Query = request.queries.first().unwrap();
        let key = (query.name().to_ascii().to_ascii_lowercase(), query.query_type());
        *self.asked.lock().unwrap().entry(key.clone()).or_insert(0) += 1;
        let script = self.table.lock().unwrap().get(&key).cloned().unwrap_or(Script::NxDomain(60, 60));

        let mut reply = Message::new(request.metadata.id, MessageType::Response, OpCode::Query);
        reply.metadata.recursion_desired = true;
        reply.metadata.recursion_available = true;
        reply.add_query(query.clone());
        let name = query.name().clone();
        match script {
            Script::Silence => return None,
            Script::Code(code) => reply.metadata.response_code = code,
            Script::Bare => {}
            Script::Referral => {
                let elsewhere = RData::NS(NS(Name::from_ascii("ns.elsewhere.").unwrap()));
                reply.add_authority(Record::from_rdata(name.base_name(), 60, elsewhere));
            }
            Script::NxDomain(ttl, minimum) | Script::NoData(ttl, minimum) => {
                if matches!(script, Script::NxDomain(..)) {
                    reply.metadata.response_code = ResponseCode::NXDomain;
                }
                let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, minimum);
                reply.add_authority(Record::from_rdata(name.base_name(), ttl, RData::SOA(soa)));
            }
            Script::Truncated(..) if !tcp => reply.metadata.truncation = true,
            Script::Alias(alias_ttl, target, ttl, data) => {
                let target = Name::from_ascii(target).unwrap();
                reply.add_answer(Record::from_rdata(name, alias_ttl, RData::CNAME(CNAME(target.clone()))));
                reply.add_answers(data.into_iter().map(|d| Record::from_rdata(target.clone(), ttl, d)));
            }
            Script::Records(ttl, mut data) | Script::Truncated(ttl, mut data) => {
                let mut turn = self.turn.lock().unwrap();
                *turn += 1;
                let by = *turn % data.len().max(1);
                data.rotate_left(by);
                reply.add_answers(data.into_iter().map(|d| Record::from_rdata(name.clone(), ttl, d)));
            }
        }
        Some(reply.to_vec().unwrap())
    }
}
