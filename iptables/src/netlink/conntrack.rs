//! The connections that connection tracking knows (ctnetlink).

use std::io;

use super::{Body, Kernel, attribute};
use crate::plan::{INTERCEPTED, LEG};

// linux/netfilter/nfnetlink_conntrack.h
const GET: u16 = (1 << 8) | 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_MARK: u16 = 8;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const IPS_DST_NAT: u32 = 1 << 5;
const TCP: u8 = 6;
/// TIME_WAIT, CLOSE: over (linux/netfilter/nf_conntrack_tcp.h).
const OVER: [u8; 3] = [0, 7, 8];
/// `struct nfgenmsg`.
const STRUCTURE: usize = 4;

/// How many TCP connections are open whose segments our rules carry: translated to one of these ports of this host, or
/// taken by TPROXY, or legs of it.
pub(crate) fn carried(ports: &[u16]) -> io::Result<usize> {
    let all = Kernel::netfilter()?.list(GET, &Body::new(&[0; STRUCTURE]))?;
    Ok(all.iter().filter(|payload| is_carried(payload, ports).unwrap_or(false)).count())
}

fn is_carried(payload: &[u8], ports: &[u16]) -> Option<bool> {
    let reply = attribute(payload, STRUCTURE, CTA_TUPLE_REPLY)?;
    let protocol = attribute(reply, 0, CTA_TUPLE_PROTO)?;
    if attribute(protocol, 0, CTA_PROTO_NUM)? != [TCP] {
        return Some(false);
    }
    let state = attribute(payload, STRUCTURE, CTA_PROTOINFO)
        .and_then(|info| attribute(info, 0, CTA_PROTOINFO_TCP))
        .and_then(|tcp| attribute(tcp, 0, CTA_PROTOINFO_TCP_STATE)?.first());
    if state.is_none_or(|state| OVER.contains(state)) {
        return Some(false);
    }
    let number = |kind| {
        let bytes: Option<[u8; 4]> = attribute(payload, STRUCTURE, kind).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_be_bytes)
    };
    if number(CTA_MARK) & (INTERCEPTED | LEG) != 0 {
        return Some(true);
    }
    let port: [u8; 2] = attribute(protocol, 0, CTA_PROTO_SRC_PORT)?.try_into().ok()?;
    Some(number(CTA_STATUS) & IPS_DST_NAT != 0 && ports.contains(&u16::from_be_bytes(port)))
}
