//! The pair of virtual interfaces by which `verify` sends packets to this host as if they came from outside.

use std::io;

use super::{Body, CREATE_NEW, Kernel, attribute, is_absent};

// linux/rtnetlink.h, linux/if_link.h, linux/veth.h, linux/if.h.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 0x1;
const IFF_NOARP: u32 = 0x80;
const IF_OPER_UP: u8 = 6;
/// `struct ifinfomsg`.
const STRUCTURE: usize = 16;

/// One end: its name and its hardware address.
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) hardware: [u8; 6],
}

/// Makes both ends, up, without address resolution: nobody would answer it.
pub(crate) fn add(inside: &End<'_>, outside: &End<'_>) -> io::Result<()> {
    let kernel = Kernel::routing()?;
    let peer = described(outside);
    let info = Body::default()
        .with_text(IFLA_INFO_KIND, "veth")
        .with_nested(IFLA_INFO_DATA, Body::default().with_nested(VETH_INFO_PEER, peer));
    kernel.ask(RTM_NEWLINK, CREATE_NEW, &described(inside).with_nested(IFLA_LINKINFO, info))?;
    // An end can only be up when there is another.
    [inside, outside].into_iter().try_for_each(|end| {
        let body = Body::new(&structure(IFF_UP | IFF_NOARP)).with_text(IFLA_IFNAME, end.name);
        kernel.ask(RTM_NEWLINK, 0, &body)
    })
}

/// Whether packets go through an interface. After it was set up that takes the kernel a moment, in which it drops them.
pub(crate) fn is_operational(name: &str) -> io::Result<bool> {
    let all = Kernel::routing()?.list(RTM_GETLINK, &Body::new(&[0; STRUCTURE]))?;
    let named = |payload: &&Vec<u8>| {
        let found = attribute(payload, STRUCTURE, IFLA_IFNAME).and_then(|bytes| bytes.strip_suffix(&[0]));
        found == Some(name.as_bytes())
    };
    Ok(all
        .iter()
        .find(named)
        .is_some_and(|payload| attribute(payload, STRUCTURE, IFLA_OPERSTATE) == Some(&[IF_OPER_UP])))
}

/// Removes an interface, and a virtual one's other end; no error when it is not there.
pub(crate) fn remove(name: &str) -> io::Result<()> {
    match Kernel::routing()?.ask(RTM_DELLINK, 0, &Body::new(&structure(0)).with_text(IFLA_IFNAME, name)) {
        Err(error) if !is_absent(&error) => Err(error),
        _ => Ok(()),
    }
}

fn described(end: &End<'_>) -> Body {
    Body::new(&structure(0)).with_text(IFLA_IFNAME, end.name).with(IFLA_ADDRESS, &end.hardware)
}

/// `struct ifinfomsg`: no family, type and index; flags, and which of them to change.
fn structure(flags: u32) -> Vec<u8> {
    [0; 8].into_iter().chain(flags.to_ne_bytes()).chain(flags.to_ne_bytes()).collect()
}
